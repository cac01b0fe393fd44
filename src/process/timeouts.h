// How long the engine waits for a target before it calls it lost.
#ifndef GODWIT_PROCESS_TIMEOUTS_H_
#define GODWIT_PROCESS_TIMEOUTS_H_

#include "absl/time/time.h"

namespace godwit::process {

// A stopped task of ours answers in microseconds; only a machine in great trouble needs seconds.
inline constexpr absl::Duration kTargetTimeout = absl::Seconds(10);

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_TIMEOUTS_H_
