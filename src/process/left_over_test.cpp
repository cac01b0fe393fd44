// What movers leave that are killed while they attach their tracker.
#include "process/left_over.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernel/proc/maps.h"
#include "resource/process_tree/process_tree.h"
#include "tracee/batch.h"
#include "tracee/child_for_test.h"

namespace godwit::process {
namespace {

using tracee::StubArea;
using tracee::testing::Child;
using tracee::testing::Shared;
using tracee::testing::stop_task;
using tracee::testing::wait_until;

int program(Shared& shared) {
  for (uint64_t i = 1;; ++i) shared.word[0] = i;
}

std::vector<std::string> maps_of(HostPid pid) {
  std::vector<std::string> result;
  const auto maps = kernel::read_maps(pid);
  EXPECT_TRUE(maps.ok());
  for (const kernel::Mapping& each : *maps)
    result.push_back(fmt::format("{:x}-{:x} {}", each.start, each.end, each.path));
  return result;
}

std::vector<std::string> descriptors_of(HostPid pid) {
  std::vector<std::string> result;
  for (const auto& each :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid.value)))
    result.push_back(each.path().filename().string() + " " +
                     std::filesystem::read_symlink(each.path()).string());
  std::sort(result.begin(), result.end());
  return result;
}

// A mover that is killed at the end of `deeds`, with the task stopped in its hands.
void be_killed_after(const std::function<absl::Status(tracee::StoppedTask&)>& deeds, HostPid pid) {
  const pid_t mover = ::fork();
  ASSERT_GE(mover, 0);
  if (mover == 0) {
    auto task = stop_task(pid);
    if (task.ok() && deeds(*task).ok()) ::kill(::getpid(), SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(mover, &status, 0), mover);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the mover did not get that far";
}

class LeftOverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(program_.wait_word(0, 1));
    maps_ = maps_of(program_.pid());
    descriptors_ = descriptors_of(program_.pid());
  }
  void expect_as_before() {
    const auto translate = resource::PidTranslator::of(HostPid{::getpid()});
    ASSERT_TRUE(translate.ok());
    const absl::Status removed = remove_left_over({program_.pid()}, *translate);
    ASSERT_TRUE(removed.ok()) << message_of(removed);
    EXPECT_EQ(maps_of(program_.pid()), maps_);
    EXPECT_EQ(descriptors_of(program_.pid()), descriptors_);
    EXPECT_FALSE(*StubArea::used_home(program_.pid()));
    const uint64_t count = program_.word(0);
    EXPECT_TRUE(program_.wait_word(0, count + 1000)) << "the program does not run on";
  }
  Child program_{program};
  std::vector<std::string> maps_;
  std::vector<std::string> descriptors_;
};

TEST_F(LeftOverTest, NothingIsLeftAsItIs) { expect_as_before(); }

TEST_F(LeftOverTest, TheAreaAndTheDescriptor) {
  const ImagePid image = program_.image_pid();
  be_killed_after(
      [image](tracee::StoppedTask& task) -> absl::Status {
        GW_ASSIGN_OR_RETURN(StubArea area, StubArea::map(task, image, 1 << 16));
        tracee::RemoteSyscalls remote = area.single_calls(task);
        GW_RETURN_IF_ERROR(remote
                               .must(SYS_userfaultfd,
                                     {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0})
                               .status());
        ::kill(::getpid(), SIGKILL);  // inside the scope of the calls
        return absl::OkStatus();
      },
      program_.pid());
  EXPECT_TRUE(wait_until([&] { return descriptors_of(program_.pid()) != descriptors_; }));
  EXPECT_NE(maps_of(program_.pid()), maps_);
  EXPECT_TRUE(*StubArea::used_home(program_.pid()));
  expect_as_before();
}

// Killed between the call that maps the area and the one that makes it the stub's.
TEST_F(LeftOverTest, AnAreaWithNothingInItYet) {
  be_killed_after(
      [](tracee::StoppedTask& task) -> absl::Status {
        GW_ASSIGN_OR_RETURN(const RemoteAddress at, tracee::find_vdso_syscall(task.tid()));
        tracee::RemoteSyscalls remote(task, at);
        GW_RETURN_IF_ERROR(
            remote
                .must(SYS_mmap,
                      {StubArea::kPlaces.value, 1 << 16, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~uint64_t{0}, 0})
                .status());
        return remote.finish();
      },
      program_.pid());
  EXPECT_NE(maps_of(program_.pid()), maps_);
  expect_as_before();
}

// Each move that is killed leaves one more; all go.
TEST_F(LeftOverTest, OfSeveralMovers) {
  const ImagePid image = program_.image_pid();
  for (int i = 0; i < 3; ++i) {
    be_killed_after(
        [image](tracee::StoppedTask& task) { return StubArea::map(task, image, 1 << 16).status(); },
        program_.pid());
  }
  expect_as_before();
}

// The program's own userfaultfd, on which it has agreed with the kernel, is not ours to close.
TEST(LeftOver, TheProgramsOwnUserfaultfdStays) {
  Child program([](Shared& shared) {
    const int uffd =
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    uffdio_api api{};
    api.api = UFFD_API;
    shared.word[1] = uffd >= 0 && ::ioctl(uffd, UFFDIO_API, &api) == 0;
    for (uint64_t i = 1;; ++i) shared.word[0] = i;
    return 0;
  });
  ASSERT_TRUE(program.wait_word(0, 1));
  ASSERT_EQ(program.word(1), 1u);
  const auto before = descriptors_of(program.pid());
  const auto translate = resource::PidTranslator::of(HostPid{::getpid()});
  ASSERT_TRUE(translate.ok());
  ASSERT_TRUE(remove_left_over({program.pid()}, *translate).ok());
  EXPECT_EQ(descriptors_of(program.pid()), before);
}

// What a child has inherited of a tracker's: known by being the very same, not by its kind.
TEST(LeftOver, AnInheritedUserfaultfdOfOurs) {
  const auto make = [] {
    UniqueFd uffd(
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
    uffdio_api api{};
    api.api = UFFD_API;
    EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_API, &api), 0);
    return uffd;
  };
  std::vector<UniqueFd> ours;
  ours.push_back(make());
  const UniqueFd another = make();
  Child child(program);
  ASSERT_TRUE(child.wait_word(0, 1));
  const auto copies = copies_of(ours, child.pid());
  ASSERT_TRUE(copies.ok()) << copies.status();
  EXPECT_EQ(*copies, std::vector<int>{ours[0].get()});
  auto expected = descriptors_of(child.pid());
  std::erase(expected, fmt::format("{} anon_inode:[userfaultfd]", ours[0].get()));
  const auto translate = resource::PidTranslator::of(HostPid{::getpid()});
  ASSERT_TRUE(translate.ok());
  const absl::Status removed = remove_left_over({child.pid()}, *translate, ours);
  ASSERT_TRUE(removed.ok()) << message_of(removed);
  EXPECT_EQ(descriptors_of(child.pid()), expected);
  const uint64_t count = child.word(0);
  EXPECT_TRUE(child.wait_word(0, count + 1000)) << "the program does not run on";
}

}  // namespace
}  // namespace godwit::process
