#include "node/vm_relay_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "migration/daemon_link.h"
#include "migration/session.h"
#include "node/vm_relay.h"
#include "process/priority.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kAnswerWait = absl::Seconds(10);
constexpr absl::Duration kLook = absl::Milliseconds(50);

void obey(VmRelay& relay, migration::VmOrder order) {
  switch (order) {
    case migration::VM_HOLD_OWN:
      return relay.hold_own(true);
    case migration::VM_LIFT_LIMIT:
      return relay.traffic().lift(true);
    case migration::VM_KEEP:
      return relay.keep();
    case migration::VM_RELEASE:
      return relay.release();
    case migration::VM_CUT:
      return relay.cut(true);
    default:
      return;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<VmRelayProcess>> VmRelayProcess::start(
    SpareMover& spare, const NodeConfig& config, const std::string& libvirt_socket,
    const std::string& id, migration::MoverStart start) {
  std::unique_ptr<VmRelayProcess> relay(new VmRelayProcess);
  relay->folder_ = config.vm_sockets;
  relay->id_ = id;
  start.set_migration_id(id);
  start.set_vm_libvirt(libvirt_socket);
  start.set_vm_sockets(config.vm_sockets);
  start.set_listen_host(config.listen_host);
  start.set_node(config.name);
  GW_ASSIGN_OR_RETURN(relay->mover_, spare.take_or_start(start));
  GW_RETURN_IF_ERROR(relay->ask(migration::VM_LOOK));
  if (!relay->state_.error().empty())
    return make_error(absl::StatusCode::kUnavailable, "{}", relay->state_.error());
  relay->port_ = static_cast<uint16_t>(relay->state_.port());
  return relay;
}

absl::Status VmRelayProcess::ask(migration::VmOrder order) {
  migration::DaemonToMover message;
  message.set_vm_order(order);
  GW_RETURN_IF_ERROR(mover_->send(message));
  GW_ASSIGN_OR_RETURN(const migration::MoverToDaemon answer,
                      mover_->receive(Deadline::in(kAnswerWait)));
  if (answer.has_vm_state()) {
    state_ = answer.vm_state();
    return absl::OkStatus();
  }
  return make_error(absl::StatusCode::kUnavailable, "{}", answer.finished().error());
}

void VmRelayProcess::order(migration::VmOrder order) {
  std::lock_guard lock(mutex_);
  const absl::Status answered = ask(order);
  if (answered.ok()) return;
  if (!state_.broken()) log_warning("the relay of migration {}: {}", id_, message_of(answered));
  state_.set_broken(true);
  state_.set_control_ended(true);
  state_.set_finish_held(false);
}

migration::VmRelayState VmRelayProcess::look() {
  order(migration::VM_LOOK);
  std::lock_guard lock(mutex_);
  return state_;
}

void VmRelayProcess::note(api::MigrationJournal& entry) const {
  entry.set_mover_pid(mover_->pid());
  entry.set_mover_start_ticks(mover_->start_ticks());
}

absl::Status end_vm_relay(const api::MigrationJournal& entry) {
  GW_RETURN_IF_ERROR(end_left_over_mover(entry.mover_pid(), entry.mover_start_ticks(), 0).status());
  // Our child, or a predecessor's, which pid 1 reaps.
  if (entry.mover_pid() > 0) (void)::waitpid(entry.mover_pid(), nullptr, WNOHANG);
  return absl::OkStatus();
}

bool was_let_run(const NodeConfig& config, const std::string& id) {
  return ::access(VmRelay::mark_path(config.vm_sockets, id).c_str(), F_OK) == 0;
}

migration::Finished run_vm_relay(const migration::MoverStart& start,
                                 migration::DaemonLink& daemon) {
  // Guests wait for it.
  process::take_part();
  auto relay = VmRelay::start(start);
  bool kept = false;
  for (;;) {
    const auto message = daemon.receive(Deadline::in(kLook));
    if (absl::IsDeadlineExceeded(message.status())) continue;
    if (!message.ok()) break;  // the daemon has gone
    migration::MoverToDaemon answer;
    if (relay.ok()) {
      obey(**relay, message->vm_order());
      kept = kept || message->vm_order() == migration::VM_KEEP ||
             message->vm_order() == migration::VM_RELEASE;
      *answer.mutable_vm_state() = (*relay)->state();
    } else {
      answer.mutable_vm_state()->set_error(std::string(message_of(relay.status())));
    }
    if (!daemon.send(answer).ok()) break;
  }
  if (relay.ok() && kept) log_info("migration {}: its daemon has gone", start.migration_id());
  while (relay.ok() && kept && !(*relay)->idle()) absl::SleepFor(kLook);
  return migration::failed(migration::OUTCOME_ROLLED_BACK, absl::CancelledError("over"));
}

}  // namespace godwit::node
