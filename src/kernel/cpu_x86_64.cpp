// CPUID and XGETBV: Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E.
#include <cpuid.h>

#include <array>
#include <string_view>

#include "kernel/cpu.h"

namespace godwit::kernel {
namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

struct Bit {
  uint32_t leaf;
  uint32_t subleaf;
  Register in;
  unsigned bit;
  std::string_view name;
};

constexpr Bit kBits[] = {
    {1, 0, kEdx, 0, "fpu"},
    {1, 0, kEdx, 4, "tsc"},
    {1, 0, kEdx, 8, "cx8"},
    {1, 0, kEdx, 15, "cmov"},
    {1, 0, kEdx, 19, "clflush"},
    {1, 0, kEdx, 23, "mmx"},
    {1, 0, kEdx, 24, "fxsr"},
    {1, 0, kEdx, 25, "sse"},
    {1, 0, kEdx, 26, "sse2"},
    {1, 0, kEcx, 0, "pni"},
    {1, 0, kEcx, 1, "pclmulqdq"},
    {1, 0, kEcx, 9, "ssse3"},
    {1, 0, kEcx, 12, "fma"},
    {1, 0, kEcx, 13, "cx16"},
    {1, 0, kEcx, 19, "sse4_1"},
    {1, 0, kEcx, 20, "sse4_2"},
    {1, 0, kEcx, 22, "movbe"},
    {1, 0, kEcx, 23, "popcnt"},
    {1, 0, kEcx, 25, "aes"},
    {1, 0, kEcx, 26, "xsave"},
    {1, 0, kEcx, 27, "osxsave"},
    {1, 0, kEcx, 28, "avx"},
    {1, 0, kEcx, 29, "f16c"},
    {1, 0, kEcx, 30, "rdrand"},
    {7, 0, kEbx, 0, "fsgsbase"},
    {7, 0, kEbx, 3, "bmi1"},
    {7, 0, kEbx, 4, "hle"},
    {7, 0, kEbx, 5, "avx2"},
    {7, 0, kEbx, 8, "bmi2"},
    {7, 0, kEbx, 9, "erms"},
    {7, 0, kEbx, 11, "rtm"},
    {7, 0, kEbx, 14, "mpx"},
    {7, 0, kEbx, 16, "avx512f"},
    {7, 0, kEbx, 17, "avx512dq"},
    {7, 0, kEbx, 18, "rdseed"},
    {7, 0, kEbx, 19, "adx"},
    {7, 0, kEbx, 21, "avx512ifma"},
    {7, 0, kEbx, 23, "clflushopt"},
    {7, 0, kEbx, 24, "clwb"},
    {7, 0, kEbx, 26, "avx512pf"},
    {7, 0, kEbx, 27, "avx512er"},
    {7, 0, kEbx, 28, "avx512cd"},
    {7, 0, kEbx, 29, "sha_ni"},
    {7, 0, kEbx, 30, "avx512bw"},
    {7, 0, kEbx, 31, "avx512vl"},
    {7, 0, kEcx, 1, "avx512vbmi"},
    {7, 0, kEcx, 4, "ospke"},
    {7, 0, kEcx, 5, "waitpkg"},
    {7, 0, kEcx, 6, "avx512_vbmi2"},
    {7, 0, kEcx, 8, "gfni"},
    {7, 0, kEcx, 9, "vaes"},
    {7, 0, kEcx, 10, "vpclmulqdq"},
    {7, 0, kEcx, 11, "avx512_vnni"},
    {7, 0, kEcx, 12, "avx512_bitalg"},
    {7, 0, kEcx, 14, "avx512_vpopcntdq"},
    {7, 0, kEcx, 22, "rdpid"},
    {7, 0, kEcx, 25, "cldemote"},
    {7, 0, kEcx, 27, "movdiri"},
    {7, 0, kEcx, 28, "movdir64b"},
    {7, 0, kEdx, 2, "avx512_4vnniw"},
    {7, 0, kEdx, 3, "avx512_4fmaps"},
    {7, 0, kEdx, 4, "fsrm"},
    {7, 0, kEdx, 8, "avx512_vp2intersect"},
    {7, 0, kEdx, 14, "serialize"},
    {7, 0, kEdx, 22, "amx_bf16"},
    {7, 0, kEdx, 23, "avx512_fp16"},
    {7, 0, kEdx, 24, "amx_tile"},
    {7, 0, kEdx, 25, "amx_int8"},
    {7, 1, kEax, 4, "avx_vnni"},
    {7, 1, kEax, 5, "avx512_bf16"},
    {7, 1, kEax, 10, "fzrm"},
    {7, 1, kEax, 11, "fsrs"},
    {7, 1, kEax, 12, "fsrc"},
    {7, 1, kEax, 21, "amx_fp16"},
    {7, 1, kEax, 23, "avx_ifma"},
    {7, 1, kEdx, 4, "avx_vnni_int8"},
    {7, 1, kEdx, 5, "avx_ne_convert"},
    {0xd, 1, kEax, 0, "xsaveopt"},
    {0xd, 1, kEax, 1, "xsavec"},
    {0xd, 1, kEax, 2, "xgetbv1"},
    {0x80000001, 0, kEcx, 0, "lahf_lm"},
    {0x80000001, 0, kEcx, 5, "abm"},
    {0x80000001, 0, kEcx, 6, "sse4a"},
    {0x80000001, 0, kEcx, 8, "3dnowprefetch"},
    {0x80000001, 0, kEcx, 11, "xop"},
    {0x80000001, 0, kEcx, 16, "fma4"},
    {0x80000001, 0, kEcx, 21, "tbm"},
    {0x80000001, 0, kEcx, 29, "mwaitx"},
    {0x80000001, 0, kEdx, 11, "syscall"},
    {0x80000001, 0, kEdx, 27, "rdtscp"},
    {0x80000001, 0, kEdx, 29, "lm"},
    {0x80000008, 0, kEbx, 0, "clzero"},
    {0x80000008, 0, kEbx, 4, "rdpru"},
};

using Registers = std::array<uint32_t, 4>;

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
  // Fails for a leaf above the highest; so does a subleaf of leaf 7.
  if (__get_cpuid_count(leaf, subleaf, &r[kEax], &r[kEbx], &r[kEcx], &r[kEdx]) == 0) return {};
  if (leaf == 7 && subleaf > 0 && cpuid(7, 0)[kEax] < subleaf) return {};
  return r;
}

uint64_t read_xcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

std::string model_name() {
  std::string name;
  for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf)
    for (const uint32_t word : cpuid(leaf, 0))
      for (unsigned byte = 0; byte < 4; ++byte) {
        const char c = static_cast<char>(word >> (8 * byte));
        if (c >= ' ' && c <= '~' && !(name.empty() && c == ' ')) name += c;
      }
  while (!name.empty() && name.back() == ' ') name.pop_back();
  return name;
}

}  // namespace

CpuFacts read_cpu() {
  CpuFacts facts;
  facts.model = model_name();
  for (const Bit& each : kBits)
    if ((cpuid(each.leaf, each.subleaf).at(each.in) >> each.bit & 1) != 0)
      facts.features.emplace_back(each.name);
  constexpr unsigned kOsxsave = 27;
  if ((cpuid(1, 0)[kEcx] >> kOsxsave & 1) == 0) return facts;
  facts.xfeatures = read_xcr0();
  facts.xsave_bytes = cpuid(0xd, 0)[kEbx];
  return facts;
}

}  // namespace godwit::kernel
