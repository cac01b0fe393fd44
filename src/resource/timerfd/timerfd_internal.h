// The kind that capture.cpp and restore.cpp share the code of.
#ifndef GODWIT_RESOURCE_TIMERFD_TIMERFD_INTERNAL_H_
#define GODWIT_RESOURCE_TIMERFD_TIMERFD_INTERNAL_H_

#include <string>
#include <string_view>
#include <vector>

#include "kernel/proc/timens.h"
#include "resource/resource.h"

namespace godwit::resource {

// The clock that the timer's expiry is kept on: a relative one of CLOCK_REALTIME does not follow
// jumps of the clock (hrtimer_setup).
clockid_t timerfd_base_clock(clockid_t clock, bool absolute);
// Now on the capsule's clock. We are outside of its time namespace.
int64_t capsule_now_ns(clockid_t base, const kernel::TimeOffsets& offsets);
int64_t capsule_offset_ns(clockid_t base, const kernel::TimeOffsets& offsets);

class TimerfdKind final : public FileKind {
 public:
  std::string_view name() const override { return "timerfd"; }
  bool recognise(const OpenFile& file) const override;
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  bool early() const override { return true; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override;
  std::string describe(std::string_view state) const override;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TIMERFD_TIMERFD_INTERNAL_H_
