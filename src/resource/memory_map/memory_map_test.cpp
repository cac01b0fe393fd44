#include "resource/memory_map/memory_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/huge_pages.h"
#include "kernel/syscalls.h"

namespace godwit::resource {
namespace {

MappingState mapping(uint64_t start, uint64_t end, MappingState::Kind kind, uint32_t protection,
                     uint32_t flags = 0, const std::string& path = "", uint64_t offset = 0) {
  MappingState state;
  state.set_start(start);
  state.set_end(end);
  state.set_kind(kind);
  state.set_protection(protection);
  state.set_flags(flags);
  state.set_path(path);
  state.set_offset(offset);
  return state;
}

MemoryMapState map_of(std::initializer_list<MappingState> mappings) {
  MemoryMapState map;
  for (const MappingState& one : mappings) *map.add_mappings() = one;
  return map;
}

constexpr auto kAnon = MappingState::KIND_ANONYMOUS;
constexpr auto kFile = MappingState::KIND_PRIVATE_FILE;
constexpr uint32_t kRw = PROT_READ | PROT_WRITE;

size_t calls(const MemoryMapState& now, const MemoryMapState& wanted, int* opened = nullptr) {
  tracee::Batch batch;
  int asked = 0;
  const absl::Status status = add_memory_map_calls(
      now, wanted,
      [&](const MappingState&) -> absl::StatusOr<Backing> {
        ++asked;
        return Backing{.fd = 3};
      },
      batch);
  EXPECT_TRUE(status.ok()) << status;
  if (opened != nullptr) *opened = asked;
  return batch.size();
}

TEST(MemoryMapTest, EqualMapsNeedNoCall) {
  const auto map = map_of(
      {mapping(0x1000, 0x5000, kAnon, kRw), mapping(0x8000, 0x9000, kFile, PROT_READ, 0, "/f", 0)});
  EXPECT_EQ(calls(map, map), 0U);
}

TEST(MemoryMapTest, MergedAndSplitMappingsAreEqual) {
  const auto split =
      map_of({mapping(0x1000, 0x3000, kAnon, kRw), mapping(0x3000, 0x5000, kAnon, kRw)});
  const auto merged = map_of({mapping(0x1000, 0x5000, kAnon, kRw)});
  EXPECT_EQ(calls(split, merged), 0U);
  EXPECT_EQ(calls(merged, split), 0U);
}

TEST(MemoryMapTest, GrowthMapsOnlyTheNewPart) {
  const auto now = map_of({mapping(0x1000, 0x3000, kAnon, kRw)});
  const auto wanted = map_of({mapping(0x1000, 0x8000, kAnon, kRw)});
  EXPECT_EQ(calls(now, wanted), 1U);  // mmap
  EXPECT_EQ(calls(wanted, now), 1U);  // munmap
}

TEST(MemoryMapTest, AnotherProtectionIsAnMprotect) {
  const auto now = map_of({mapping(0x1000, 0x3000, kAnon, kRw)});
  const auto wanted =
      map_of({mapping(0x1000, 0x2000, kAnon, PROT_READ), mapping(0x2000, 0x3000, kAnon, kRw)});
  EXPECT_EQ(calls(now, wanted), 1U);
}

TEST(MemoryMapTest, AnotherFileOrOffsetIsMappedAnew) {
  const auto now = map_of({mapping(0x1000, 0x3000, kFile, PROT_READ, 0, "/a", 0x1000)});
  int opened = 0;
  EXPECT_EQ(
      calls(now, map_of({mapping(0x1000, 0x3000, kFile, PROT_READ, 0, "/b", 0x1000)}), &opened),
      2U);  // munmap, mmap
  EXPECT_EQ(opened, 1);
  EXPECT_EQ(calls(now, map_of({mapping(0x1000, 0x3000, kFile, PROT_READ, 0, "/a", 0x2000)})), 2U);
  // The same file seen from a later page on is the same mapping, cut.
  EXPECT_EQ(calls(now, map_of({mapping(0x2000, 0x3000, kFile, PROT_READ, 0, "/a", 0x2000)})), 1U);
}

TEST(MemoryMapTest, WhatIsUnmappedOrMappedAnewIsReplaced) {
  const auto now =
      map_of({mapping(0x1000, 0x3000, kAnon, kRw), mapping(0x4000, 0x6000, kFile, kRw, 0, "/a", 0),
              mapping(0x8000, 0x9000, kAnon, kRw)});
  EXPECT_TRUE(replaced_ranges(now, now).empty());
  // Another protection keeps what is there, a part that is gone or of another file does not.
  const auto wanted =
      map_of({mapping(0x1000, 0x2000, kAnon, PROT_READ), mapping(0x4000, 0x6000, kAnon, kRw),
              mapping(0x8000, 0x9000, kAnon, kRw)});
  bool hit[10] = {};
  for (const AddressRange& range : replaced_ranges(now, wanted))
    for (uint64_t page = range.start; page < range.end; page += 0x1000) hit[page / 0x1000] = true;
  const bool expected[10] = {false, false, true, false, true, true};
  for (size_t page = 0; page < 10; ++page) EXPECT_EQ(hit[page], expected[page]) << page;
}

TEST(MemoryMapTest, AdviceAndLocksAreCalls) {
  const auto now = map_of({mapping(0x1000, 0x3000, kAnon, kRw)});
  const auto wanted = map_of({mapping(0x1000, 0x3000, kAnon, kRw, kMapDontFork | kMapLocked)});
  EXPECT_EQ(calls(now, wanted), 2U);
  EXPECT_EQ(calls(wanted, now), 2U);
}

TEST(MemoryMapTest, HugePagesAreMappedAsSuch) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  auto huge = mapping(4 * kHuge, 8 * kHuge, kAnon, kRw);
  const auto ordinary = map_of({huge});
  huge.set_huge_page_bytes(kHuge);
  const auto wanted = map_of({huge});
  EXPECT_EQ(calls(wanted, wanted), 0U);
  EXPECT_EQ(calls(ordinary, wanted), 2U);  // munmap, mmap
  EXPECT_EQ(calls(wanted, ordinary), 2U);
  tracee::Batch batch;
  const auto none = [](const MappingState&) -> absl::StatusOr<Backing> { return Backing{}; };
  // A hostile state.
  for (const uint64_t bytes : {uint64_t{4096}, uint64_t{3} << 20, UINT64_MAX}) {
    huge.set_huge_page_bytes(bytes);
    EXPECT_FALSE(add_memory_map_calls({}, map_of({huge}), none, batch).ok());
  }
  huge.set_huge_page_bytes(kHuge);
  huge.set_end(8 * kHuge - 4096);
  EXPECT_FALSE(add_memory_map_calls({}, map_of({huge}), none, batch).ok());
}

TEST(MemoryMapTest, HugePagesAreCaptured) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  const HostPid self{::getpid()};
  // Nothing is reserved and nothing touched: no pool is needed.
  const auto map = [](int flags, int fd = -1) {
    return ::mmap(nullptr, kHuge, PROT_READ, flags | MAP_NORESERVE, fd, 0);
  };
  const auto fd = kernel::memfd_create("huge", MFD_HUGETLB | kernel::huge_size_flag(kHuge));
  ASSERT_TRUE(fd.ok()) << fd.status();
  ASSERT_EQ(::ftruncate(fd->get(), kHuge), 0);
  const int anonymous =
      MAP_ANONYMOUS | MAP_HUGETLB | static_cast<int>(kernel::huge_size_flag(kHuge));
  void* own = map(MAP_PRIVATE | anonymous);
  void* shared = map(MAP_SHARED | anonymous);
  void* file = map(MAP_SHARED, fd->get());
  void* copied = map(MAP_PRIVATE, fd->get());
  for (const void* at : {own, shared, file, copied}) ASSERT_NE(at, MAP_FAILED);
  const auto maps = kernel::read_smaps(self);
  ASSERT_TRUE(maps.ok());
  const auto state_at = [&](const void* at, std::vector<Refusal>& refusals) {
    for (const kernel::Mapping& one : *maps)
      if (one.start == reinterpret_cast<uint64_t>(at)) {
        EXPECT_TRUE(precheck_mapping(self, one, "test", refusals).ok());
        return mapping_state(one).value_or(MappingState());
      }
    return MappingState();
  };
  std::vector<Refusal> refusals;
  const MappingState a = state_at(own, refusals);
  EXPECT_EQ(a.kind(), kAnon);
  EXPECT_EQ(a.huge_page_bytes(), kHuge);
  EXPECT_EQ(a.flags() & kMapNoReserve, uint32_t{kMapNoReserve});
  const MappingState b = state_at(shared, refusals);
  EXPECT_EQ(b.kind(), MappingState::KIND_SHARED_OBJECT);
  EXPECT_EQ(b.huge_page_bytes(), kHuge);
  const MappingState c = state_at(file, refusals);
  EXPECT_EQ(c.kind(), MappingState::KIND_SHARED_OBJECT);
  EXPECT_EQ(c.path(), "/memfd:huge");
  EXPECT_NE(b.object(), c.object());
  EXPECT_TRUE(refusals.empty());
  EXPECT_EQ(state_at(copied, refusals).kind(), MappingState::KIND_INVALID);
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "mapping.hugetlb");
  for (void* at : {own, shared, file, copied}) ::munmap(at, kHuge);
}

