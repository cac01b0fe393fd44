#include "resource/epoll/epoll.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "resource/epoll/epoll.pb.h"
#include "resource/testing_contexts.h"
#include "tracee/batch.h"
#include "tracee/child_for_test.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

void add(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
}

// Runs finish() for the set `state` in a forked child, which has all of this process's descriptors
// by the same numbers, and gives the new epoll.
UniqueFd restored(EpollState state) {
  FakeRestoreContext destination;
  auto fd = epoll_kind().create(1, state.SerializeAsString(), destination);
  EXPECT_TRUE(fd.ok()) << fd.status();
  tracee::testing::Child child([](tracee::testing::Shared& shared) {
    for (;;) shared.word[0].fetch_add(1);
    return 0;
  });
  EXPECT_TRUE(child.wait_word(0, 1));
  state.set_tgid(child.image_pid().value);
  auto task = tracee::testing::stop_task(child.pid());
  EXPECT_TRUE(task.ok()) << task.status();
  auto area = tracee::StubArea::map(*task, child.image_pid(), 1 << 16);
  EXPECT_TRUE(area.ok()) << area.status();
  tracee::Batch batch;
  const auto check = epoll_kind().finish(fd->get(), state.SerializeAsString(), child.image_pid(),
                                         fd->get(), batch, destination);
  EXPECT_TRUE(check.ok()) << check.status();
  if (*check) {
    const absl::Status run =
        area->run(*task, child.image_pid(), batch, Deadline::in(absl::Seconds(20)));
    EXPECT_TRUE(run.ok()) << run;
    EXPECT_TRUE((*check)(batch).ok()) << (*check)(batch);
  }
  return *std::move(fd);
}

EpollState captured(int epoll, const FakeCaptureContext& context) {
  EpollState state;
  const auto bytes = epoll_kind().capture(open_file(epoll), context);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_TRUE(state.ParseFromString(bytes.value_or("")));
  return state;
}

TEST(Epoll, ASetOfAThousandComesBackWithEveryFlag) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  FakeCaptureContext source;
  std::vector<UniqueFd> sockets;
  constexpr uint32_t kEvents[] = {EPOLLIN,
                                  EPOLLIN | EPOLLOUT | EPOLLET,
                                  EPOLLPRI | EPOLLRDHUP,
                                  EPOLLIN | EPOLLONESHOT,
                                  EPOLLIN | EPOLLEXCLUSIVE | EPOLLET,
                                  0};
  for (uint64_t i = 0; i < 500; ++i) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    for (const int end : ends) {
      sockets.emplace_back(end);
      source.add(end);
      add(epoll.get(), end, kEvents[i % 6], uint64_t{0x8000'0000'0000'0000} + i);
    }
  }
  ASSERT_EQ(::fcntl(epoll.get(), F_SETFL, O_NONBLOCK), 0);
  const OpenFile file = open_file(epoll.get());
  ASSERT_TRUE(epoll_kind().recognise(file));
  std::vector<Refusal> refusals;
  ASSERT_TRUE(epoll_kind().precheck(file, source, refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const EpollState state = captured(epoll.get(), source);
  EXPECT_EQ(state.entries_size(), 1000);
  const UniqueFd made = restored(state);
  EXPECT_EQ(captured(made.get(), source).SerializeAsString(), state.SerializeAsString());
  // Pair 0 is level-triggered for reading: what it says carries its data.
  epoll_event events[1100];
  while (::epoll_wait(made.get(), events, 1100, 0) == 1100) {
  }
  ASSERT_EQ(::write(sockets[0].get(), "x", 1), 1);
  bool found = false;
  const int ready = ::epoll_wait(made.get(), events, 1100, 0);
  for (int i = 0; i < ready; ++i) found = found || events[i].data.u64 == uint64_t{1} << 63;
  EXPECT_TRUE(found);
}

TEST(Epoll, AFiredOneShotStaysDisarmedAndOthersFire) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const UniqueFd fired(::eventfd(1, EFD_CLOEXEC));
  const UniqueFd armed(::eventfd(0, EFD_CLOEXEC));
  add(epoll.get(), fired.get(), EPOLLIN | EPOLLONESHOT, 1);
  epoll_event event{};
  ASSERT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 1);
  add(epoll.get(), armed.get(), EPOLLIN | EPOLLONESHOT, 2);
  FakeCaptureContext source;
  source.add(fired.get());
  source.add(armed.get());
  const EpollState state = captured(epoll.get(), source);
  const UniqueFd made = restored(state);
  EXPECT_EQ(::epoll_wait(made.get(), &event, 1, 0), 0);
  ASSERT_EQ(::eventfd_write(armed.get(), 1), 0);
  ASSERT_EQ(::epoll_wait(made.get(), &event, 1, 0), 1);
  EXPECT_EQ(event.data.u64, 2U);
  EXPECT_EQ(::epoll_wait(made.get(), &event, 1, 0), 0);
  // The program arms it again by its number.
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.u64 = 3;
  ASSERT_EQ(::epoll_ctl(made.get(), EPOLL_CTL_MOD, fired.get(), &event), 0);
  ASSERT_EQ(::epoll_wait(made.get(), &event, 1, 0), 1);
  EXPECT_EQ(event.data.u64, 3U);
}

