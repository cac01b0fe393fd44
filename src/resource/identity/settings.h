// prctl(2) settings newer than the system's headers, and what both directions name.
#ifndef GODWIT_RESOURCE_IDENTITY_SETTINGS_H_
#define GODWIT_RESOURCE_IDENTITY_SETTINGS_H_

#include <sys/prctl.h>

#include <array>
#include <cstdint>

namespace godwit::resource {

constexpr int kPrSetMdwe = 65;  // PR_SET_MDWE, Linux 6.3
constexpr int kPrGetMdwe = 66;
constexpr int kPrSetMemoryMerge = 67;  // PR_SET_MEMORY_MERGE, Linux 6.4
constexpr int kPrGetMemoryMerge = 68;
constexpr int kArchGetCpuid = 0x1011;  // arch_prctl(2), asm/prctl.h
constexpr int kArchSetCpuid = 0x1012;
constexpr uint64_t kPersonalityQuery = 0xffffffff;  // personality(2): changes nothing
constexpr size_t kNameSize = 16;                    // TASK_COMM_LEN

// The bit of PR_GET_SPECULATION_CTRL's result that says "can be set by prctl".
constexpr std::array<int, 3> kSpeculation = {PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH,
                                             PR_SPEC_L1D_FLUSH};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_IDENTITY_SETTINGS_H_
