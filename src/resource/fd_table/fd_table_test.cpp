#include "resource/fd_table/fd_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>

#include "kernel/syscalls.h"

namespace godwit::resource {
namespace {

using ::testing::ElementsAre;

FdTableState table_of(std::initializer_list<std::tuple<int, uint64_t, bool>> entries) {
  FdTableState table;
  for (const auto& [fd, description, close_on_exec] : entries) {
    auto* entry = table.add_entries();
    entry->set_fd(fd);
    entry->set_description(description);
    entry->set_close_on_exec(close_on_exec);
  }
  return table;
}

std::vector<int> numbers(const std::vector<FdTableState::Entry>& entries) {
  std::vector<int> result;
  for (const auto& entry : entries) result.push_back(entry.fd());
  return result;
}

TEST(CompareTest, ClosesPlacesAndFlags) {
  const auto now = table_of({{0, 1, false}, {1, 2, false}, {3, 3, false}, {9, 4, false}});
  const auto wanted = table_of({{0, 1, false}, {1, 5, false}, {3, 3, true}, {4, 3, false}});
  const FdTableChange change = compare_fd_tables(now, wanted, [](uint64_t) { return false; });
  EXPECT_THAT(change.close, ElementsAre(1, 9));
  EXPECT_THAT(numbers(change.place), ElementsAre(1, 4));
  EXPECT_THAT(numbers(change.set_flags), ElementsAre(3));
}

TEST(CompareTest, WhatWasRemadeIsPlacedAgain) {
  const auto table = table_of({{5, 7, false}, {6, 8, false}});
  const FdTableChange change = compare_fd_tables(table, table, [](uint64_t id) { return id == 7; });
  EXPECT_THAT(change.close, ElementsAre(5));
  EXPECT_THAT(numbers(change.place), ElementsAre(5));
}

// One of every sort, some of them twice.
std::vector<UniqueFd> some_files() {
  std::vector<UniqueFd> fds;
  const auto add = [&](int fd) { fds.emplace_back(fd); };
  add(::open("/dev/null", O_RDWR | O_CLOEXEC));
  add(::open("/", O_PATH | O_CLOEXEC));
  add(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  add(::eventfd(3, EFD_CLOEXEC));
  add(::eventfd(3, EFD_CLOEXEC | EFD_NONBLOCK));
  add(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  add(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  add(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  for (size_t i = 0, n = fds.size(); i < n; ++i) add(::fcntl(fds[i].get(), F_DUPFD_CLOEXEC, 0));
  return fds;
}

TEST(FileViewsTest, ShowWhatSystemCallsSay) {
  const auto views = FileViews::open(512);
  if (!views.ok()) GTEST_SKIP() << "no views of files here: " << views.status();
  const std::vector<UniqueFd> fds = some_files();
  ASSERT_EQ(::fchown(fds[5].get(), 7, 8), 0);
  ASSERT_EQ(::fcntl(fds[7].get(), F_SETOWN, ::getpid()), 0);
  const HostPid self{::getpid()};
  const auto all = (*views)->read(self);
  ASSERT_TRUE(all.ok()) << all.status();
  std::map<int, const FileView*> by_number;
  int last = -1;
  for (const FileView& view : *all) {
    EXPECT_GT(static_cast<int>(view.fd), last);
    last = static_cast<int>(view.fd);
    by_number[last] = &view;
  }
  for (size_t i = 0; i < fds.size(); ++i) {
    const int fd = fds[i].get();
    ASSERT_TRUE(by_number.contains(fd));
    const FileView& view = *by_number[fd];
    struct stat stat {};
    ASSERT_EQ(::fstat(fd, &stat), 0);
    EXPECT_EQ(static_cast<int>(view.flags), ::fcntl(fd, F_GETFL)) << i;
    EXPECT_EQ(view.mode, stat.st_mode) << i;
    EXPECT_EQ(view.uid, stat.st_uid) << i;
    EXPECT_EQ(view.gid, stat.st_gid) << i;
    EXPECT_EQ(view.is_tcp, i % 8 == 7) << i;
    EXPECT_EQ(view.owner != 0, i % 8 == 7) << i;
    if (S_ISSOCK(stat.st_mode)) {
      EXPECT_EQ(view.inode, stat.st_ino) << i;
    }
    for (const UniqueFd& other : fds) {
      bool same = false;
      ASSERT_TRUE(kernel::kcmp_same_file(self, fd, self, other.get(), same).ok());
      EXPECT_EQ(view.file == by_number[other.get()]->file, same);
    }
  }
}

TEST(FileViewsTest, TooManyFilesAreAnErrorAndNoneAreLost) {
  const auto few = FileViews::open(4);
  if (!few.ok()) GTEST_SKIP() << "no views of files here: " << few.status();
  const std::vector<UniqueFd> fds = some_files();
  EXPECT_EQ((*few)->read({::getpid()}).status().code(), absl::StatusCode::kOutOfRange);
}

class NoCapture final : public CaptureContext {
 public:
  bool final() const override { return true; }
  uint64_t description_at(ImagePid, int) const override { return 0; }
  std::vector<const OpenFile*> with_inode(dev_t, ino_t) const override { return {}; }
  ino_t stdio_inode(int) const override { return 0; }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return action();
  }
  HostPid init_pid() const override { return {::getpid()}; }
};

TEST(DescriptorsTest, AReadingByViewsIsTheSame) {
  const auto views = FileViews::open(512);
  if (!views.ok()) GTEST_SKIP() << "no views of files here: " << views.status();
  const std::vector<UniqueFd> fds = some_files();
  const HostPid self{::getpid()};
  const auto pidfd = kernel::pidfd_open(self);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();
  const FdHolder holders[] = {{{self.value}, self, pidfd->get()}};
  const NoCapture context;
  const Descriptors::KnownFiles known;
  const auto by_views =
      Descriptors::read(holders, {.views = views->get(), .known = &known, .context = &context});
  ASSERT_TRUE(by_views.ok()) << by_views.status();
  const auto one_by_one = Descriptors::read(holders, {});
  ASSERT_TRUE(one_by_one.ok()) << one_by_one.status();
  for (const UniqueFd& fd : fds) {
    const uint64_t id = by_views->description_at({self.value}, fd.get());
    EXPECT_NE(id, 0U);
    EXPECT_EQ(id, one_by_one->description_at({self.value}, fd.get()));
  }
}

// Holds a record lock of its second file and has another kind of its third. Another process, since
// closing a duplicate gives up the locks of whoever closes it.
class LockOwner {
 public:
  explicit LockOwner(size_t files) {
    for (size_t i = 0; i < files; ++i)
      fds_.emplace_back(::open(::testing::TempDir().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    const UniqueFd done(::eventfd(0, EFD_CLOEXEC));
    pid_ = ::fork();
    if (pid_ == 0) {
      struct flock lock {};
      lock.l_type = F_WRLCK;
      lock.l_start = 10;
      lock.l_len = 20;
      if (::fcntl(fds_[1].get(), F_SETLK, &lock) != 0 || ::flock(fds_[2].get(), LOCK_EX) != 0 ||
          ::eventfd_write(done.get(), 1) != 0)
        ::_exit(1);
      for (;;) ::pause();
    }
    eventfd_t value = 0;
    EXPECT_EQ(::eventfd_read(done.get(), &value), 0);
  }
  ~LockOwner() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  LockOwner(const LockOwner&) = delete;
  LockOwner& operator=(const LockOwner&) = delete;
  HostPid pid() const { return {pid_}; }
  int locked() const { return fds_[1].get(); }

 private:
  std::vector<UniqueFd> fds_;
  pid_t pid_ = -1;
};

// By views, asked one by one, and after a look at the machine's list where files are many.
TEST(DescriptorsTest, RecordLocksAreFound) {
  const auto views = FileViews::open(1024);
  const NoCapture context;
  const Descriptors::KnownFiles known;
  for (const size_t files : {3, 300}) {
    const LockOwner owner(files);
    const ImagePid pid{2};
    const auto pidfd = kernel::pidfd_open(owner.pid());
    ASSERT_TRUE(pidfd.ok()) << pidfd.status();
    const FdHolder holders[] = {{pid, owner.pid(), pidfd->get()}};
    std::vector<Descriptors::Hints> ways = {{}};
    if (views.ok()) ways.push_back({.views = views->get(), .known = &known, .context = &context});
    for (const Descriptors::Hints& hints : ways) {
      auto read = Descriptors::read(holders, hints);
      ASSERT_TRUE(read.ok()) << read.status();
      ASSERT_TRUE(read->read_locks().ok());
      const FdTableState& table = read->table(pid);
      ASSERT_EQ(table.locks_size(), 1) << files;
      EXPECT_EQ(table.locks(0).fd(), owner.locked());
      EXPECT_EQ(table.locks(0).lock().start(), 10);
      EXPECT_EQ(table.locks(0).lock().length(), 20);
      for (const auto& description : read->descriptions())
        EXPECT_EQ(description.file.process_locks, description.file.remote_fd == owner.locked());
    }
  }
}

// However many opens of one inode, and whatever an earlier reading says of them.
TEST(DescriptorsTest, ManyFilesOfOneInodeAreToldApart) {
  std::vector<UniqueFd> fds;
  const auto add = [&](int fd) { fds.emplace_back(fd); };
  for (int i = 0; i < 40; ++i) {
    add(::open("/dev/null", O_RDWR | O_CLOEXEC));
    add(::eventfd(0, EFD_CLOEXEC));
    if (i % 4 == 0) add(::fcntl(fds[static_cast<size_t>(i)].get(), F_DUPFD_CLOEXEC, 0));
  }
  const HostPid self{::getpid()};
  const ImagePid pid{self.value};
  const auto pidfd = kernel::pidfd_open(self);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();
  const FdHolder holders[] = {{pid, self, pidfd->get()}};
  FileRanks ranks;
  const auto check = [&] {
    auto read = Descriptors::read(holders, {.ranks = &ranks});
    ASSERT_TRUE(read.ok()) << read.status();
    for (const UniqueFd& a : fds)
      for (const UniqueFd& b : fds) {
        bool same = false;
        ASSERT_TRUE(kernel::kcmp_same_file(self, a.get(), self, b.get(), same).ok());
        EXPECT_EQ(read->description_at(pid, a.get()) == read->description_at(pid, b.get()), same)
            << a.get() << " and " << b.get();
      }
    ranks = read->ranks();
    EXPECT_GE(ranks.size(), fds.size());
  };
  check();
  check();                                    // with right hints
  for (size_t i = 0; i < fds.size(); i += 3)  // with some that are wrong by now
    ASSERT_EQ(::dup2(fds[(i + 7) % fds.size()].get(), fds[i].get()), fds[i].get());
  fds[1].reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  check();
  for (auto& [descriptor, rank] : ranks) rank = 1000 - rank;
  check();
}

// A name of a unix socket opened with O_PATH is a file, and each open another.
TEST(DescriptorsTest, ThePathOfASocketIsNoSocket) {
  const std::string path = ::testing::TempDir() + "godwit_fd_table_" + std::to_string(::getpid());
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{.sun_family = AF_UNIX, .sun_path = {}};
  path.copy(name.sun_path, sizeof name.sun_path - 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  const UniqueFd a(::open(path.c_str(), O_PATH | O_CLOEXEC));
  const UniqueFd b(::open(path.c_str(), O_PATH | O_CLOEXEC));
  ::unlink(path.c_str());
  const HostPid self{::getpid()};
  const ImagePid pid{self.value};
  const auto pidfd = kernel::pidfd_open(self);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();
  const FdHolder holders[] = {{pid, self, pidfd->get()}};
  auto read = Descriptors::read(holders, {});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_NE(read->description_at(pid, a.get()), read->description_at(pid, b.get()));
}

TEST(DescriptorsTest, DuplicatesShareADescriptionAndSeparateOpensDoNot) {
  const int event = ::eventfd(3, 0);
  const int copy = ::dup(event);
  const int other = ::eventfd(4, 0);
  const int null_a = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  const int null_b = ::open("/dev/null", O_RDWR);
  const HostPid self{::getpid()};
  const auto pidfd = kernel::pidfd_open(self);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();
  const FdHolder holders[] = {{{self.value}, self, pidfd->get()}};
  auto descriptors = Descriptors::read(holders, {});
  ASSERT_TRUE(descriptors.ok()) << descriptors.status();
  ASSERT_TRUE(descriptors->read_close_on_exec(holders).ok());
  const ImagePid pid{self.value};
  EXPECT_NE(descriptors->description_at(pid, event), 0U);
  EXPECT_EQ(descriptors->description_at(pid, event), descriptors->description_at(pid, copy));
  EXPECT_NE(descriptors->description_at(pid, event), descriptors->description_at(pid, other));
  EXPECT_NE(descriptors->description_at(pid, null_a), descriptors->description_at(pid, null_b));
  for (const auto& entry : descriptors->table(pid).entries()) {
    if (entry.fd() == null_a || entry.fd() == null_b) {
      EXPECT_EQ(entry.close_on_exec(), entry.fd() == null_a);
    }
  }
  for (const int fd : {event, copy, other, null_a, null_b}) ::close(fd);
}

}  // namespace
}  // namespace godwit::resource