TEST(MemoryMapTest, AQueueOfAsynchronousIoIsOfItsOwnKind) {
  unsigned long context = 0;
  ASSERT_EQ(::syscall(SYS_io_setup, 16, &context), 0);
  const HostPid self{::getpid()};
  std::vector<Refusal> refusals;
  const auto look = [&] {
    const auto maps = kernel::read_smaps(self);
    ASSERT_TRUE(maps.ok()) << maps.status();
    for (const kernel::Mapping& one : *maps)
      if (one.start == context) {
        EXPECT_TRUE(precheck_mapping(self, one, "test", refusals).ok());
        const auto state = mapping_state(one);
        ASSERT_TRUE(state.ok()) << state.status();
        EXPECT_EQ(state->kind(), MappingState::KIND_AIO_RING);
        EXPECT_EQ(state->object(), 0U);
      }
  };
  look();
  EXPECT_TRUE(refusals.empty());
  ASSERT_EQ(::mprotect(reinterpret_cast<void*>(context), 4096, PROT_READ), 0);
  look();
  ::syscall(SYS_io_destroy, context);
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "mapping.aio");
}

TEST(MemoryMapTest, OwnAddressSpaceIsCaptured) {
  const HostPid self{::getpid()};
  const auto maps = kernel::read_smaps(self);
  ASSERT_TRUE(maps.ok()) << maps.status();
  uint64_t unknown = 1;
  const auto state = capture_memory_map(self, *maps, nullptr, &unknown);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(unknown, 0U);
  EXPECT_GT(state->start_stack(), state->brk());
  EXPECT_FALSE(state->auxv().empty());
  EXPECT_THAT(state->exe(), ::testing::EndsWith("resource_test"));
  // Without flags, those of the same mappings are taken over.
  auto plain = *maps;
  for (auto& one : plain) one.vm_flags.clear();
  const auto again = capture_memory_map(self, plain, &*state, &unknown);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(unknown, 0U);
  EXPECT_EQ(again->mappings_size(), state->mappings_size());
  for (int i = 0; i < state->mappings_size(); ++i)
    EXPECT_EQ(again->mappings(i).flags(), state->mappings(i).flags()) << i;
  // A mapping that was not there before is named by its end.
  auto before = *state;
  before.mutable_mappings()->DeleteSubrange(2, 1);
  ASSERT_TRUE(capture_memory_map(self, plain, &before, &unknown).ok());
  EXPECT_EQ(unknown, state->mappings(2).end());
}

