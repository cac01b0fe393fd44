// Timers made by timer_create(2).
#ifndef GODWIT_RESOURCE_POSIX_TIMERS_POSIX_TIMERS_H_
#define GODWIT_RESOURCE_POSIX_TIMERS_POSIX_TIMERS_H_

#include "resource/resource.h"

namespace godwit::resource {

// Same ids; what was left is left. The overrun count of an expiry whose signal was delivered
// already cannot be set and is 0 afterwards.
class PosixTimersResource final : public TaskResource {
 public:
  std::string_view name() const override { return "posix_timers"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override;
  absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                tracee::Batch& batch) const override;
  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override;
};
const TaskResource& posix_timers_resource();

// How a husk's timers get their ids: kGiven needs Linux 6.15.
enum class TimerIds { kInvalid, kGiven, kCounted };
absl::StatusOr<TaskResource::Check> restore_posix_timers(std::string_view state,
                                                         const TaskView& husk, TimerIds ids,
                                                         tracee::Batch& batch);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_POSIX_TIMERS_POSIX_TIMERS_H_
