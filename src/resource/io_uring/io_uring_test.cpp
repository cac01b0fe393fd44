#include "resource/io_uring/io_uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "resource/io_uring/ring.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

// As a program has it: the memory stays what it was when another ring is put under it.
class Ring {
 public:
  Ring(uint32_t size, uint32_t results, uint32_t setup) {
    auto made = set_up_ring(size, results, setup, params);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) fd = *std::move(made);
    look();
  }
  void look() {
    IoUringState state;
    state.set_setup(params.flags);
    state.set_sq_entries(params.sq_entries);
    state.set_cq_entries(params.cq_entries);
    state.set_offsets(offsets_of(params));
    rings.emplace(*RingMemory::map(fd.get(), IORING_OFF_SQ_RING, rings_bytes(state)));
    entries.emplace(*RingMemory::map(fd.get(), IORING_OFF_SQES, entries_bytes(state)));
  }
  io_uring_sqe& add(uint8_t opcode, int file, uint64_t mark) {
    const uint32_t tail = rings->at(params.sq_off.tail);
    const uint32_t at = tail & (params.sq_entries - 1);
    const size_t one = (params.flags & IORING_SETUP_SQE128) != 0 ? 128 : 64;
    auto& entry = *reinterpret_cast<io_uring_sqe*>(entries->bytes().data() + at * one);
    entry = {};
    entry.opcode = opcode;
    entry.fd = file;
    entry.user_data = mark;
    rings->at(params.sq_off.array + 4 * at) = at;
    rings->at(params.sq_off.tail) = tail + 1;
    return entry;
  }
  long submit(uint32_t count) {
    return ::syscall(SYS_io_uring_enter, fd.get(), count, 0, 0, nullptr, 0);
  }
  uint64_t next() {
    const uint32_t head = rings->at(params.cq_off.head);
    if (head == rings->at(params.cq_off.tail)) return 0;
    const size_t one = (params.flags & IORING_SETUP_CQE32) != 0 ? 32 : 16;
    const auto* result = reinterpret_cast<const io_uring_cqe*>(
        rings->bytes().data() + params.cq_off.cqes + (head & (params.cq_entries - 1)) * one);
    rings->at(params.cq_off.head) = head + 1;
    return result->user_data;
  }
  long attach(uint32_t what, const void* argument, uint32_t count) {
    return ::syscall(SYS_io_uring_register, fd.get(), what, argument, count);
  }
  io_uring_params params{};
  UniqueFd fd;
  std::optional<RingMemory> rings;
  std::optional<RingMemory> entries;
};

class IoUringTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
  }
  static std::string code_of(const Ring& ring) {
    FakeCaptureContext source;
    std::vector<Refusal> refusals;
    const OpenFile& file = source.add(ring.fd.get(), 1);
    EXPECT_TRUE(io_uring_kind().precheck(file, source, refusals).ok());
    return refusals.empty() ? "" : refusals[0].code;
  }
  static std::string without_inode(const std::string& bytes) {
    IoUringState state;
    EXPECT_TRUE(state.ParseFromString(bytes));
    state.clear_inode();
    return state.SerializeAsString();
  }
};

