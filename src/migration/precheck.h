// Whether a machine can take a workload: what the one needs against what the other has. Pure. Each
// reason has a stable code, listed in docs/reasons.md.
#ifndef GODWIT_MIGRATION_PRECHECK_H_
#define GODWIT_MIGRATION_PRECHECK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "migration/mover.pb.h"
#include "migration/precheck.pb.h"

namespace godwit::migration {

// Why it cannot go there; `node` is the destination's name, the object of most reasons.
std::vector<Reason> judge(const Needs& needs, const Machine& machine, const std::string& node);

// The part of it that is about kernel features alone: for the source's own kernel.
std::vector<Reason> judge_kernel(const Needs& needs, const Machine& machine,
                                 const std::string& node);

// The destination's clock, read between `asked_ns` and `answered_ns` by ours. Empty: it may be
// right. A warning: CLOCK_REALTIME jumps for the program.
std::vector<Reason> judge_clock(int64_t asked_ns, int64_t answered_ns, int64_t there_ns,
                                const std::string& node);

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_PRECHECK_H_
