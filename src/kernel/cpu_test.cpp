#include "kernel/cpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>

#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

std::string line_of_cpuinfo(const std::string& name) {
  std::istringstream text(*read_file("/proc/cpuinfo"));
  for (std::string line; std::getline(text, line);)
    if (line.starts_with(name)) return line.substr(line.find(':') + 2);
  return "";
}

TEST(CpuTest, NamesAreTheKernels) {
  const CpuFacts facts = read_cpu();
  std::istringstream text(line_of_cpuinfo("flags"));
  std::set<std::string> flags;
  for (std::string flag; text >> flag;) flags.insert(flag);
  // The kernel shows no flag that it has switched off or that says the same as another.
  std::vector<std::string> unknown;
  for (const std::string& each : facts.features)
    if (!flags.contains(each)) unknown.push_back(each);
  for (const char* silent : {"osxsave", "fzrm", "fsrs", "fsrc", "mpx", "hle", "rtm"})
    std::erase(unknown, silent);
  EXPECT_THAT(unknown, ::testing::IsEmpty());
  EXPECT_THAT(facts.features, ::testing::Contains("sse2"));
  EXPECT_EQ(facts.model, line_of_cpuinfo("model name"));
}

TEST(CpuTest, NamesAppearOnce) {
  const CpuFacts facts = read_cpu();
  EXPECT_EQ(std::set<std::string>(facts.features.begin(), facts.features.end()).size(),
            facts.features.size());
}

TEST(CpuTest, StateIsAsLargeAsItsComponents) {
  const CpuFacts facts = read_cpu();
  EXPECT_EQ(facts.xfeatures & 3, 3u);  // x87 and SSE are always there
  EXPECT_GE(facts.xsave_bytes, 576u);
  if ((facts.xfeatures & 4) != 0) {
    EXPECT_GE(facts.xsave_bytes, 832u);  // AVX
  }
}

}  // namespace
}  // namespace godwit::kernel
