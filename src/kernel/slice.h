// How long a thread may run before others have their turn, of the fair scheduler.
//
// sched_setattr(2): since Linux 6.12 `sched_runtime` of SCHED_OTHER and SCHED_BATCH is the thread's
// slice, 0.1 to 100 ms; earlier kernels pass over it. A thread that wakes and has a shorter slice
// goes before one that runs (PREEMPT_SHORT, kernel/sched/features.h); with equal slices it waits
// for that one's to end, some 3 ms. Shares of the CPU stay as they are. Threads and processes made
// later inherit it.
#ifndef GODWIT_KERNEL_SLICE_H_
#define GODWIT_KERNEL_SLICE_H_

#include <sys/types.h>

#include "absl/time/time.h"

namespace godwit::kernel {

// Of thread `tid`, 0: the caller. Only speed is at stake: what the kernel refuses stays as it is,
// and a thread of another policy is left alone. Returns the one before; zero: not known.
absl::Duration set_slice(pid_t tid, absl::Duration slice);

// What a thread has that nobody gave one; zero: not known. It depends on the number of CPUs.
absl::Duration default_slice();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_SLICE_H_
