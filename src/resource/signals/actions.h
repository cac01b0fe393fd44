// The kernel's struct sigaction (include/linux/signal_types.h), which rt_sigaction(2) takes:
// glibc's has another order.
#ifndef GODWIT_RESOURCE_SIGNALS_ACTIONS_H_
#define GODWIT_RESOURCE_SIGNALS_ACTIONS_H_

#include <signal.h>

#include <cstddef>
#include <cstdint>

namespace godwit::resource {

struct KernelSigaction {
  uint64_t handler;
  uint64_t flags;
  uint64_t restorer;
  uint64_t mask;
};
static_assert(sizeof(KernelSigaction) == 32);

constexpr int kSignals = 64;             // _NSIG of x86
constexpr size_t kKernelSigsetSize = 8;  // the last argument of the rt_ calls
constexpr uint64_t bit_of(int signal) { return uint64_t{1} << (signal - 1); }
// sigaction(2): cannot be caught or ignored.
constexpr bool changeable(int signal) { return signal != SIGKILL && signal != SIGSTOP; }

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SIGNALS_ACTIONS_H_
