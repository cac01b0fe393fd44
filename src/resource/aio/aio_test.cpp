#include "resource/aio/aio.h"

#include <gtest/gtest.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/proc/maps.h"
#include "resource/aio/ring.h"
#include "resource/memory_map/memory_map.h"
#include "resource/testing_tasks.h"
#include "tracee/memory.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

unsigned long set_up(unsigned requests) {
  unsigned long queue = 0;
  if (::syscall(SYS_io_setup, requests, &queue) != 0) ::_exit(110);
  return queue;
}

iocb poll_of(int fd) {
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_POLL;
  request.aio_fildes = static_cast<uint32_t>(fd);
  request.aio_buf = POLLIN;
  return request;
}

// Requests that end at once, with `first` and what follows as their marks.
void submit(unsigned long queue, uint64_t first, int count) {
  static const int file = ::memfd_create("aio", MFD_CLOEXEC);
  for (int i = 0; i < count; ++i) {
    iocb request{};
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<uint32_t>(file);
    request.aio_data = first + static_cast<uint64_t>(i);
    iocb* list[] = {&request};
    if (::syscall(SYS_io_submit, queue, 1, list) != 1) ::_exit(111);
  }
}

// -1: other ones, or another number of them, were there.
int take(unsigned long queue, uint64_t first, int count) {
  timespec none{};
  std::vector<io_event> events(static_cast<size_t>(count) + 1);
  const long got = ::syscall(SYS_io_getevents, queue, 0, count + 1, events.data(), &none);
  if (got != count) return -1;
  for (int i = 0; i < count; ++i)
    if (events[static_cast<size_t>(i)].data != first + static_cast<uint64_t>(i)) return -1;
  return count;
}

std::vector<AddressRange> rings_of(pid_t pid) {
  std::vector<AddressRange> rings;
  const auto maps = kernel::read_maps(HostPid{pid});
  EXPECT_TRUE(maps.ok()) << maps.status();
  if (!maps.ok()) return rings;
  for (const kernel::Mapping& one : *maps)
    if (is_aio_ring(one)) rings.push_back({one.start, one.end});
  return rings;
}

class AioTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
    auto memory = kernel::KernelMemory::open();
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
  }
  absl::StatusOr<AioState> read(pid_t pid) {
    return read_aio(HostPid{pid}, rings_of(pid), *memory_);
  }
  static absl::Status restore(const AioState& state, StoppedChild& husk, int file) {
    tracee::Batch batch;
    GW_RETURN_IF_ERROR(add_aio_calls(state, batch));
    GW_RETURN_IF_ERROR(husk.run(batch));
    GW_RETURN_IF_ERROR(batch.check_all());
    for (int i = 0; i < 8; ++i) {
      tracee::Batch progress;
      GW_RETURN_IF_ERROR(add_aio_progress(state, {husk.pid()}, file, progress));
      if (progress.empty()) break;
      GW_RETURN_IF_ERROR(husk.run(progress));
    }
    return write_aio_rings(state, {husk.pid()});
  }
  std::unique_ptr<kernel::KernelMemory> memory_;
};

// Indices 1 and 3; one ring of several pages that has gone round, with events unread over its end;
// one of the smallest, with what its program reads through memory moved on.
TEST_F(AioTest, QueuesAreThereWithWhatWasNotRead) {
  struct Queues {
    unsigned long large = 0;
    unsigned long small = 0;
  };
  void* shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* queues = static_cast<Queues*>(shared);
  StoppedChild source([&] {
    const unsigned long first = set_up(1);
    queues->large = set_up(200);
    const unsigned long third = set_up(1);
    queues->small = set_up(3);
    ::syscall(SYS_io_destroy, first);
    ::syscall(SYS_io_destroy, third);
    const auto events = static_cast<int>(reinterpret_cast<AioRingHeader*>(queues->large)->events);
    for (int i = 0; i < 10; ++i) {
      submit(queues->large, 0, events / 10);
      if (take(queues->large, 0, events / 10) < 0) ::_exit(112);
    }
    submit(queues->large, 500, 20);
    submit(queues->small, 900, 5);
    reinterpret_cast<AioRingHeader*>(queues->small)->head = 2;
  });
  const auto state = read(source.pid());
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_EQ(state->rings_size(), 2);
  EXPECT_EQ(state->rings(0).index(), 1U);
  EXPECT_EQ(state->rings(0).max_requests(), 200U);
  EXPECT_GT(state->rings(0).memory().size(), 4096U);
  EXPECT_LT(state->rings(0).tail(), 20U);
  EXPECT_EQ(state->rings(1).index(), 3U);
  EXPECT_EQ(state->rings(1).tail(), 5U);

  int file = -1;
  const Queues known = *queues;
  StoppedChild husk(
      [&] {
        file = 200;
        ::dup2(::memfd_create("empty", 0), 200);
      },
      [known] {
        if (take(known.large, 500, 20) != 20) return 1;
        if (take(known.small, 902, 3) != 3) return 2;
        const auto events = static_cast<int>(reinterpret_cast<AioRingHeader*>(known.large)->events);
        for (int i = 0; i < 50; ++i) {
          submit(known.large, 70, events / 2);
          if (take(known.large, 70, events / 2) < 0) return 3;
        }
        if (reinterpret_cast<AioRingHeader*>(set_up(1))->id != 0) return 4;
        if (reinterpret_cast<AioRingHeader*>(set_up(1))->id != 2) return 5;
        return ::syscall(SYS_io_destroy, known.large) == 0 ? 0 : 6;
      });
  const auto parsed = parse_aio(state->SerializeAsString());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const absl::Status restored = restore(*parsed, husk, 200);
  ASSERT_TRUE(restored.ok()) << restored;
  const auto again = read(husk.pid());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), state->SerializeAsString());
  EXPECT_EQ(husk.finish(), 0);
  ::munmap(shared, 4096);
}