TEST_F(IoUringTest, WhatIsInItAndWithItMoves) {
  Ring ring(8, 32,
            IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                IORING_SETUP_SQE128 | IORING_SETUP_CQE32);
  for (uint64_t i = 1; i <= 1000; ++i) {
    ring.add(IORING_OP_NOP, -1, i);
    ASSERT_EQ(ring.submit(1), 1);
    ASSERT_EQ(ring.next(), i);
  }
  const UniqueFd file(::memfd_create("registered", MFD_CLOEXEC));
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int files[] = {-1, file.get(), -1};
  uint64_t tags[] = {0, 77, 0};
  io_uring_rsrc_register all{};
  all.nr = 3;
  all.data = reinterpret_cast<uint64_t>(files);
  all.tags = reinterpret_cast<uint64_t>(tags);
  ASSERT_EQ(ring.attach(IORING_REGISTER_FILES2, &all, sizeof all), 0) << errno;
  const int number = event.get();
  ASSERT_EQ(ring.attach(IORING_REGISTER_EVENTFD_ASYNC, &number, 1), 0) << errno;
  const RegisteredClock clock{.clock = CLOCK_BOOTTIME, .unused = {}};
  ASSERT_EQ(ring.attach(kRegisterClock, &clock, 0), 0) << errno;
  ring.add(IORING_OP_NOP, -1, 5001);
  ring.add(IORING_OP_NOP, -1, 5002);
  ASSERT_EQ(ring.submit(2), 2);
  ring.add(IORING_OP_NOP, -1, 5003);

  FakeCaptureContext source;
  source.is_final = false;
  const OpenFile& opened = source.add(ring.fd.get(), 1);
  source.add(file.get(), 2);
  source.add(event.get(), 3);
  std::vector<Refusal> refusals;
  EXPECT_TRUE(io_uring_kind().precheck(opened, source, refusals).ok());
  EXPECT_TRUE(refusals.empty()) << refusals[0].code;
  const auto early = io_uring_kind().capture(opened, source);
  ASSERT_TRUE(early.ok()) << early.status();
  ring.add(IORING_OP_NOP, -1, 5004);
  ASSERT_EQ(ring.submit(1), 1);
  source.is_final = true;
  const auto final = io_uring_kind().capture(opened, source);
  ASSERT_TRUE(final.ok()) << final.status();

  FakeRestoreContext destination;
  auto made = io_uring_kind().create(1, *early, destination);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto updated = io_uring_kind().update(made->get(), *early, *final, destination);
  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_TRUE(*updated);
  destination.made[2] = *kernel::duplicate(file.get());
  destination.made[3] = *kernel::duplicate(event.get());
  const auto state = parse_io_uring(*final);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->files(1).tag(), 77U);
  EXPECT_TRUE(state->eventfd_async());
  EXPECT_EQ(state->clock(), static_cast<uint32_t>(CLOCK_BOOTTIME));
  const absl::Status with = register_with_io_uring(*state, made->get(), destination);
  ASSERT_TRUE(with.ok()) << with;
  const absl::Status completed = complete_io_uring(*state, made->get());
  ASSERT_TRUE(completed.ok()) << completed;

  FakeCaptureContext there;
  const OpenFile& again = there.add(made->get(), 1);
  there.add(file.get(), 2);
  there.add(event.get(), 3);
  const auto captured = io_uring_kind().capture(again, there);
  ASSERT_TRUE(captured.ok()) << captured.status();
  EXPECT_EQ(without_inode(*captured), without_inode(*final));

  ring.fd = *std::move(made);
  ring.look();
  EXPECT_EQ(ring.next(), 5001U);
  EXPECT_EQ(ring.next(), 5002U);
  EXPECT_EQ(ring.next(), 5003U);
  EXPECT_EQ(ring.next(), 0U);
  EXPECT_EQ(ring.submit(1), 1);
  EXPECT_EQ(ring.next(), 5004U);
}

// More results than requests, and fewer.
TEST_F(IoUringTest, RequestsWithoutResultsAndResultsWithoutRequests) {
  Ring ring(4, 8, 0);
  Ring sender(4, 8, 0);
  for (int i = 0; i < 30; ++i) {
    sender.add(IORING_OP_MSG_RING, ring.fd.get(), 1);
    ASSERT_EQ(sender.submit(1), 1);
    ASSERT_EQ(sender.next(), 1U);
    (void)ring.next();
    sender.add(IORING_OP_NOP, -1, 1).flags = IOSQE_CQE_SKIP_SUCCESS;
    ASSERT_EQ(sender.submit(1), 1);
  }
  for (Ring* one : {&ring, &sender}) {
    FakeCaptureContext source;
    const auto state = io_uring_kind().capture(source.add(one->fd.get(), 1), source);
    ASSERT_TRUE(state.ok()) << state.status();
    FakeRestoreContext destination;
    const auto made = io_uring_kind().create(1, *state, destination);
    ASSERT_TRUE(made.ok()) << made.status();
    const auto parsed = parse_io_uring(*state);
    EXPECT_EQ(parsed->sq_head(), one == &ring ? 0U : 60U);
    EXPECT_EQ(parsed->cq_tail(), 30U);
    const absl::Status completed = complete_io_uring(*parsed, made->get());
    EXPECT_TRUE(completed.ok()) << completed;
  }
}

TEST_F(IoUringTest, ARequestUnderWayIsWaitedFor) {
  Ring ring(4, 8, 0);
  const auto pipe = kernel::pipe2(0);
  ring.add(IORING_OP_POLL_ADD, pipe->read.get(), 9).poll32_events = POLLIN;
  ASSERT_EQ(ring.submit(1), 1);
  EXPECT_EQ(code_of(ring), "");
  FakeCaptureContext source;
  const OpenFile& file = source.add(ring.fd.get(), 1);
  EXPECT_EQ(io_uring_kind().capture(file, source).status().code(), absl::StatusCode::kUnavailable);
  ASSERT_EQ(::write(pipe->write.get(), "x", 1), 1);
  for (int i = 0; i < 1000 && ring.rings->at(ring.params.cq_off.tail) == 0; ++i)
    ::syscall(SYS_io_uring_enter, ring.fd.get(), 0, 0, IORING_ENTER_GETEVENTS, nullptr, 0);
  const auto state = io_uring_kind().capture(file, source);
  EXPECT_TRUE(state.ok()) << state.status();
}

