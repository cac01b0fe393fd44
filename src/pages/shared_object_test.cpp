#include "pages/shared_object.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <thread>

#include "pages/puppet_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t B = 0x2000'0000'0000;

UniqueFd memfd(uint64_t bytes) {
  UniqueFd fd(::memfd_create("shared", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  return fd;
}

UniqueFd copy_of(const UniqueFd& fd) { return UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

uint64_t blocks(const UniqueFd& fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd.get(), &st), 0);
  return static_cast<uint64_t>(st.st_blocks);
}

struct Changes {
  PageSet dirty;
  PageSet dropped;
};
Changes scan(SharedObjectTracker& tracker) {
  Changes changes;
  const absl::Status status = tracker.scan(changes.dirty, changes.dropped);
  EXPECT_TRUE(status.ok()) << status;
  return changes;
}

TEST(SharedObject, EveryWayToWriteAndToDropIsSeen) {
  const UniqueFd fd = memfd(4096 * P);
  auto* memory = static_cast<char*>(
      ::mmap(nullptr, 4096 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  memory[3 * P] = 1;
  memory[1000 * P] = 1;
  SharedObjectTracker tracker(copy_of(fd));
  EXPECT_EQ(scan(tracker).dirty, (PageSet{{3 * P, 4 * P}, {1000 * P, 1001 * P}}));
  EXPECT_TRUE(scan(tracker).dirty.empty());
  memory[1000 * P + 77] = 2;
  ASSERT_EQ(::pwrite(fd.get(), "x", 1, 5 * P), 1);
  memory[6 * P] = 0;  // populated, but zero
  const Changes second = scan(tracker);
  EXPECT_EQ(second.dirty, (PageSet{{5 * P, 6 * P}, {1000 * P, 1001 * P}}));
  EXPECT_TRUE(second.dropped.empty());
  ASSERT_EQ(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * P, P), 0);
  memory[3 * P] = 0;
  const uint64_t before = blocks(fd);
  const Changes third = scan(tracker);
  EXPECT_TRUE(third.dirty.empty());
  EXPECT_EQ(third.dropped, (PageSet{{3 * P, 4 * P}, {5 * P, 6 * P}}));
  EXPECT_EQ(blocks(fd), before) << "a scan populates nothing";
  ::munmap(memory, 4096 * P);
}

TEST(SharedObject, ContentsAndHolesArrive) {
  const UniqueFd from = memfd(600 * P + 10);
  const UniqueFd to = memfd(600 * P + 10);
  std::string text(300 * P, 'q');
  ASSERT_EQ(::pwrite(from.get(), text.data(), text.size(), 100 * P), ssize_t{300 * P});
  ASSERT_EQ(::pwrite(from.get(), "end", 3, 600 * P), 3);
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  UniqueFd near(fds[0]);
  const UniqueFd far(fds[1]);
  std::thread receiver([&] {
    const auto feed = stream::fd_feed(far.get());
    stream::Reader reader(*feed);
    for (auto frame = reader.next(); frame.ok(); frame = reader.next()) {
      if (const auto* pages = std::get_if<stream::Pages>(&*frame)) {
        EXPECT_EQ(pages->space, stream::kSharedSpace | 7);
        EXPECT_TRUE(apply_to_object(to.get(), *pages).ok());
      }
      if (const auto* dropped = std::get_if<stream::PagesDropped>(&*frame)) {
        EXPECT_TRUE(drop_from_object(to.get(), *dropped).ok());
      }
    }
  });
  const auto sink = stream::fd_sink(near.get());
  stream::Writer writer(*sink);
  ASSERT_TRUE(writer.preamble({}).ok());
  SharedObjectTracker tracker(copy_of(from));
  SendControl control;
  for (int round = 0; round < 2; ++round) {
    const Changes changes = scan(tracker);
    ASSERT_TRUE(writer.begin_epoch(round == 1).ok());
    ASSERT_TRUE(tracker.send(7, changes.dirty, writer, control).ok());
    ASSERT_TRUE(writer.pages_dropped(stream::kSharedSpace | 7, changes.dropped.runs()).ok());
    ASSERT_TRUE(writer.end_epoch().ok());
    ::fallocate(from.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 150 * P, 20 * P);
  }
  near.reset();
  receiver.join();
  std::string a(600 * P + 10, '\0');
  std::string b(600 * P + 10, '\1');
  ASSERT_EQ(::pread(from.get(), a.data(), a.size(), 0), ssize_t{600 * P + 10});
  ASSERT_EQ(::pread(to.get(), b.data(), b.size(), 0), ssize_t{600 * P + 10});
  EXPECT_TRUE(a == b);
  EXPECT_EQ(blocks(to), blocks(from));
}

TEST(SharedObject, OfAnotherProcessThroughItsMapping) {
  Puppet puppet;
  const auto at = static_cast<uint64_t>(puppet.call(SYS_mmap, B, 8 * P, PROT_READ | PROT_WRITE,
                                                    MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
                                                    static_cast<uint64_t>(-1), 0));
  ASSERT_EQ(at, B);
  puppet.poke(B + 2 * P, 5);
  auto maps = kernel::read_maps(puppet.pid());
  ASSERT_TRUE(maps.ok());
  for (const kernel::Mapping& mapping : *maps) {
    if (mapping.start != B) continue;
    EXPECT_TRUE(mapping.shared);
    auto fd = open_mapped_object(puppet.pid(), mapping, O_RDONLY);
    ASSERT_TRUE(fd.ok()) << fd.status();
    SharedObjectTracker tracker(*std::move(fd));
    EXPECT_EQ(scan(tracker).dirty, (PageSet{{2 * P, 3 * P}}));
    puppet.poke(B + 4 * P, 5);
    EXPECT_EQ(scan(tracker).dirty, (PageSet{{4 * P, 5 * P}}));
    puppet.call(SYS_madvise, B + 2 * P, P, MADV_REMOVE);
    EXPECT_EQ(scan(tracker).dropped, (PageSet{{2 * P, 3 * P}}));
    return;
  }
  FAIL() << "mapping not found";
}

}  // namespace
}  // namespace godwit::pages