kernel::Mapping shown(uint64_t start, uint64_t end, const std::string& path = "") {
  kernel::Mapping one;
  one.start = start;
  one.end = end;
  one.read = one.write = true;
  one.path = path;
  one.inode = path.empty() ? 0 : 7;
  return one;
}

// The end of the last mapping whose flags have to be asked for; 0: all are known.
uint64_t unknown_below(const MemoryMapState& before, const std::vector<kernel::Mapping>& maps) {
  uint64_t unknown = 1;
  EXPECT_TRUE(capture_memory_map(HostPid{::getpid()}, maps, &before, &unknown).ok());
  return unknown;
}

TEST(MemoryMapTest, FlagsAreTakenOverOnlyWhereNothingHintsAtAdvice) {
  const auto before =
      map_of({mapping(0x10000, 0x18000, kAnon, kRw, kMapDontFork),
              mapping(0x20000, 0x22000, kAnon, kRw), mapping(0x22000, 0x24000, kAnon, PROT_READ),
              mapping(0x30000, 0x38000, kFile, kRw, 0, "/f")});
  const auto one = shown(0x10000, 0x18000);
  EXPECT_EQ(unknown_below(before, {one}), 0U);
  // Two have become one.
  EXPECT_EQ(unknown_below(before, {one, shown(0x20000, 0x24000)}), 0U);
  // Cut at the end, at the beginning, a hole in the middle: munmap.
  EXPECT_EQ(unknown_below(before, {shown(0x10000, 0x14000)}), 0U);
  EXPECT_EQ(unknown_below(before, {shown(0x14000, 0x18000)}), 0U);
  EXPECT_EQ(unknown_below(before, {shown(0x10000, 0x12000), shown(0x14000, 0x18000)}), 0U);
  // Parts that touch: something told them apart.
  EXPECT_EQ(unknown_below(before, {shown(0x10000, 0x12000), shown(0x12000, 0x18000)}), 0x18000U);
  EXPECT_EQ(unknown_below(before, {shown(0x10000, 0x12000), shown(0x12000, 0x14000),
                                   shown(0x15000, 0x18000)}),
            0x14000U);
  // Grown, another file, the rest of something else.
  EXPECT_EQ(unknown_below(before, {shown(0x10000, 0x19000)}), 0x19000U);
  EXPECT_EQ(unknown_below(before, {one, shown(0x30000, 0x38000, "/g")}), 0x38000U);
  EXPECT_EQ(unknown_below(before, {one, shown(0x30000, 0x38000)}), 0x38000U);
  EXPECT_EQ(unknown_below(before, {one, shown(0x30000, 0x38000, "/f")}), 0U);
}

}  // namespace
}  // namespace godwit::resource