TEST_F(IoUringTest, WhatIsNotCarriedIsRefusedByName) {
  EXPECT_EQ(code_of(Ring(4, 8, IORING_SETUP_SQPOLL)), "io_uring.sqpoll");
  EXPECT_EQ(code_of(Ring(4, 8, IORING_SETUP_IOPOLL)), "io_uring.setup");
  {
    Ring ring(4, 8, 0);
    static char memory[4096];
    iovec buffer{memory, sizeof memory};
    ASSERT_EQ(ring.attach(IORING_REGISTER_BUFFERS, &buffer, 1), 0);
    EXPECT_EQ(code_of(ring), "io_uring.buffers");
  }
  {
    Ring ring(4, 8, 0);
    void* memory =
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    io_uring_buf_reg buffers{};
    buffers.ring_addr = reinterpret_cast<uint64_t>(memory);
    buffers.ring_entries = 8;
    buffers.bgid = 3;
    ASSERT_EQ(ring.attach(IORING_REGISTER_PBUF_RING, &buffers, 1), 0);
    EXPECT_EQ(code_of(ring), "io_uring.provided_buffers");
    ::munmap(memory, 4096);
  }
  {
    Ring ring(4, 8, 0);
    ASSERT_GE(ring.attach(IORING_REGISTER_PERSONALITY, nullptr, 0), 0);
    EXPECT_EQ(code_of(ring), "io_uring.personality");
  }
  {
    Ring ring(4, 8, IORING_SETUP_R_DISABLED);
    io_uring_restriction allowed{};
    allowed.opcode = IORING_RESTRICTION_SQE_OP;
    ASSERT_EQ(ring.attach(IORING_REGISTER_RESTRICTIONS, &allowed, 1), 0);
    EXPECT_EQ(code_of(ring), "io_uring.restrictions");
  }
  {
    Ring ring(4, 8, 0);
    uint32_t most[2] = {3, 3};
    ASSERT_EQ(ring.attach(IORING_REGISTER_IOWQ_MAX_WORKERS, most, 2), 0);
    EXPECT_EQ(code_of(ring), "io_uring.feature");
  }
  {
    Ring ring(4, 8, 0);
    int file = ::memfd_create("closed", MFD_CLOEXEC);
    ASSERT_EQ(ring.attach(IORING_REGISTER_FILES, &file, 1), 0);
    ::close(file);
    EXPECT_EQ(code_of(ring), "io_uring.files");
  }
  {
    Ring ring(4, 8, 0);
    int event = ::eventfd(0, EFD_CLOEXEC);
    ASSERT_EQ(ring.attach(IORING_REGISTER_EVENTFD, &event, 1), 0);
    ::close(event);
    EXPECT_EQ(code_of(ring), "io_uring.eventfd");
  }
  {
    Ring ring(4, 8, 0);
    io_uring_rsrc_update update{};
    update.offset = ~0U;
    update.data = static_cast<uint64_t>(ring.fd.get());
    ASSERT_EQ(ring.attach(IORING_REGISTER_RING_FDS, &update, 1), 1);
    EXPECT_EQ(code_of(ring), "io_uring.registered_ring");
    io_uring_rsrc_update off{};
    off.offset = update.offset;
    ASSERT_EQ(ring.attach(IORING_UNREGISTER_RING_FDS, &off, 1), 1);
  }
}

TEST(IoUringStateTest, WhatCannotBeRightIsRefused) {
  io_uring_params params{};
  auto ring = set_up_ring(8, 16, 0, params);
  ASSERT_TRUE(ring.ok()) << ring.status();
  IoUringState good;
  good.set_sq_entries(8);
  good.set_cq_entries(16);
  good.set_offsets(offsets_of(params));
  EXPECT_TRUE(parse_io_uring(good.SerializeAsString()).ok());
  const auto bad = [&](auto change) {
    IoUringState state = good;
    change(state);
    return parse_io_uring(state.SerializeAsString()).status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(bad([](IoUringState& s) { s.set_sq_entries(7); }));
  EXPECT_TRUE(bad([](IoUringState& s) { s.set_cq_entries(1 << 20); }));
  EXPECT_TRUE(bad([](IoUringState& s) { s.set_offsets("short"); }));
  EXPECT_TRUE(bad([](IoUringState& s) { s.mutable_offsets()->replace(0, 4, "\xff\xff\xff\xff"); }));
  EXPECT_TRUE(bad([](IoUringState& s) { s.set_rings("short"); }));
  EXPECT_TRUE(bad([](IoUringState& s) { s.set_entries("short"); }));
}

}  // namespace
}  // namespace godwit::resource
