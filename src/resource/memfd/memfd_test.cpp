#include "resource/memfd/memfd.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "kernel/huge_pages.h"
#include "kernel/huge_pages_for_test.h"
#include "resource/file_description.h"
#include "resource/memfd/memfd.pb.h"
#include "resource/regular_file/regular_file.h"
#include "resource/testing_contexts.h"
#include "tracee/batch.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

MemfdState parsed(const std::string& bytes) {
  MemfdState state;
  EXPECT_TRUE(state.ParseFromString(bytes));
  state.clear_object();
  return state;
}

UniqueFd finished(const std::string& bytes) {
  FakeRestoreContext destination;
  tracee::Batch batch;
  auto made = memfd_kind().create(1, bytes, destination);
  EXPECT_TRUE(made.ok()) << made.status();
  if (!made.ok()) return UniqueFd();
  const auto check = memfd_kind().finish(made->get(), bytes, {1}, 0, batch, destination);
  EXPECT_TRUE(check.ok()) << check.status();
  return *std::move(made);
}

TEST(Memfd, ContentSizeSealsOwnerAndFlags) {
  const FakeCaptureContext source;
  for (const int seals : {0, int{F_SEAL_SEAL}, F_SEAL_SHRINK | F_SEAL_GROW, int{F_SEAL_WRITE},
                          F_SEAL_FUTURE_WRITE | F_SEAL_SEAL}) {
    const UniqueFd fd(::memfd_create("a \n name", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(fd.get(), 8 << 20), 0);
    ASSERT_EQ(::pwrite(fd.get(), "begin", 5, 0), 5);
    ASSERT_EQ(::pwrite(fd.get(), "end", 3, (8 << 20) - 3), 3);
    ASSERT_EQ(::lseek(fd.get(), 11, SEEK_SET), 11);
    ASSERT_EQ(::fchown(fd.get(), 5, 6), 0);
    ASSERT_EQ(::fchmod(fd.get(), 0640), 0);
    ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_NONBLOCK | O_APPEND), 0);
    ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    const OpenFile file = open_file(fd.get());
    ASSERT_TRUE(memfd_kind().recognise(file));
    EXPECT_FALSE(regular_file_kind().recognise(file));
    std::vector<Refusal> refusals;
    ASSERT_TRUE(memfd_kind().precheck(file, source, refusals).ok());
    EXPECT_TRUE(refusals.empty());
    const auto state = memfd_kind().capture(file, source);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_LT(state->size(), 50'000U);
    const UniqueFd made = finished(*state);
    const OpenFile copy = open_file(made.get());
    EXPECT_EQ(copy.link, file.link);
    const auto again = memfd_kind().capture(copy, source);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(parsed(*again).DebugString(), parsed(*state).DebugString());
    EXPECT_EQ(::fcntl(made.get(), F_GET_SEALS), seals);
    char text[4] = {};
    EXPECT_EQ(::pread(made.get(), text, 3, (8 << 20) - 3), 3);
    EXPECT_STREQ(text, "end");
  }
}

TEST(Memfd, UpdateBringsNewContentAndSealsComeLast) {
  FakeRestoreContext destination;
  const FakeCaptureContext source;
  const UniqueFd fd(::memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::write(fd.get(), "first and long", 14), 14);
  const auto before = memfd_kind().capture(open_file(fd.get()), source);
  const auto made = memfd_kind().create(1, *before, destination);
  ASSERT_TRUE(made.ok());
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  ASSERT_EQ(::pwrite(fd.get(), "second", 6, 0), 6);
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL), 0);
  const auto now = memfd_kind().capture(open_file(fd.get()), source);
  EXPECT_TRUE(*memfd_kind().update(made->get(), *before, *now, destination));
  EXPECT_EQ(::fcntl(made->get(), F_GET_SEALS), 0);
  tracee::Batch batch;
  ASSERT_TRUE(memfd_kind().finish(made->get(), *now, {1}, 0, batch, destination).ok());
  const auto again = memfd_kind().capture(open_file(made->get()), source);
  EXPECT_EQ(parsed(*again).DebugString(), parsed(*now).DebugString());
}

TEST(Memfd, TwoDescriptionsShareOneFile) {
  const UniqueFd a(::memfd_create("shared", MFD_CLOEXEC));
  const auto b = reopen(a.get(), O_RDONLY);
  ASSERT_TRUE(b.ok());
  FakeCaptureContext source;
  const OpenFile& first = source.add(a.get(), 1);
  const OpenFile& second = source.add(b->get(), 2);
  const auto s1 = memfd_kind().capture(first, source);
  const auto s2 = memfd_kind().capture(second, source);
  ASSERT_TRUE(s1.ok() && s2.ok());
  for (const bool backwards : {false, true}) {
    FakeRestoreContext destination;
    for (const uint64_t id : {backwards ? 2UL : 1UL, backwards ? 1UL : 2UL}) {
      auto fd = memfd_kind().create(id, id == 1 ? *s1 : *s2, destination);
      ASSERT_TRUE(fd.ok()) << fd.status();
      destination.made[id] = *std::move(fd);
    }
    ASSERT_EQ(::pwrite(destination.description(1), "x", 1, 0), 1);
    char c = 0;
    EXPECT_EQ(::pread(destination.description(2), &c, 1, 0), 1);
    EXPECT_EQ(::fcntl(destination.description(2), F_GETFL) & O_ACCMODE, O_RDONLY);
  }
}

