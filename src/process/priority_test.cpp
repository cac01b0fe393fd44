#include "process/priority.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/syscalls.h"
#include "process/background.h"

namespace godwit::process {
namespace {

int nice_of(pid_t tid) { return ::getpriority(PRIO_PROCESS, static_cast<id_t>(tid)); }

cpu_set_t cpus_of_this_thread() {
  cpu_set_t set;
  ::sched_getaffinity(0, sizeof set, &set);
  return set;
}

// What a mover sees, in a process of its own: 0 when all was as it should be.
int in_a_mover() {
  ::setsid();
  const bool grouped = kernel::read_file("/proc/self/autogroup", 128).ok();
  const auto session = [&] {
    const auto text = kernel::read_file("/proc/self/autogroup", 128);
    return text.ok() ? parse_session_nice(*text).value_or(100) : 100;
  };
  const bool slices = kernel::default_slice() != absl::ZeroDuration();
  give_way();
  if (nice_of(0) != kRoundsNice) return 1;
  if (grouped && session() != kRoundsNice) return 2;
  if (slices && kernel::set_slice(0, kRoundsSlice) != kRoundsSlice) return 3;
  const cpu_set_t everywhere = cpus_of_this_thread();
  Background helper;
  int helper_nice = 100;
  cpu_set_t helper_cpus;
  const auto look = [&] {
    helper.start([&] {
      helper_nice = nice_of(0);
      helper_cpus = cpus_of_this_thread();
      return absl::OkStatus();
    });
    helper.wait().IgnoreError();
  };
  {
    const Hurry hurry(true);
    helper.keep_off(hurry.cpu);
    if (nice_of(0) != kFreezeNice) return 4;
    if (grouped && session() != kFreezeNice) return 5;
    if (slices && kernel::set_slice(0, kFreezeSlice) != kFreezeSlice) return 6;
    look();
    if (helper_nice != kFreezeNice) return 7;
    if (CPU_COUNT(&everywhere) > 1) {
      const cpu_set_t own = cpus_of_this_thread();
      cpu_set_t both;
      CPU_AND(&both, &own, &helper_cpus);
      if (CPU_COUNT(&own) != 1 || CPU_COUNT(&both) != 0) return 8;
    }
  }
  if (nice_of(0) != kRoundsNice) return 9;
  if (grouped && session() != kRoundsNice) return 10;
  if (slices && kernel::set_slice(0, kRoundsSlice) != kRoundsSlice) return 11;
  const cpu_set_t after = cpus_of_this_thread();
  if (!CPU_EQUAL(&everywhere, &after)) return 12;
  const Hurry without_rounds(false);
  const cpu_set_t meanwhile = cpus_of_this_thread();
  return nice_of(0) == kFreezeNice && CPU_EQUAL(&everywhere, &meanwhile) ? 0 : 13;
}

TEST(PriorityTest, AMoverGivesWayButInTheFreeze) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs CAP_SYS_NICE";
  const pid_t child = ::fork();
  if (child == 0) ::_exit(in_a_mover());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "step " << WEXITSTATUS(status);
}

TEST(PriorityTest, ReadsANiceValueOfASession) {
  EXPECT_EQ(*parse_session_nice("/autogroup-25 nice 10\n"), 10);
  EXPECT_EQ(*parse_session_nice("/autogroup-4 nice -7"), -7);
  EXPECT_FALSE(parse_session_nice("").ok());
  EXPECT_FALSE(parse_session_nice("/autogroup-4 nice ").ok());
  EXPECT_FALSE(parse_session_nice("nice 3").ok());
}

}  // namespace
}  // namespace godwit::process
