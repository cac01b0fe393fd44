// What a program can find out about the CPU by itself, and may rely on for as long as it runs: the
// instructions (CPUID needs no right, and libraries choose their code by it once), and the size and
// contents of the register state that XSAVE writes, which is in signal frames on its stacks.
#ifndef GODWIT_KERNEL_CPU_H_
#define GODWIT_KERNEL_CPU_H_

#include <cstdint>
#include <string>
#include <vector>

namespace godwit::kernel {

struct CpuFacts {
  std::string model;  // "AMD EPYC 7B13"
  // Named as in /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h); only those that a program in
  // user space can use.
  std::vector<std::string> features;
  uint64_t xfeatures = 0;    // XCR0: the components of state that are in use
  uint32_t xsave_bytes = 0;  // of the standard form with those components
};

// Of the CPU that runs this; all of a machine are alike.
CpuFacts read_cpu();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_CPU_H_
