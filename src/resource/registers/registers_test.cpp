#include "resource/registers/registers.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "resource/registers/registers.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

constexpr int kReached = 1;
constexpr int kGo = 2;

// Fills registers of every kind, says so in *flag, waits for kGo there and leaves with 0 if all are
// as they were. Uses no stack: a task that was never in it can be put into it.
[[noreturn, gnu::noinline]] void fill_and_wait(int* flag) {
  asm volatile(
      R"(
      mov $0x1111111111111111, %%rax
      movq %%rax, %%xmm0
      mov $0x2222222222222222, %%rax
      movq %%rax, %%xmm15
      mov $0x3333, %%rbx
      mov $0x4444, %%rcx
      mov $0x5555, %%rdx
      mov $0x6666, %%rsi
      mov $0x7777, %%rbp
      mov $0x8888, %%r8
      mov $0x9999, %%r9
      mov $0xaaaa, %%r10
      mov $0xbbbb, %%r11
      mov $0xcccc, %%r12
      mov $0xdddd, %%r13
      mov $0xeeee, %%r14
      mov $0xffff, %%r15
      fldpi
      fldz
      movl $1, (%%rdi)
  1:  pause
      cmpl $2, (%%rdi)
      jne 1b
      mov $1, %%edi
      cmp $0x3333, %%rbx
      jne 2f
      cmp $0x4444, %%rcx
      jne 2f
      cmp $0x5555, %%rdx
      jne 2f
      cmp $0x6666, %%rsi
      jne 2f
      cmp $0x7777, %%rbp
      jne 2f
      cmp $0x8888, %%r8
      jne 2f
      cmp $0x9999, %%r9
      jne 2f
      cmp $0xaaaa, %%r10
      jne 2f
      cmp $0xbbbb, %%r11
      jne 2f
      cmp $0xcccc, %%r12
      jne 2f
      cmp $0xdddd, %%r13
      jne 2f
      cmp $0xeeee, %%r14
      jne 2f
      cmp $0xffff, %%r15
      jne 2f
      mov $2, %%edi
      mov $0x1111111111111111, %%rbx
      movq %%xmm0, %%rax
      cmp %%rax, %%rbx
      jne 2f
      mov $0x2222222222222222, %%rbx
      movq %%xmm15, %%rax
      cmp %%rax, %%rbx
      jne 2f
      mov $3, %%edi
      fldpi
      fcomip %%st(2), %%st
      jne 2f
      mov $0, %%edi
  2:  mov $231, %%eax
      syscall
      )"
      :
      : "D"(flag)
      : "memory");
  __builtin_unreachable();
}

class RegistersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    flag_ = static_cast<int*>(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(flag_, MAP_FAILED);
  }
  void TearDown() override { ::munmap(flag_, 4096); }
  int value() const { return __atomic_load_n(flag_, __ATOMIC_SEQ_CST); }

  int* flag_ = nullptr;
};

TEST_F(RegistersTest, AnotherTaskGoesOnWithThem) {
  std::string state;
  {
    StoppedChild source(
        StoppedChild::Running{},
        [this] {
          sigset_t set;
          sigemptyset(&set);
          sigaddset(&set, SIGUSR2);
          sigaddset(&set, SIGRTMIN + 3);
          ::sigprocmask(SIG_SETMASK, &set, nullptr);
          fill_and_wait(flag_);
        },
        [this] { return value() == kReached; });
    absl::StatusOr<std::string> captured = source.capture(registers_resource());
    ASSERT_TRUE(captured.ok()) << captured.status();
    state = *captured;
    // Twice the same: nothing of the capture shows.
    EXPECT_EQ(source.capture(registers_resource()).value(), state);
  }
  RegistersState parsed;
  ASSERT_TRUE(parsed.ParseFromString(state));
  EXPECT_EQ(parsed.general_size(), 27);
  EXPECT_GE(parsed.xstate().size(), 576U);
  EXPECT_EQ(parsed.signal_mask(), uint64_t{1} << (SIGUSR2 - 1) | uint64_t{1} << (SIGRTMIN + 2));

  StoppedChild husk;
  ASSERT_TRUE(husk.restore(registers_resource(), state).ok());
  EXPECT_EQ(husk.capture(registers_resource()).value(), state);
  __atomic_store_n(flag_, kGo, __ATOMIC_SEQ_CST);
  EXPECT_EQ(husk.finish(), 0);
}

TEST_F(RegistersTest, AnotherLengthOfVectorStateIsRefused) {
  StoppedChild child;
  RegistersState state;
  ASSERT_TRUE(state.ParseFromString(child.capture(registers_resource()).value()));
  state.mutable_xstate()->append(64, '\0');
  const absl::Status status = child.restore(registers_resource(), state.SerializeAsString());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(message_of(status).find("CPU"), std::string_view::npos);
  // And the task is as it was.
  EXPECT_EQ(child.finish(), 0);
}

TEST_F(RegistersTest, NonsenseIsRefused) {
  StoppedChild child;
  EXPECT_EQ(child.restore(registers_resource(), "\xff\xff").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(child.restore(registers_resource(), "").code(), absl::StatusCode::kDataLoss);
}

TEST_F(RegistersTest, PrecheckTakesThisProgram) {
  StoppedChild child;
  std::vector<Refusal> refusals;
  ASSERT_TRUE(registers_resource().precheck(child.view(), refusals).ok());
  EXPECT_TRUE(refusals.empty());
}

}  // namespace
}  // namespace godwit::resource
