#include "resource/device/device.h"

#include <gtest/gtest.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "resource/device/device.pb.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

TEST(Device, EachRoundTripsWithItsFlags) {
  const FileKind& kind = device_kind();
  const FakeCaptureContext source;
  FakeRestoreContext destination;
  for (const char* path : {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}) {
    for (const int flags : {O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_NONBLOCK}) {
      const UniqueFd fd(::open(path, flags | O_CLOEXEC));
      ASSERT_TRUE(fd);
      const OpenFile file = open_file(fd.get());
      ASSERT_TRUE(kind.recognise(file));
      std::vector<Refusal> refusals;
      ASSERT_TRUE(kind.precheck(file, source, refusals).ok());
      EXPECT_TRUE(refusals.empty());
      const auto state = kind.capture(file, source);
      ASSERT_TRUE(state.ok());
      const auto made = kind.create(1, *state, destination);
      ASSERT_TRUE(made.ok()) << made.status();
      const OpenFile again = open_file(made->get());
      EXPECT_EQ(*kind.capture(again, source), *state);
      EXPECT_EQ(again.stat.st_rdev, file.stat.st_rdev);
      EXPECT_EQ(again.status_flags, file.status_flags);
    }
  }
}

TEST(Device, TerminalsAndOtherFilesAreTold) {
  const FileKind& kind = device_kind();
  const FakeCaptureContext source;
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  OpenFile file = open_file(null.get());
  file.stat.st_rdev = makedev(4, 64);  // ttyS0, which machines need not have
  ASSERT_TRUE(kind.recognise(file));
  std::vector<Refusal> refusals;
  ASSERT_TRUE(kind.precheck(file, source, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "fd.terminal");
  EXPECT_FALSE(kind.capture(file, source).ok());
  const UniqueFd pty(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(pty);
  EXPECT_FALSE(kind.recognise(open_file(pty.get())));
  const UniqueFd folder(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_FALSE(kind.recognise(open_file(folder.get())));
  const UniqueFd place(::open("/dev/null", O_PATH | O_CLOEXEC));
  EXPECT_FALSE(kind.recognise(open_file(place.get())));
}

TEST(Device, AnotherFileInItsPlaceIsAnError) {
  FakeRestoreContext destination;
  DeviceState state;
  state.set_path("/dev/null");
  state.set_major(1);
  state.set_minor(5);
  EXPECT_FALSE(device_kind().create(1, state.SerializeAsString(), destination).ok());
  state.set_path("/");
  EXPECT_FALSE(device_kind().create(1, state.SerializeAsString(), destination).ok());
  EXPECT_FALSE(device_kind().create(1, "\xff", destination).ok());
}

TEST(Device, UpdateSetsTheFlags) {
  const FileKind& kind = device_kind();
  const FakeCaptureContext source;
  FakeRestoreContext destination;
  const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto before = kind.capture(open_file(fd.get()), source);
  const auto made = kind.create(1, *before, destination);
  ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_NONBLOCK | O_APPEND), 0);
  const auto now = kind.capture(open_file(fd.get()), source);
  EXPECT_TRUE(*kind.update(made->get(), *before, *now, destination));
  EXPECT_EQ(*kind.capture(open_file(made->get()), source), *now);
}

}  // namespace
}  // namespace godwit::resource
