#include "resource/fd_table/fd_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

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
    auto read = Descriptors::read(holders, ranks);
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
  auto read = Descriptors::read(holders, FileRanks());
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
  auto descriptors = Descriptors::read(holders, FileRanks());
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
