#include "resource/identity/identity.h"

#include <gtest/gtest.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "kernel/syscalls.h"
#include "resource/identity/identity.pb.h"
#include "resource/identity/settings.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

constexpr char kName[] = "we (ird)\n\xff na";

void must(bool ok) {
  if (!ok) ::_exit(110);
}

TEST(TaskIdentityTest, EveryField) {
  StoppedChild source([] {
    must(::prctl(PR_SET_NAME, kName) == 0);
    must(::prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
    must(::personality(ADDR_NO_RANDOMIZE | UNAME26) != -1);
    must(::prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    must(::prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
  });
  const absl::StatusOr<std::string> state = source.capture(task_identity_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  TaskIdentityState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.name(), kName);
  EXPECT_EQ(parsed.parent_death_signal(), uint32_t{SIGUSR2});
  EXPECT_EQ(parsed.mce_kill_policy(), uint32_t{PR_MCE_KILL_EARLY});
  EXPECT_EQ(parsed.tsc_mode(), uint32_t{PR_TSC_SIGSEGV});
  EXPECT_EQ(parsed.speculation_size(), 3);

  StoppedChild husk({}, [] {
    char name[16];
    int signal = 0;
    ::prctl(PR_GET_NAME, name);
    ::prctl(PR_GET_PDEATHSIG, &signal);
    if (std::string(name) != kName || signal != SIGUSR2) return 1;
    int tsc = 0;
    if (::prctl(PR_GET_TSC, &tsc) != 0 || tsc != PR_TSC_SIGSEGV) return 4;
    if (::personality(0xffffffff) != (ADDR_NO_RANDOMIZE | UNAME26)) return 2;
    return ::prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY ? 0 : 3;
  });
  const absl::Status restored = husk.restore(task_identity_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(task_identity_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(TaskIdentityTest, SpeculationThatCannotBeHadIsRefusedIfItWasAskedFor) {
  StoppedChild husk;
  TaskIdentityState state;
  ASSERT_TRUE(state.ParseFromString(husk.capture(task_identity_resource()).value()));
  const auto now =
      static_cast<uint32_t>(::prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_L1D_FLUSH, 0, 0, 0));
  if ((now & PR_SPEC_PRCTL) != 0) GTEST_SKIP() << "this machine can flush L1D for a task";
  state.set_speculation(2, PR_SPEC_PRCTL | PR_SPEC_DISABLE);  // the default elsewhere
  EXPECT_TRUE(husk.restore(task_identity_resource(), state.SerializeAsString()).ok());
  state.set_speculation(2, PR_SPEC_PRCTL | PR_SPEC_ENABLE);
  EXPECT_EQ(husk.restore(task_identity_resource(), state.SerializeAsString()).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ProcessIdentityTest, EveryField) {
  StoppedChild source([] {
    ::umask(0123);
    must(::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    must(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    must(::prctl(kPrSetMemoryMerge, 1, 0, 0, 0) == 0);
    must(kernel::write_file("/proc/self/coredump_filter", "0x17").ok());
  });
  const absl::StatusOr<std::string> state = source.capture(process_identity_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  // Reading the umask left it alone.
  EXPECT_EQ(source.capture(process_identity_resource()).value(), *state);
  ProcessIdentityState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.umask(), 0123U);
  EXPECT_EQ(parsed.coredump_filter(), 0x17U);
  EXPECT_TRUE(parsed.memory_merge());

  StoppedChild husk({}, [] {
    int subreaper = 0;
    ::prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0);
    if (subreaper != 1) return 1;
    if (::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) != 1) return 2;
    if (::prctl(kPrGetMemoryMerge, 0, 0, 0, 0) != 1) return 3;
    return ::umask(0) == 0123 ? 0 : 4;
  });
  const absl::Status restored = husk.restore(process_identity_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(process_identity_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(ProcessIdentityTest, NoMemoryMayBecomeExecutable) {
  constexpr int kRefuseExecGain = 1;
  StoppedChild husk({}, [] { return ::prctl(kPrGetMdwe, 0, 0, 0, 0) == kRefuseExecGain ? 0 : 1; });
  ProcessIdentityState state;
  ASSERT_TRUE(state.ParseFromString(husk.capture(process_identity_resource()).value()));
  state.set_memory_deny_write_execute(kRefuseExecGain);
  const absl::Status restored =
      husk.restore(process_identity_resource(), state.SerializeAsString());
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.finish(), 0);
}

}  // namespace
}  // namespace godwit::resource
