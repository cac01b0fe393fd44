#include "resource/rseq/rseq.h"

#include <gtest/gtest.h>
#include <linux/rseq.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

#include "resource/rseq/rseq.pb.h"
#include "resource/testing_tasks.h"
#include "tracee/memory.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

constexpr uint32_t kSignature = 0x1badb002;
alignas(64) struct rseq_area_t { unsigned char bytes[64]; } own_area;

struct rseq& area() {
  return *reinterpret_cast<struct rseq*>(own_area.bytes);
}

struct rseq* area_of_libc() {
  return reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) +
                                        __rseq_offset);
}

void leave_libcs() {
  if (__rseq_size == 0) return;
  ::syscall(SYS_rseq, area_of_libc(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
}

void register_own() {
  leave_libcs();
  area().cpu_id = static_cast<uint32_t>(RSEQ_CPU_ID_UNINITIALIZED);
  if (::syscall(SYS_rseq, &own_area, 32, 0, kSignature) != 0) ::_exit(110);
}

TEST(RseqTest, AddressLengthAndSignature) {
  StoppedChild source(register_own);
  const absl::StatusOr<std::string> state = source.capture(rseq_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  RseqState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.address(), reinterpret_cast<uint64_t>(&own_area));
  EXPECT_EQ(parsed.length(), 32U);
  EXPECT_EQ(parsed.signature(), kSignature);

  // A husk that has the C library's, and one that has none.
  for (const bool none : {false, true}) {
    StoppedChild husk(
        [none] {
          if (none) leave_libcs();
          area().cpu_id = static_cast<uint32_t>(RSEQ_CPU_ID_UNINITIALIZED);
        },
        [] { return static_cast<int>(area().cpu_id) >= 0 ? 0 : 1; });
    const absl::Status restored = husk.restore(rseq_resource(), *state);
    ASSERT_TRUE(restored.ok()) << restored;
    EXPECT_EQ(husk.capture(rseq_resource()).value(), *state);
    EXPECT_EQ(husk.finish(), 0);
  }
}

TEST(RseqTest, NoneAtAll) {
  StoppedChild source(leave_libcs);
  EXPECT_EQ(source.capture(rseq_resource()).value(), "");
  StoppedChild husk(register_own);
  ASSERT_TRUE(husk.restore(rseq_resource(), "").ok());
  EXPECT_EQ(husk.capture(rseq_resource()).value(), "");
  EXPECT_EQ(husk.finish(), 0);
}

// The text of a critical section with its signed abort handler; never run, only pointed into.
alignas(32) uint32_t text[16];
struct rseq_cs section;

class CriticalSectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    child_ = std::make_unique<StoppedChild>([] {
      register_own();
      text[8] = kSignature;  // before the handler, which is text[9]
      section.start_ip = reinterpret_cast<uint64_t>(&text[0]);
      section.post_commit_offset = 4 * sizeof text[0];
      section.abort_ip = reinterpret_cast<uint64_t>(&text[9]);
    });
  }
  // Stands the stopped child at `rip` with its section announced.
  void put(uint64_t rip) {
    const auto pointer = reinterpret_cast<uint64_t>(&section);
    ASSERT_TRUE(
        tracee::write_memory({child_->pid()}, {pointer_at()}, std::as_bytes(std::span(&pointer, 1)))
            .ok());
    tracee::Registers registers = child_->task().registers().value();
    registers.rip = rip;
    registers.orig_rax = ~uint64_t{0};
    ASSERT_TRUE(child_->task().set_registers(registers).ok());
  }
  static uint64_t pointer_at() {
    return reinterpret_cast<uint64_t>(&own_area) + offsetof(struct rseq, rseq_cs);
  }
  uint64_t pointer() {
    uint64_t value = 1;
    EXPECT_TRUE(tracee::read_memory({child_->pid()}, {pointer_at()},
                                    std::as_writable_bytes(std::span(&value, 1)))
                    .ok());
    return value;
  }
  uint64_t rip() { return child_->task().registers().value().rip; }

  std::unique_ptr<StoppedChild> child_;
};

TEST_F(CriticalSectionTest, IsLeftThroughItsAbortHandler) {
  put(reinterpret_cast<uint64_t>(&text[2]));
  const absl::StatusOr<bool> left = leave_critical_section(child_->task());
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_TRUE(*left);
  EXPECT_EQ(rip(), reinterpret_cast<uint64_t>(&text[9]));
  EXPECT_EQ(pointer(), 0U);
  EXPECT_FALSE(leave_critical_section(child_->task()).value());
}

TEST_F(CriticalSectionTest, IsOverAtItsCommit) {
  put(reinterpret_cast<uint64_t>(&text[4]));
  EXPECT_FALSE(leave_critical_section(child_->task()).value());
  EXPECT_EQ(rip(), reinterpret_cast<uint64_t>(&text[4]));
  EXPECT_NE(pointer(), 0U);  // the kernel clears it when it likes
}

TEST_F(CriticalSectionTest, WithAnUnsignedHandlerIsLeftToTheKernel) {
  put(reinterpret_cast<uint64_t>(&text[1]));
  const uint32_t wrong = 1;
  ASSERT_TRUE(tracee::write_memory({child_->pid()}, {reinterpret_cast<uint64_t>(&text[8])},
                                   std::as_bytes(std::span(&wrong, 1)))
                  .ok());
  EXPECT_FALSE(leave_critical_section(child_->task()).value());
  EXPECT_EQ(rip(), reinterpret_cast<uint64_t>(&text[1]));
}

}  // namespace
}  // namespace godwit::resource
