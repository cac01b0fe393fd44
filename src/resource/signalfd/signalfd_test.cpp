#include "resource/signalfd/signalfd.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

TEST(Signalfd, MaskAndFlagsRoundTripAndASignalIsRead) {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGUSR1);
  ::sigaddset(&set, SIGRTMAX);
  const UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  const FakeCaptureContext source;
  FakeRestoreContext destination;
  const FileKind& kind = signalfd_kind();
  ASSERT_TRUE(kind.recognise(open_file(fd.get())));
  const auto state = kind.capture(open_file(fd.get()), source);
  ASSERT_TRUE(state.ok()) << state.status();
  const auto made = kind.create(1, *state, destination);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(*kind.capture(open_file(made->get()), source), *state);

  sigset_t old;
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &set, &old), 0);
  ASSERT_EQ(::pthread_kill(::pthread_self(), SIGUSR1), 0);
  signalfd_siginfo info{};
  EXPECT_EQ(::read(made->get(), &info, sizeof info), static_cast<ssize_t>(sizeof info));
  EXPECT_EQ(info.ssi_signo, static_cast<uint32_t>(SIGUSR1));
  EXPECT_EQ(::read(made->get(), &info, sizeof info), -1);
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);

  sigset_t other;
  ::sigemptyset(&other);
  ::sigaddset(&other, SIGHUP);
  const UniqueFd second(::signalfd(-1, &other, SFD_CLOEXEC));
  const auto now = kind.capture(open_file(second.get()), source);
  EXPECT_NE(*now, *state);
  EXPECT_TRUE(*kind.update(made->get(), *state, *now, destination));
  EXPECT_EQ(*kind.capture(open_file(made->get()), source), *now);
  EXPECT_FALSE(kind.create(1, "\xff", destination).ok());
}

}  // namespace
}  // namespace godwit::resource
