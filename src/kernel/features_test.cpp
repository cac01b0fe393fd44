#include "kernel/features.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <set>
#include <string>

#include "kernel/proc/tasks.h"

namespace godwit::kernel {
namespace {

TEST(Features, EachIsPresentOrSaysWhatIsMissing) {
  const Features features = probe_features();
  std::set<std::string_view> names;
  for (const auto& [name, feature] : features.all()) {
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(feature->present, feature->missing.empty()) << name << ": " << feature->missing;
    if (!feature->present) std::printf("not here: %s: %s\n", name.data(), feature->missing.c_str());
  }
  EXPECT_EQ(names.size(), 16U);
  EXPECT_TRUE(!features.uffd_wp_async || features.pagemap_scan);
}

TEST(Features, ProbingLeavesNothingBehind) {
  const HostPid self{::getpid()};
  const auto descriptors = read_descriptors(self);
  const auto children = read_children(self, self);
  ASSERT_TRUE(descriptors.ok() && children.ok());
  const Features features = probe_features();
  EXPECT_EQ(read_descriptors(self)->size(), descriptors->size());
  EXPECT_EQ(*read_children(self, self), *children);
  struct stat st {};
  const std::string probe = features.cgroup2_mount + "/godwit-probe-" + std::to_string(::getpid());
  EXPECT_NE(::stat(probe.c_str(), &st), 0);
}

}  // namespace
}  // namespace godwit::kernel
