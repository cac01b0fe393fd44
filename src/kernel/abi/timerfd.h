// <linux/timerfd.h> (TFD_IOC_SET_TICKS: Linux 3.17, CONFIG_CHECKPOINT_RESTORE). That header cannot
// be included beside <fcntl.h>, so what glibc's <sys/timerfd.h> lacks is defined here.
#ifndef GODWIT_KERNEL_ABI_TIMERFD_H_
#define GODWIT_KERNEL_ABI_TIMERFD_H_

#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <cstdint>

namespace godwit::kernel::abi {

// Sets the number of expirations that were not read yet. 0 is refused (EINVAL).
inline constexpr unsigned long kTfdIocSetTicks = _IOW('T', 0, uint64_t);
static_assert(kTfdIocSetTicks == 0x40085400);
static_assert(TFD_TIMER_ABSTIME == 1 && TFD_TIMER_CANCEL_ON_SET == 2);

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_TIMERFD_H_
