// How long a thread may run before others have their turn, of the fair scheduler.
//
// sched_setattr(2): since Linux 6.12 `sched_runtime` of SCHED_OTHER and SCHED_BATCH is the thread's
// slice, 0.1 to 100 ms; earlier kernels pass over it. A thread that wakes and has a shorter slice
// goes before one that runs (PREEMPT_SHORT, kernel/sched/features.h); with equal slices it waits
// for that one's to end, some 3 ms. Shares of the CPU stay as they are. Threads and processes made
// later inherit it.
#ifndef GODWIT_KERNEL_SLICE_H_
#define GODWIT_KERNEL_SLICE_H_

#include <sched.h>
#include <sys/types.h>

#include "absl/time/time.h"

namespace godwit::kernel {

// Of thread `tid`, 0: the caller. Only speed is at stake: what the kernel refuses stays as it is,
// and a thread of another policy is left alone. Returns the one before; zero: not known.
absl::Duration set_slice(pid_t tid, absl::Duration slice);

// For loops of a thread that gives way, a fraction of a millisecond apart. Who wakes goes first
// only if it is the best choice at that very moment (check_preempt_wakeup_fair(),
// kernel/sched/fair.c): one that is eligible 10 us later, or stands behind a third, waits for the
// next tick, 4 ms at 250 Hz, and often for the one after. The call makes the choice anew; it costs
// less than 1 us where nobody waits. Measured, a move of 1 GiB: the longest wait of a client 3.6
// ms, 5.6 without it, and the move as long.
inline void let_others_run() { ::sched_yield(); }

// What a thread has that nobody gave one; zero: not known. It depends on the number of CPUs.
absl::Duration default_slice();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_SLICE_H_
