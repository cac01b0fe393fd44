#include "resource/fd_table/fd_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
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
  auto descriptors = Descriptors::read(holders);
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
