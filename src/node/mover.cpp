#include "node/mover.h"

#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>

#include <memory>

#include "base/log.h"
#include "base/status.h"
#include "migration/daemon_link.h"
#include "migration/peer.h"
#include "migration/session.h"
#include "node/lazy_image.h"
#include "node/vm_relay_process.h"
#include "node/workload_replica.h"
#include "node/workload_source.h"
#include "process/left_over.h"
#include "process/priority.h"

namespace godwit::node {
namespace {

using migration::Finished;
using migration::MoverStart;

// A packet to the daemon has a limit; what is left out is not compared.
constexpr size_t kMaxUsedFiles = size_t{96} << 10;

Finished run_precheck(ServiceSource& workload) {
  std::vector<migration::Reason> reasons;
  const absl::Status checked = workload.precheck(reasons);
  if (!checked.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, checked);
  const auto estimate = workload.estimate();
  if (!estimate.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, estimate.status());
  Finished finished;
  // What is refused may well have files that cannot be told.
  if (reasons.empty()) {
    const auto files = workload.used_files();
    if (!files.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, files.status());
    size_t bytes = 0;
    for (const std::string& state : *files)
      if ((bytes += state.size()) <= kMaxUsedFiles) finished.add_used_files(state);
  }
  finished.set_outcome(reasons.empty() ? migration::OUTCOME_ROLLED_BACK
                                       : migration::OUTCOME_REFUSED);
  for (const migration::Reason& reason : reasons) *finished.add_reasons() = reason;
  workload.describe(*finished.mutable_statistics());
  finished.mutable_statistics()->set_pages_zero(estimate->zero_pages);
  return finished;
}

Finished run_withdraw(const capsule::NodePaths& node, const std::string& service) {
  const absl::Status done = [&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, capsule::Capsule::open(node, service));
    GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
    if (info.state() != capsule::CAPSULE_RUNNING) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const resource::PidTranslator translate,
                        resource::PidTranslator::of(HostPid{info.init_pid()}));
    GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, capsule.work_pids());
    return process::remove_left_over(members, translate);
  }();
  return migration::failed(migration::OUTCOME_ROLLED_BACK, done);
}

