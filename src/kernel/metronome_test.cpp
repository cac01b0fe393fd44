#include "kernel/metronome.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <set>

#include "base/clock.h"

namespace godwit::kernel {
namespace {

constexpr int64_t kSoon_ns = 10'000'000'000;

// CPUs that this process's real-time threads are bound to.
std::multiset<int> real_time_cpus() {
  std::multiset<int> found;
  DIR* folder = ::opendir("/proc/self/task");
  while (const dirent* each = ::readdir(folder)) {
    const pid_t tid = std::atoi(each->d_name);
    if (tid == 0 || (::sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK) != SCHED_FIFO) continue;
    cpu_set_t cpus;
    if (::sched_getaffinity(tid, sizeof cpus, &cpus) != 0 || CPU_COUNT(&cpus) != 1) continue;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &cpus)) found.insert(cpu);
  }
  ::closedir(folder);
  return found;
}

template <typename Condition>
bool comes_true(Condition condition) {
  const int64_t until = monotonic_ns() + kSoon_ns;
  const timespec moment{0, 1'000'000};
  while (!condition()) {
    if (monotonic_ns() > until) return false;
    ::nanosleep(&moment, nullptr);
  }
  return true;
}

bool may_be_real_time() {
  sched_param lowest{};
  lowest.sched_priority = 1;
  if (::sched_setscheduler(0, SCHED_FIFO, &lowest) != 0) return false;
  lowest.sched_priority = 0;
  return ::sched_setscheduler(0, SCHED_OTHER, &lowest) == 0;
}

class MetronomeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!may_be_real_time()) GTEST_SKIP() << "no real-time policy is allowed here";
    cpu_set_t cpus;
    ASSERT_EQ(::sched_getaffinity(0, sizeof cpus, &cpus), 0);
    cpus_ = CPU_COUNT(&cpus);
    if (cpus_ > Metronome::kMostCpus) GTEST_SKIP() << "it does nothing with so many CPUs";
  }
  int cpus_ = 0;
};

TEST_F(MetronomeTest, HasAThreadForEachCpuAndLeavesNone) {
  {
    const Metronome metronome;
    EXPECT_EQ(metronome.threads(), cpus_);
    EXPECT_TRUE(comes_true([&] {
      const auto cpus = real_time_cpus();
      return static_cast<int>(cpus.size()) == cpus_ &&
             static_cast<int>(std::set<int>(cpus.begin(), cpus.end()).size()) == cpus_;
    }));
  }
  EXPECT_TRUE(real_time_cpus().empty());
}

TEST_F(MetronomeTest, BeatsWhileAnyoneWantsIt) {
  Metronome metronome;
  const timespec while_ago{0, 20'000'000};
  ::nanosleep(&while_ago, nullptr);
  EXPECT_EQ(metronome.beats(), 0U);
  Metronome::Beating first(metronome);
  Metronome::Beating second(metronome);
  Metronome::Beating moved = std::move(first);
  first.end();
  second.end();
  EXPECT_TRUE(comes_true([&] { return metronome.beats() > 100; }));
  moved.end();
  // Each may have one under way.
  ::nanosleep(&while_ago, nullptr);
  const uint64_t last = metronome.beats();
  ::nanosleep(&while_ago, nullptr);
  EXPECT_LE(metronome.beats(), last + static_cast<uint64_t>(cpus_));
}

TEST_F(MetronomeTest, StopsWithABeatUnderWay) {
  Metronome metronome;
  const Metronome::Beating beating(metronome);
  EXPECT_TRUE(comes_true([&] { return metronome.beats() > 0; }));
  // `beating` is destroyed first, the metronome with its threads asleep or at a beat.
}

}  // namespace
}  // namespace godwit::kernel