TEST(Epoll, AnEntryWhoseNumberIsNowAnotherFileIsRefused) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd watched(::eventfd(0, EFD_CLOEXEC));
  const UniqueFd copy(::fcntl(watched.get(), F_DUPFD_CLOEXEC, 0));
  add(epoll.get(), watched.get(), EPOLLIN, 1);
  const int number = watched.get();
  {
    FakeCaptureContext source;
    source.add(watched.get(), 1);
    std::vector<Refusal> refusals;
    ASSERT_TRUE(epoll_kind().precheck(open_file(epoll.get()), source, refusals).ok());
    EXPECT_TRUE(refusals.empty());
  }
  watched.reset();
  const UniqueFd other(::eventfd(0, EFD_CLOEXEC));  // the same inode, and the lowest free number
  ASSERT_EQ(other.get(), number);
  FakeCaptureContext source;
  source.add(other.get(), 2);
  source.add(copy.get(), 1);
  std::vector<Refusal> refusals;
  ASSERT_TRUE(epoll_kind().precheck(open_file(epoll.get()), source, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "epoll.target");
  EXPECT_FALSE(epoll_kind().capture(open_file(epoll.get()), source).ok());
  source.is_final = false;
  EXPECT_TRUE(epoll_kind().capture(open_file(epoll.get()), source).ok());
}

TEST(Epoll, TwoEntriesOfOneNumberAreToldApart) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd first(::eventfd(0, EFD_CLOEXEC));
  const UniqueFd copy(::fcntl(first.get(), F_DUPFD_CLOEXEC, 0));
  add(epoll.get(), first.get(), EPOLLIN, 1);
  first.reset();
  const UniqueFd second(::eventfd(0, EFD_CLOEXEC));
  add(epoll.get(), second.get(), EPOLLIN, 2);
  FakeCaptureContext source;
  source.add(second.get(), 2);
  source.add(copy.get(), 1);
  std::vector<Refusal> refusals;
  ASSERT_TRUE(epoll_kind().precheck(open_file(epoll.get()), source, refusals).ok());
  EXPECT_EQ(refusals.size(), 1U);  // the first one only
}

TEST(Epoll, AnEntryOfAFileThatNobodyHoldsIsRefusedAndHostileStateIsAnError) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const UniqueFd watched(::eventfd(0, EFD_CLOEXEC));
  add(epoll.get(), watched.get(), EPOLLIN, 1);
  std::vector<Refusal> refusals;
  ASSERT_TRUE(epoll_kind().precheck(open_file(epoll.get()), FakeCaptureContext(), refusals).ok());
  EXPECT_EQ(refusals.size(), 1U);
  OpenFile damaged = open_file(epoll.get());
  damaged.fdinfo = "pos:\t0\nflags:\t02\nmnt_id:\t1\ntfd: x\n";
  EXPECT_FALSE(epoll_kind().capture(damaged, FakeCaptureContext()).ok());
  FakeRestoreContext destination;
  tracee::Batch batch;
  EXPECT_FALSE(epoll_kind().create(1, "\xff", destination).ok());
  EpollState state;
  state.set_tgid(5);
  state.add_entries()->set_fd(1);
  EXPECT_FALSE(epoll_kind().finish(3, state.SerializeAsString(), {6}, 3, batch, destination).ok());
}

}  // namespace
}  // namespace godwit::resource
