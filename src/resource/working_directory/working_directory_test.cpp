#include "resource/working_directory/working_directory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel/syscalls.h"
#include "resource/testing_tasks.h"
#include "resource/working_directory/working_directory.pb.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/godwit-cwd-XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    path_ = name;
  }
  ~Folder() { ::rmdir(path_.c_str()); }
  std::string in(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string cwd_of(const StoppedChild& child) {
  return kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/cwd", child.pid())).value();
}

void go(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), 0700) != 0 || ::chmod(path.c_str(), mode) != 0 ||
      ::chown(path.c_str(), 71, 72) != 0 || ::chdir(path.c_str()) != 0)
    ::_exit(110);
}

TEST(WorkingDirectoryTest, ByItsPath) {
  const Folder folder;
  // The name of one that was not removed may look as if it was.
  const std::string path = folder.in("here (deleted)");
  StoppedChild source([&] { go(path, 0755); });
  const std::string state = source.capture(working_directory_resource()).value();
  StoppedChild husk;
  const absl::Status restored = husk.restore(working_directory_resource(), state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(cwd_of(husk), path);
  EXPECT_EQ(husk.capture(working_directory_resource()).value(), state);
  ::rmdir(path.c_str());
}

TEST(WorkingDirectoryTest, ARemovedOneIsRemovedThere) {
  const Folder folder;
  const std::string path = folder.in("gone");
  StoppedChild source([&] {
    go(path, 01750);
    ::rmdir(path.c_str());
  });
  std::vector<Refusal> refusals;
  ASSERT_TRUE(working_directory_resource().precheck(source.view(), refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const std::string state = source.capture(working_directory_resource()).value();
  StoppedChild husk({}, [] {
    struct stat seen {};
    if (::stat(".", &seen) != 0 || (seen.st_mode & 07777) != 01750 || seen.st_uid != 71 ||
        seen.st_gid != 72)
      return 1;
    char path_there[100];
    return ::getcwd(path_there, sizeof path_there) == nullptr && errno == ENOENT ? 0 : 2;
  });
  const absl::Status restored = husk.restore(working_directory_resource(), state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(cwd_of(husk), path + " (deleted)");
  EXPECT_EQ(husk.capture(working_directory_resource()).value(), state);
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  EXPECT_EQ(husk.finish(), 0);
}

// What has its name now is left alone; so is the folder of one that is gone with its parent.
TEST(WorkingDirectoryTest, ARemovedOneWithoutItsPlace) {
  const Folder folder;
  const std::string path = folder.in("gone");
  StoppedChild source([&] {
    go(path, 0700);
    ::rmdir(path.c_str());
  });
  const std::string state = source.capture(working_directory_resource()).value();
  ASSERT_EQ(::mkdir(path.c_str(), 0711), 0);
  StoppedChild husk;
  const absl::Status restored = husk.restore(working_directory_resource(), state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(cwd_of(husk), fmt::format("/.removed-{} (deleted)", husk.pid()));
  EXPECT_EQ(::rmdir(path.c_str()), 0);
  WorkingDirectoryState parsed;
  ASSERT_TRUE(parsed.ParseFromString(state));
  parsed.set_path(path + "/deeper/../..");
  ASSERT_TRUE(husk.restore(working_directory_resource(), parsed.SerializeAsString()).ok());
  EXPECT_EQ(cwd_of(husk), fmt::format("/.removed-{} (deleted)", husk.pid()));
  parsed.set_path("no slash");
  EXPECT_FALSE(husk.restore(working_directory_resource(), parsed.SerializeAsString()).ok());
}

}  // namespace
}  // namespace godwit::resource
