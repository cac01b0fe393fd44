#include "resource/inotify/inotify.h"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>

#include "resource/inotify/inotify.pb.h"
#include "resource/testing_contexts.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

class InotifyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
    char name[] = "/tmp/godwit-inotify-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    ::mkdir((folder_ + "/inner").c_str(), 0700);
    ::close(::open((folder_ + "/file").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ::link((folder_ + "/file").c_str(), (folder_ + "/other name").c_str());
    ::symlink("nowhere", (folder_ + "/link").c_str());
    fd_.reset(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    ASSERT_TRUE(fd_);
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  int watch(const std::string& name, uint32_t mask) {
    const int number = ::inotify_add_watch(fd_.get(), (folder_ + name).c_str(), mask);
    EXPECT_GT(number, 0);
    return number;
  }
  void empty() {
    char bytes[4096];
    while (::read(fd_.get(), bytes, sizeof bytes) > 0) {
    }
  }
  InotifyState captured(int fd) {
    InotifyState state;
    const auto bytes = inotify_kind().capture(open_file(fd), source_);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_TRUE(state.ParseFromString(bytes.value_or("")));
    return state;
  }

  FakeCaptureContext source_;
  std::string folder_;
  UniqueFd fd_;
};

TEST_F(InotifyTest, EveryWatchRoundTrips) {
  watch("/inner", IN_CREATE);
  const int second = watch("", IN_ALL_EVENTS | IN_EXCL_UNLINK);
  watch("/file", IN_MODIFY | IN_ONESHOT);
  watch("/link", IN_ATTRIB | IN_DONT_FOLLOW);
  ASSERT_EQ(::inotify_rm_watch(fd_.get(), second), 0);
  watch("", IN_DELETE | IN_EXCL_UNLINK);
  empty();
  const InotifyState state = captured(fd_.get());
  ASSERT_EQ(state.watches_size(), 4);
  EXPECT_EQ(state.watches(0).number(), 5);
  EXPECT_EQ(state.watches(0).path(), folder_);
  EXPECT_EQ(state.watches(0).mask(), static_cast<uint32_t>(IN_DELETE | IN_EXCL_UNLINK));
  EXPECT_EQ(state.watches(1).path(), folder_ + "/link");
  EXPECT_EQ(state.watches(2).mask(), IN_MODIFY | IN_ONESHOT);
  EXPECT_EQ(state.next_number(), 6);
  EXPECT_TRUE((state.flags() & O_NONBLOCK) != 0);

  // The calls of finish() are made by a process that holds it.
  FakeRestoreContext destination;
  const std::string bytes = state.SerializeAsString();
  const auto made = inotify_kind().create(1, bytes, destination);
  ASSERT_TRUE(made.ok()) << made.status();
  const int number = made->get();
  testing::StoppedChild husk;  // has our descriptors by the same numbers
  tracee::Batch batch;
  const auto check = inotify_kind().finish(number, bytes, {1}, number, batch, destination);
  ASSERT_TRUE(check.ok()) << check.status();
  const absl::Status run = husk.run(batch);
  ASSERT_TRUE(run.ok()) << run;
  EXPECT_TRUE((*check)(batch).ok()) << (*check)(batch);
  EXPECT_EQ(captured(number).DebugString(), state.DebugString());
  EXPECT_EQ(::inotify_add_watch(number, (folder_ + "/inner").c_str(), IN_MASK_ADD | IN_DELETE), 1);
}

TEST_F(InotifyTest, UnreadEventsMakeTheFreezeWait) {
  watch("", IN_CREATE);
  ::mkdir((folder_ + "/new").c_str(), 0700);
  EXPECT_EQ(inotify_kind().capture(open_file(fd_.get()), source_).status().code(),
            absl::StatusCode::kUnavailable);
  source_.is_final = false;
  EXPECT_TRUE(inotify_kind().capture(open_file(fd_.get()), source_).ok());
}

TEST_F(InotifyTest, WhatHasNoNameIsRefused) {
  watch("/file", IN_MODIFY);
  // The name that goes last: without anybody who has it open the watch goes with it.
  const UniqueFd held(::open((folder_ + "/other name").c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<Refusal> refusals;
  ASSERT_EQ(::unlink((folder_ + "/file").c_str()), 0);
  ASSERT_TRUE(inotify_kind().precheck(open_file(fd_.get()), source_, refusals).ok());
  // It has another one.
  EXPECT_EQ(captured(fd_.get()).watches(0).path(), folder_ + "/other name");
  ASSERT_EQ(::unlink((folder_ + "/other name").c_str()), 0);
  ASSERT_TRUE(inotify_kind().precheck(open_file(fd_.get()), source_, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "inotify.unnamed");
}

TEST_F(InotifyTest, BytesThatAreNoneAreAnError) {
  FakeRestoreContext destination;
  EXPECT_FALSE(inotify_kind().create(1, "\xff", destination).ok());
  InotifyState state;
  InotifyState::Watch& one = *state.add_watches();
  one.set_number(1);
  one.set_path("relative");
  EXPECT_FALSE(inotify_kind().create(1, state.SerializeAsString(), destination).ok());
  one.set_path("/x");
  one.set_number(0);
  EXPECT_FALSE(inotify_kind().create(1, state.SerializeAsString(), destination).ok());
}

}  // namespace
}  // namespace godwit::resource