TEST(Memfd, HugePagesAndTheirHoles) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  const kernel::HugePagesForTest pool(8);
  if (!pool.there()) GTEST_SKIP() << "the kernel has no huge pages to give";
  const FakeCaptureContext source;
  const UniqueFd fd(::memfd_create(
      "huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | kernel::huge_size_flag(kHuge)));
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd.get(), 4 * kHuge), 0);
  void* memory = ::mmap(nullptr, 4 * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* bytes = static_cast<char*>(memory);
  std::memset(bytes + kHuge, 'h', kHuge);
  ASSERT_EQ(::lseek(fd.get(), 99, SEEK_SET), 99);
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_GROW), 0);
  ASSERT_TRUE(memfd_kind().recognise(open_file(fd.get())));
  std::vector<Refusal> refusals;
  ASSERT_TRUE(memfd_kind().precheck(open_file(fd.get()), source, refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const auto before = memfd_kind().capture(open_file(fd.get()), source);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(parsed(*before).huge_page_bytes(), kHuge);
  EXPECT_EQ(parsed(*before).extents_size(), 1);
  EXPECT_NE(memfd_kind().shared_object(*before), open_file(fd.get()).stat.st_ino);
  const UniqueFd made = finished(*before);
  EXPECT_EQ(kernel::huge_page_bytes_of(made.get()), kHuge);
  auto again = memfd_kind().capture(open_file(made.get()), source);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(parsed(*again).SerializeAsString(), parsed(*before).SerializeAsString());
  // One page more, and one that was there is a hole.
  bytes[3 * kHuge + 7] = 'm';
  ASSERT_EQ(::madvise(bytes + kHuge, kHuge, MADV_REMOVE), 0);
  const auto now = memfd_kind().capture(open_file(fd.get()), source);
  FakeRestoreContext destination;
  EXPECT_TRUE(*memfd_kind().update(made.get(), *before, *now, destination));
  again = memfd_kind().capture(open_file(made.get()), source);
  EXPECT_EQ(parsed(*again).SerializeAsString(), parsed(*now).SerializeAsString());
  ::munmap(memory, 4 * kHuge);
}

TEST(Memfd, HostileHugePagesAreAnError) {
  FakeRestoreContext destination;
  MemfdState state;
  state.set_name("n");
  state.set_flags(O_RDWR);
  state.set_has_content(true);
  state.set_size(uint64_t{2} << 20);
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4096}, uint64_t{3} << 20, UINT64_MAX}) {
    state.set_huge_page_bytes(bytes);
    EXPECT_FALSE(memfd_kind().create(1, state.SerializeAsString(), destination).ok());
  }
  state.set_huge_page_bytes(uint64_t{2} << 20);
  for (const uint64_t offset : {uint64_t{4096}, uint64_t{2} << 20, UINT64_MAX / 2 + 1}) {
    state.clear_extents();
    state.add_extents()->set_offset(offset);
    state.mutable_extents(0)->set_data(std::string(size_t{2} << 20, 'x'));
    EXPECT_FALSE(memfd_kind().create(1, state.SerializeAsString(), destination).ok());
  }
  state.clear_extents();
  state.add_extents()->set_data("a part of a page");
  EXPECT_FALSE(memfd_kind().create(1, state.SerializeAsString(), destination).ok());
}

TEST(Memfd, TooBigIsRefusedAndHostileStateIsAnError) {
  const UniqueFd fd(::memfd_create("big", MFD_CLOEXEC));
  OpenFile file = open_file(fd.get());
  file.stat.st_blocks = (int64_t{65} << 20) / 512;
  std::vector<Refusal> refusals;
  ASSERT_TRUE(memfd_kind().precheck(file, FakeCaptureContext(), refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "memfd.size");
  FakeRestoreContext destination;
  MemfdState state;
  state.set_name(std::string(300, 'n'));
  EXPECT_FALSE(memfd_kind().create(1, state.SerializeAsString(), destination).ok());
  state.set_name("n");
  state.set_flags(O_RDWR);
  state.set_has_content(true);
  state.add_extents()->set_data("beyond its size");
  EXPECT_FALSE(memfd_kind().create(1, state.SerializeAsString(), destination).ok());
  EXPECT_FALSE(memfd_kind().create(1, "\xff", destination).ok());
}

}  // namespace
}  // namespace godwit::resource
