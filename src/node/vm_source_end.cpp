// How a virtual machine's migration ends at its source.
#include <grpcpp/client_context.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "node/machine.h"
#include "node/node.h"
#include "node/vm_source.h"
#include "node/vms.h"

namespace godwit::node {

// All connections at once, as when the daemon dies: QEMU and libvirt give up by themselves. They
// are not asked to before: a job of libvirt 9.0 that is aborted and loses a mirror's connection
// while it ends that mirror waits for ever, with the guest standing still (2 of 4).
void VmMigration::cut() {
  if (relay_ != nullptr) relay_->order(migration::VM_CUT);
  if (switch_call_ != nullptr) switch_call_->TryCancel();
  if (switchover_.joinable()) switchover_.join();
  if (libvirt_.joinable()) libvirt_.join();
  watch_.reset();
}

absl::StatusOr<api::MigrateResult> VmMigration::conclude(const absl::Status& moved) {
  const bool refused = !reasons_.empty();
  if (relay_ != nullptr) statistics_.set_bytes_wire(relay_->look().bytes());
  statistics_.set_id(entry_.id());
  statistics_.set_finished_unix_ns(clock_ns(CLOCK_REALTIME));
  statistics_.set_total_ns((switched_ns_ != 0 ? switched_ns_ : monotonic_ns()) - begun_ns_);
  if (stopped_ns_ != 0)
    statistics_.set_freeze_ns((switched_ns_ != 0 ? switched_ns_ : monotonic_ns()) - stopped_ns_);
  if (post_copy_ && (!moved.ok() || !pages_there_)) return conclude_post_copy(moved);
  cut();
  relay_.reset();
  if (moved.ok() && !refused) {
    api::MigrateResult moved_result = result("moved", entry_.peer());
    const absl::Status recorded =
        record_figures(node_.records(), entry_.service(), moved_result.statistics());
    if (!recorded.ok())
      log_warning("recording the figures of migration {}: {}", entry_.id(), message_of(recorded));
    // Ending it takes QEMU a second, for which nobody waits.
    auto hold = std::make_shared<Busy::Hold>(std::move(hold_));
    node_.tasks().run([&node = node_, entry = entry_, hold] {
      node.keep_trying(
              fmt::format("taking {} down after migration {}", entry.service(), entry.id()),
              [&] { return node.vms().settle_source(entry).status(); })
          .IgnoreError();
      hold->release();
    });
    return moved_result;
  }
  const auto owner = node_.vms().settle_source(entry_);
  if (!owner.ok()) {
    if (!node_.stopping()) node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
    return owner.status();
  }
  if (refused) return result("refused", *owner);
  api::MigrateResult back = result(*owner == node_.config().name ? "rolled_back" : "moved", *owner);
  back.set_error(std::string(message_of(moved)));
  return back;
}

// QEMU's connection stays, for the pages. So the
// relay is left to whoever settles it.
absl::StatusOr<api::MigrateResult> VmMigration::conclude_post_copy(const absl::Status& moved) {
  relay_->leave();
  if (switch_call_ != nullptr) switch_call_->TryCancel();
  if (switchover_.joinable()) switchover_.join();
  absl::StatusOr<std::string> owner = entry_.peer();
  if (!moved.ok() && !node_.stopping()) owner = node_.vms().settle_source(entry_);
  const bool later = moved.ok() || !owner.ok();
  if (later && !node_.stopping()) node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
  watch_.reset();
  if (later) {
    std::lock_guard held(libvirt_call_->mutex);
    libvirt_call_->whose = nullptr;
    libvirt_.detach();
  } else if (libvirt_.joinable()) {
    libvirt_.join();
  }
  if (moved.ok()) return result("moved", *owner);
  GW_RETURN_IF_ERROR(owner.status());
  api::MigrateResult back = result(*owner == node_.config().name ? "rolled_back" : "moved", *owner);
  back.set_error(std::string(message_of(moved)));
  return back;
}

api::MigrateResult VmMigration::result(const std::string& outcome, const std::string& owner) {
  api::MigrateResult result;
  result.set_name(entry_.service());
  result.set_node(owner);
  result.set_outcome(outcome);
  statistics_.set_source(node_.config().name);
  statistics_.set_destination(entry_.peer());
  statistics_.set_outcome(outcome);
  *result.mutable_statistics() = statistics_;
  for (const migration::Reason& each : reasons_) *result.add_refusals() = to_refusal(each);
  return result;
}

}  // namespace godwit::node