Finished run(const MoverStart& start, migration::DaemonLink& daemon) {
  const capsule::NodePaths node{start.state_dir(), start.node()};
  const auto bytes_per_s = static_cast<uint64_t>(start.bandwidth_bytes_per_s());
  switch (start.role()) {
    case migration::ROLE_SOURCE:
    case migration::ROLE_CHECKPOINT:
    case migration::ROLE_PRECHECK: {
      auto source = ServiceSource::open(node, start.service(), bytes_per_s, start.bandwidth_file());
      if (!source.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, source.status());
      if (start.throttle()) (*source)->may_throttle();
      if (start.role() == migration::ROLE_PRECHECK) return run_precheck(**source);
      (*source)->on_hold([&daemon](int fd) { daemon.hold_fd(fd); });
      (*source)->on_userfaultfd([&daemon](HostPid pid, int fd) { daemon.userfaultfd(pid, fd); });
      if (start.role() == migration::ROLE_CHECKPOINT) (*source)->carry_spec();
      if (start.with_files()) (*source)->carry_all_files();
      if (start.verify()) (*source)->verify_pages();
      if (start.role() == migration::ROLE_SOURCE && start.stream_version() < stream::kReadsPrograms)
        (*source)->replica_keeps_programs();
      // The daemon has looked at the name.
      (*source)->compress_pages(
          pages::compress_named(start.compress()).value_or(pages::Compress::kNone));
      return start.role() == migration::ROLE_SOURCE
                 ? migration::run_source(start, **source, daemon)
                 : migration::run_checkpoint(start, **source, daemon);
    }
    case migration::ROLE_DESTINATION:
    case migration::ROLE_RESTORE: {
      resource::CloneAddresses clone;
      for (const auto& change : start.address_changes()) {
        const absl::Status added = clone.add(change.from(), change.to());
        if (!added.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, added);
      }
      auto replica = ServiceReplica::open(node, start.service(), std::move(clone));
      if (!replica.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, replica.status());
      if (start.role() == migration::ROLE_DESTINATION) {
        daemon.hold_fd((*replica)->hold_fd());
        return migration::run_destination(start, **replica, daemon);
      }
      if (!start.lazy()) return migration::run_restore(start, **replica, daemon, nullptr);
      auto image = LazyImage::open(start.file(), bytes_per_s);
      if (!image.ok()) return migration::failed(migration::OUTCOME_ROLLED_BACK, image.status());
      return migration::run_restore(start, **replica, daemon, image->get());
    }
    case migration::ROLE_SERVE_PAGES: {
      if (!start.file().empty()) {
        auto image = LazyImage::open_again(start.file(), start.file_identity(), bytes_per_s);
        if (!image.ok()) return migration::failed(migration::OUTCOME_PAGES_HERE, image.status());
        const auto serve = [&](tls::Channel& faults, tls::Channel& push,
                               const migration::PagesTold& told) {
          return (*image)->serve(faults, push, told);
        };
        return migration::run_serve_pages(start, serve, daemon);
      }
      auto source = ServiceSource::open(node, start.service(), bytes_per_s, start.bandwidth_file());
      if (!source.ok()) return migration::failed(migration::OUTCOME_PAGES_HERE, source.status());
      const auto serve = [&](tls::Channel& faults, tls::Channel& push,
                             const migration::PagesTold& told) {
        return (*source)->serve_pages(faults, push, told);
      };
      return migration::run_serve_pages(start, serve, daemon);
    }
    case migration::ROLE_VM_SOURCE:
    case migration::ROLE_VM_DESTINATION:
      return run_vm_relay(start, daemon);
    case migration::ROLE_WITHDRAW:
      return run_withdraw(node, start.service());
    default:
      return migration::failed(
          migration::OUTCOME_ROLLED_BACK,
          make_error(absl::StatusCode::kInvalidArgument, "a role unknown to this mover"));
  }
}

// A first touch of memory costs as much as a system call, and the freeze has no time for it: one
// heap for this thread and one for all others (mallopt(3)), which grow ahead and give nothing back.
void keep_memory() {
  ::mallopt(M_ARENA_MAX, 2);
  // The most that is taken; unless set it would stay at 128 KiB once one of the others is.
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TOP_PAD, 4 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 32 << 20);
}

// A spare one waits as long as it takes (node/spare_mover.h); an error: its daemon has gone.
absl::StatusOr<migration::DaemonToMover> first_message(migration::DaemonLink& daemon) {
  while (true) {
    auto message = daemon.receive(Deadline::in(absl::Hours(24)));
    if (!absl::IsDeadlineExceeded(message.status())) return message;
  }
}

}  // namespace

int mover_main(int, char**) {
  keep_memory();
  // A restore too: other services run beside it.
  process::give_way();
  ::signal(SIGPIPE, SIG_IGN);
  // In every thread: who waits for a tracee's stop waits for this (tracee/ptrace_calls.cpp).
  sigset_t child_stopped;
  ::sigemptyset(&child_stopped);
  ::sigaddset(&child_stopped, SIGCHLD);
  ::pthread_sigmask(SIG_BLOCK, &child_stopped, nullptr);
  migration::DaemonLink daemon{UniqueFd(3), UniqueFd(4)};
  migration::prepare_proofs();
  // What ps(1) calls it: all that can be done without a role is done.
  ::prctl(PR_SET_NAME, "godwit-spare");
  const auto first = first_message(daemon);
  if (absl::IsUnavailable(first.status())) return 0;
  if (!first.ok() || first->message_case() != migration::DaemonToMover::kStart) return 2;
  const MoverStart& start = first->start();
  ::prctl(PR_SET_NAME, "godwit-mover");
  init_logging(fmt::format("mover {} {}", start.service(), start.node()));
  migration::MoverToDaemon last;
  *last.mutable_finished() = run(start, daemon);
  return daemon.send(last).ok() ? 0 : 1;
}

}  // namespace godwit::node
