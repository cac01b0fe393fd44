// By which strategy a virtual machine moves, and when it changes.
#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "node/node.h"
#include "node/vm_forecast.h"
#include "node/vm_source.h"

namespace godwit::node {
namespace {

constexpr uint64_t kPageSize = 4096;
constexpr std::chrono::milliseconds kLook{100};

}  // namespace

absl::Status VmMigration::choose_strategy(const std::string& asked) {
  std::string why = cold_ ? "asked for" : "it goes on meanwhile";
  if (!because_.empty()) why = because_;
  const bool post_copy =
      strategy_ == migration::STRATEGY_POSTCOPY || strategy_ == migration::STRATEGY_HYBRID;
  if (post_copy && runs_) GW_RETURN_IF_ERROR(hypervisor_->post_copy_possible());
  may_post_copy_ = post_copy && runs_;
  if (!runs_) {
    why = "it does not run: its definition goes";
  } else if (!cold_) {
    GW_ASSIGN_OR_RETURN(std::optional<migration::Reason> misses,
                        misses_writes(*hypervisor_, domain_));
    if (misses && strategy_ != migration::STRATEGY_AUTO) {
      reasons_.push_back(*std::move(misses));
    } else if (misses) {
      cold_ = true;
      why = "it is emulated, without KVM, and rounds would damage its memory";
    }
  }
  statistics_.set_strategy(cold_ || !runs_ ? "cold" : post_copy ? asked : "precopy");
  statistics_.set_chosen_because(why);
  return absl::OkStatus();
}

void VmMigration::forecast_strategy(const api::MigrateRequest& request) {
  if (strategy_ != migration::STRATEGY_AUTO || cold_ || !runs_) return;
  if (!hypervisor_->post_copy_possible().ok()) return;
  const auto peer = node_.peers().find(entry_.peer());
  if (!peer.ok()) return;  // asking it will say why
  api::MigrateResult predicted;
  predict_vm(node_, *hypervisor_, domain_, request, migration::STRATEGY_AUTO, **peer, predicted);
  const api::MigrationStatistics& figures = predicted.statistics();
  statistics_.set_predicted_downtime_ns(figures.predicted_downtime_ns());
  statistics_.set_predicted_total_ns(figures.predicted_total_ns());
  *statistics_.mutable_forecasts() = figures.forecasts();
  if (figures.strategy() != "hybrid") return;
  may_post_copy_ = true;
  statistics_.set_strategy("hybrid");
  statistics_.set_chosen_because(figures.chosen_because());
}

absl::Status VmMigration::look_at_job(const api::MigrateRequest& request) {
  const auto job = hypervisor_->job(entry_.vm_uuid());
  if (!job.ok() || !job->active) return absl::OkStatus();  // not yet, or not any more
  statistics_.set_rounds(static_cast<uint32_t>(job->rounds));
  statistics_.set_bytes_per_s(job->bytes_per_s);
  // By QEMU's small passes: that figure tells nothing of the link.
  statistics_.set_bandwidth_limited(true);
  statistics_.set_dirty_pages_per_s(job->dirty_bytes_per_s / kPageSize);
  statistics_.set_memory_bytes(job->memory_total);
  api::MigrateProgress progress;
  // While disks are mirrored libvirt has no figures of the memory.
  const bool disks = job->disk_left > 0 && job->memory_total == 0;
  progress.set_phase(disks ? "disks" : "rounds");
  progress.set_strategy(statistics_.strategy());
  progress.set_round(static_cast<uint32_t>(job->rounds));
  progress.set_pages_left((disks ? job->disk_left : job->memory_left) / kPageSize);
  progress.set_pages_total((disks ? job->disk_total : job->memory_total) / kPageSize);
  progress.set_bytes_per_s(job->bytes_per_s);
  progress.set_dirty_pages_per_s(job->dirty_bytes_per_s / kPageSize);
  if (job->bytes_per_s > 0)
    progress.set_time_left_ns(static_cast<int64_t>(static_cast<double>(job->memory_left) * 1e9 /
                                                   static_cast<double>(job->bytes_per_s)));
  on_progress_(progress);
  if (cold_) return absl::OkStatus();
  if (request.max_total_ns() > 0 && monotonic_ns() - begun_ns_ > request.max_total_ns())
    return make_error(absl::StatusCode::kDeadlineExceeded,
                      "it took longer than --max-total while the machine wrote {} MiB/s and the "
                      "link took {} MiB/s",
                      job->dirty_bytes_per_s >> 20, job->bytes_per_s >> 20);
  if (job->memory_total == 0) return absl::OkStatus();
  return heed(
      convergence_->look({job->rounds, job->memory_left, job->bytes_per_s, job->dirty_bytes_per_s}),
      request);
}

absl::Status VmMigration::heed(migration::PassVerdict verdict, const api::MigrateRequest& request) {
  if (verdict == migration::PassVerdict::kGoOn) return absl::OkStatus();
  api::MigrateProgress progress;
  progress.set_phase("rounds");
  progress.set_strategy(statistics_.strategy());
  progress.set_reason(convergence_->reason());
  on_progress_(progress);
  switch (verdict) {
    case migration::PassVerdict::kRaiseDowntime:
      return hypervisor_->set_most_downtime(entry_.vm_uuid(), request.max_downtime_ns());
    case migration::PassVerdict::kPostCopy:
      return turn_to_post_copy();
    default:
      does_not_converge_ = true;
      return make_error(absl::StatusCode::kResourceExhausted,
                        "it does not converge: {}; a longer --max-downtime, more --bandwidth, "
                        "--strategy hybrid or --strategy cold moves it",
                        convergence_->reason());
  }
}

absl::Status VmMigration::turn_to_post_copy() {
  if (post_copy_) return absl::OkStatus();
  FAULT_POINT("node.before_post_copy");
  post_copy_ = true;
  return hypervisor_->start_post_copy(entry_.vm_uuid());
}

// The record says when: the destination changes it.
void VmMigration::follow_pages() {
  const int64_t begun_ns = monotonic_ns();
  pages_there_ = false;
  while (!node_.stopping() && !user_cancelled_()) {
    const auto now = node_.records().service(entry_.service());
    if (absl::IsNotFound(now.status()) ||
        (now.ok() && now->record.pages_at() != node_.config().name)) {
      pages_there_ = true;
      break;
    }
    api::MigrateProgress progress;
    progress.set_phase("post-copy");
    progress.set_strategy(statistics_.strategy());
    const auto job = hypervisor_->job(entry_.vm_uuid());
    if (job.ok()) {
      progress.set_pages_left(job->memory_left / kPageSize);
      progress.set_pages_total(job->memory_total / kPageSize);
      progress.set_bytes_per_s(job->bytes_per_s);
    }
    if (relay_->look().broken())
      progress.set_reason(fmt::format("no connection to {}; it waits for one", entry_.peer()));
    on_progress_(progress);
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLook);
  }
  statistics_.set_post_copy_ns(monotonic_ns() - begun_ns);
}

}  // namespace godwit::node
