#include "resource/eventfd/eventfd.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

class EventfdRoundTrip : public ::testing::TestWithParam<std::tuple<uint64_t, int>> {};

TEST_P(EventfdRoundTrip, CountModeAndFlags) {
  const auto [count, flags] = GetParam();
  const UniqueFd fd(::eventfd(0, flags | EFD_CLOEXEC));
  if (count > 0) {
    ASSERT_EQ(::eventfd_write(fd.get(), count), 0);
  }
  const FakeCaptureContext source;
  const FileKind& kind = eventfd_kind();
  const OpenFile file = open_file(fd.get());
  ASSERT_TRUE(kind.recognise(file));
  std::vector<Refusal> refusals;
  ASSERT_TRUE(kind.precheck(file, source, refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const auto state = kind.capture(file, source);
  ASSERT_TRUE(state.ok()) << state.status();
  FakeRestoreContext destination;
  const auto made = kind.create(file.id, *state, destination);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(*kind.capture(open_file(made->get()), source), *state);
  ASSERT_EQ(::fcntl(made->get(), F_SETFL, O_NONBLOCK), 0);
  eventfd_t value = 0;
  if (count == 0) {
    EXPECT_EQ(::eventfd_read(made->get(), &value), -1);
  } else {
    ASSERT_EQ(::eventfd_read(made->get(), &value), 0);
    EXPECT_EQ(value, (flags & EFD_SEMAPHORE) != 0 ? 1 : count);
  }
}

INSTANTIATE_TEST_SUITE_P(All, EventfdRoundTrip,
                         ::testing::Combine(::testing::Values(0, 7, uint64_t{1} << 40,
                                                              UINT64_MAX - 1),
                                            ::testing::Values(0, EFD_SEMAPHORE, EFD_NONBLOCK,
                                                              EFD_NONBLOCK | EFD_SEMAPHORE)));

std::string state_of(uint64_t count, int flags) {
  const UniqueFd fd(::eventfd(0, flags | EFD_CLOEXEC));
  if (count > 0) ::eventfd_write(fd.get(), count);
  return eventfd_kind().capture(open_file(fd.get()), FakeCaptureContext()).value();
}

TEST(Eventfd, UpdateReachesTheNewStateOrAsksForANewOne) {
  const FileKind& kind = eventfd_kind();
  FakeRestoreContext destination;
  const FakeCaptureContext source;
  for (const int mode : {0, int{EFD_SEMAPHORE}}) {
    for (const uint64_t before : {0, 3, 1000}) {
      for (const uint64_t after : {0, 1, 3, 5000}) {
        const std::string a = state_of(before, mode);
        const std::string b = state_of(after, mode | EFD_NONBLOCK);
        const auto fd = kind.create(1, a, destination);
        ASSERT_TRUE(fd.ok());
        const auto updated = kind.update(fd->get(), a, b, destination);
        ASSERT_TRUE(updated.ok()) << updated.status();
        const bool many_reads = mode == EFD_SEMAPHORE && before > after + 64;
        EXPECT_EQ(*updated, !many_reads);
        if (*updated) {
          EXPECT_EQ(*kind.capture(open_file(fd->get()), source), b);
        }
      }
    }
  }
  const auto fd = kind.create(1, state_of(1, 0), destination);
  EXPECT_FALSE(*kind.update(fd->get(), state_of(1, 0), state_of(1, EFD_SEMAPHORE), destination));
}

TEST(Eventfd, HostileStateIsAnError) {
  FakeRestoreContext destination;
  EXPECT_FALSE(eventfd_kind().create(1, "\xff\xff", destination).ok());
  EXPECT_FALSE(eventfd_kind().recognise(open_file(0)));
  EXPECT_EQ(eventfd_kind().describe("\xff"), "eventfd (unreadable)");
}

}  // namespace
}  // namespace godwit::resource