TEST_F(AioTest, ARequestUnderWayIsWaitedFor) {
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  StoppedChild source([&] {
    iocb request = poll_of(pipe[0]);
    iocb* list[] = {&request};
    if (::syscall(SYS_io_submit, set_up(4), 1, list) != 1) ::_exit(113);
  });
  const auto state = read(source.pid());
  EXPECT_EQ(state.status().code(), absl::StatusCode::kUnavailable);
  ASSERT_EQ(::write(pipe[1], "x", 1), 1);
  absl::StatusOr<AioState> later = absl::UnknownError("");
  for (int i = 0; i < 2000 && !later.ok(); ++i) {
    later = read(source.pid());
    if (!later.ok()) ::usleep(1000);
  }
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(later->rings(0).tail(), 1U);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

// A child has the rings of its parent mapped, and none of its queues.
TEST_F(AioTest, AnInheritedRingIsMemoryThatNoCallWorksOn) {
  const unsigned long queue = set_up(100);
  submit(queue, 300, 3);
  const auto useless = [queue] {
    io_event event{};
    timespec none{};
    if (::syscall(SYS_io_getevents, queue, 0, 1, &event, &none) != -1 || errno != EINVAL) return 1;
    return reinterpret_cast<const AioRingHeader*>(queue)->tail == 3 ? 0 : 2;
  };
  StoppedChild source({}, useless);
  StoppedChild husk(
      [=] {
        ::munmap(reinterpret_cast<void*>(queue), ring_bytes(100, 1));
        ::dup2(::memfd_create("empty", 0), 200);
      },
      useless);
  const auto state = read(source.pid());
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_EQ(state->rings_size(), 1);
  const absl::Status restored = restore(*state, husk, 200);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(read(husk.pid())->rings(0).memory(), state->rings(0).memory());
  EXPECT_EQ(source.finish(), 0);
  EXPECT_EQ(husk.finish(), 0);
  ::syscall(SYS_io_destroy, queue);
}

TEST_F(AioTest, APartOfARingIsRefused) {
  StoppedChild source([] {
    const unsigned long queue = set_up(300);
    ::munmap(reinterpret_cast<void*>(queue + 4096), 4096);
  });
  const auto state = read(source.pid());
  EXPECT_EQ(state.status().code(), absl::StatusCode::kFailedPrecondition);
  std::vector<Refusal> refusals;
  refuse_aio(state.status(), "test", refusals);
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "aio.ring");
}

TEST(AioStateTest, WhatCannotBeRightIsRefused) {
  AioState good;
  AioRingState& ring = *good.add_rings();
  ring.set_address(0x700000000000);
  ring.set_index(5);
  ring.set_max_requests(9);
  ring.set_tail(3);
  ring.set_memory(std::string(4096, 'x'));
  EXPECT_TRUE(parse_aio(good.SerializeAsString()).ok());
  const auto bad = [&](auto change) {
    AioState state = good;
    change(state);
    return parse_aio(state.SerializeAsString()).status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(bad([](AioState& s) { s.mutable_rings(0)->set_address(12); }));
  EXPECT_TRUE(bad([](AioState& s) { s.mutable_rings(0)->set_index(1 << 30); }));
  EXPECT_TRUE(bad([](AioState& s) { s.mutable_rings(0)->set_max_requests(0); }));
  EXPECT_TRUE(bad([](AioState& s) { s.mutable_rings(0)->set_tail(127); }));
  EXPECT_TRUE(bad([](AioState& s) { s.mutable_rings(0)->set_memory("short"); }));
  EXPECT_TRUE(bad([](AioState& s) { *s.add_rings() = s.rings(0); }));
}

// Where there may be more CPUs, a small queue has a larger ring.
TEST(AioStateTest, ARingHasRoomForWhatItsMachineWants) {
  EXPECT_EQ(ring_bytes(1, 1), 4096U);
  EXPECT_EQ(ring_bytes(62, 1), 4096U);
  EXPECT_EQ(ring_bytes(63, 1), 8192U);
  EXPECT_EQ(ring_bytes(1, 128), ring_bytes(512, 1));
  EXPECT_TRUE(check_aio_size(4096).ok() == (::sysconf(_SC_NPROCESSORS_CONF) <= 15));
  EXPECT_FALSE(check_aio_size(1024).ok());
}

}  // namespace
}  // namespace godwit::resource
