// Whether verifying sees what differs between two address spaces, and nothing else. Source and
// replica are one process here, changed in between.
#include "process/verify.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "stream/memory_for_test.h"
#include "tracee/child_for_test.h"
#include "tracee/memory.h"

namespace godwit::process {
namespace {

using pages::kPageSize;
using pages::PageRange;
using resource::AddressRange;
using resource::MappingState;
using resource::MemoryMapState;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tracee::testing::Child;
using tracee::testing::Shared;

constexpr uint64_t kAt = 0x7000'0000'0000;
constexpr uint64_t kPages = 64;
constexpr uint64_t kFileAt = kAt + (uint64_t{1} << 30);

MappingState mapping(uint64_t at, uint64_t pages, MappingState::Kind kind) {
  MappingState state;
  state.set_start(at);
  state.set_end(at + pages * kPageSize);
  state.set_kind(kind);
  return state;
}

// Hashes of `space` as they arrive at the other end.
std::vector<stream::PageHashes> hashes_of(Space& space) {
  stream::MemorySink sink;
  stream::Writer writer(sink);
  const pages::SendControl control;
  EXPECT_TRUE(writer.preamble({}).ok());
  EXPECT_TRUE(writer.begin_epoch(true).ok());
  const absl::Status sent = send_hashes(1, space, control, writer);
  EXPECT_TRUE(sent.ok()) << message_of(sent);
  EXPECT_TRUE(writer.end_hashes().ok());
  EXPECT_TRUE(writer.end_epoch().ok());
  stream::MemoryFeed feed(sink.bytes);
  stream::Reader reader(feed);
  std::vector<stream::PageHashes> frames;
  for (auto frame = reader.next(); frame.ok(); frame = reader.next())
    if (const auto* hashes = std::get_if<stream::PageHashes>(&*frame)) frames.push_back(*hashes);
  return frames;
}

std::vector<std::string> compare(std::unique_ptr<Space> space,
                                 const std::vector<stream::PageHashes>& frames) {
  auto comparison = Comparison::begin(std::move(space));
  EXPECT_TRUE(comparison.ok()) << comparison.status();
  for (const stream::PageHashes& frame : frames) EXPECT_TRUE(comparison->see(frame).ok());
  EXPECT_TRUE(comparison->end().ok());
  return comparison->differences();
}

uint64_t pages_in(const std::vector<stream::PageHashes>& frames) {
  uint64_t pages = 0;
  for (const stream::PageHashes& frame : frames) pages += frame.hashes.size();
  return pages;
}

// Maps kPages of anonymous memory and as many of a file, writes into the even ones of the first
// half of each, and obeys: word 1 is the number of a command, word 2 and 3 its arguments.
int program(Shared& shared, int file) {
  auto* memory = static_cast<char*>(
      ::mmap(reinterpret_cast<void*>(kAt), kPages * kPageSize, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
  auto* of_file = static_cast<char*>(::mmap(reinterpret_cast<void*>(kFileAt), kPages * kPageSize,
                                            PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 0));
  if (memory == MAP_FAILED || of_file == MAP_FAILED) return 1;
  for (uint64_t page = 0; page < kPages / 2; page += 2) {
    memory[page * kPageSize + 5] = static_cast<char>(page + 1);
    of_file[page * kPageSize + 5] = static_cast<char>(page + 1);
  }
  // A copy that is all zero, where the file is not.
  std::memset(of_file + kPageSize, 0, kPageSize);
  shared.word[0] = 1;
  for (uint64_t done = 0;;) {
    const uint64_t command = shared.word[1];
    if (command == done) continue;
    auto* at = reinterpret_cast<char*>(shared.word[2].load());
    if (shared.word[3] == 1) ::madvise(at, kPageSize, MADV_DONTNEED);
    if (shared.word[3] == 2) ::mprotect(at, kPageSize, PROT_NONE);
    done = command;
    shared.word[0] = done + 1;
  }
}

class VerifyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string text(kPages * kPageSize, 'f');
    ASSERT_EQ(::write(file_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    program_ = std::make_unique<Child>([this](Shared& s) { return program(s, file_.get()); });
    ASSERT_TRUE(program_->wait_word(0, 1));
    *map_.add_mappings() = mapping(kAt, kPages, MappingState::KIND_ANONYMOUS);
    *map_.add_mappings() = mapping(kFileAt, kPages, MappingState::KIND_PRIVATE_FILE);
    frames_ = hashes_of(*space());
  }
  std::unique_ptr<Space> space() {
    auto space = memory_of(program_->pid(), map_, left_out_);
    EXPECT_TRUE(space.ok()) << space.status();
    return *std::move(space);
  }
  std::vector<std::string> differences() { return compare(space(), frames_); }
  void poke(uint64_t at, char value) {
    const auto wrote = tracee::write_memory_forced(program_->pid(), RemoteAddress{at},
                                                   std::as_bytes(std::span(&value, 1)));
    ASSERT_TRUE(wrote.ok()) << message_of(wrote);
  }
  void command(uint64_t number, uint64_t at) {
    program_->word(2) = at;
    program_->word(3) = number;
    const uint64_t count = ++program_->word(1);
    ASSERT_TRUE(program_->wait_word(0, count + 1));
  }
  void drop(uint64_t at) { command(1, at); }

  UniqueFd file_ = kernel::memfd_create("verify_test", MFD_CLOEXEC).value();
  std::unique_ptr<Child> program_;
  MemoryMapState map_;
  std::vector<AddressRange> left_out_;
  std::vector<stream::PageHashes> frames_;
};

TEST_F(VerifyTest, WhatIsThereIsNamedOnceAndIsTheSame) {
  // Written pages of the first, and copied ones of the second with the zeros.
  EXPECT_EQ(pages_in(frames_), kPages / 4 + kPages / 4 + 1);
  EXPECT_THAT(differences(), IsEmpty());
}

TEST_F(VerifyTest, ComparingPopulatesNothing) {
  const auto populated = [&] {
    uint64_t pages = 0;
    const auto parts = space()->parts();
    EXPECT_TRUE(parts.ok()) << parts.status();
    if (parts.ok())
      for (const Part& part : *parts) pages += part.populated.pages();
    return pages;
  };
  const uint64_t before = populated();
  EXPECT_THAT(differences(), IsEmpty());
  EXPECT_EQ(populated(), before);
}

TEST_F(VerifyTest, OneByte) {
  poke(kAt + 4 * kPageSize + 77, 'x');
  EXPECT_THAT(differences(),
              ElementsAre("mapping 700000000000-700000040000: 1 page is other than the source's, "
                          "the first at 700000004000"));
}

TEST_F(VerifyTest, PagesThatWereLost) {
  drop(kAt + 2 * kPageSize);
  drop(kAt + 6 * kPageSize);
  EXPECT_THAT(differences(),
              ElementsAre("mapping 700000000000-700000040000: 2 pages are other than the "
                          "source's, the first at 700000002000"));
}

TEST_F(VerifyTest, AZeroIsAsGoodAsNothing) {
  poke(kAt + 40 * kPageSize, 0);
  EXPECT_THAT(differences(), IsEmpty());
}

TEST_F(VerifyTest, APageTooMany) {
  poke(kAt + 40 * kPageSize, 'x');
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("1 page is other than the source's, the first "
                                                   "at 700000028000")));
}

TEST_F(VerifyTest, InAFileZerosAreContents) {
  drop(kFileAt + kPageSize);  // shows the file again
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("the first at 700040001000")));
}

TEST_F(VerifyTest, ACopyOfAFilesPageTooMany) {
  poke(kFileAt + 50 * kPageSize, 'x');
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("the first at 700040032000")));
}

TEST_F(VerifyTest, ProtectedPagesAreReadToo) {
  command(2, kAt + 8 * kPageSize);
  EXPECT_THAT(differences(), IsEmpty());
  poke(kAt + 8 * kPageSize, 'x');
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("the first at 700000008000")));
}

TEST_F(VerifyTest, WhatTheKernelWritesIsLeftOut) {
  const uint64_t area = kAt + 2 * kPageSize + 64;
  left_out_ = {{area, area + 32}, {kAt + 12 * kPageSize - 16, kAt + 12 * kPageSize + 16}};
  frames_ = hashes_of(*space());
  poke(area, 'x');
  poke(area + 31, 'x');
  poke(kAt + 11 * kPageSize + 4095, 'x');  // nothing else is in that page
  poke(kAt + 12 * kPageSize + 15, 'x');
  EXPECT_THAT(differences(), IsEmpty());
  poke(area + 32, 'x');
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("1 page is other")));
}

TEST_F(VerifyTest, AnAddressThatIsNotMapped) {
  frames_.push_back({.space = 1,
                     .runs = {{kAt + (kPages - 1) * kPageSize, 3}},
                     .hashes = std::vector<stream::PageHash>(3)});
  EXPECT_THAT(differences(), ElementsAre(HasSubstr("1 page is other"),
                                         HasSubstr("not mapped here: 2 pages are other")));
}

TEST(Verify, SharedObjects) {
  const auto make = [] {
    UniqueFd fd = kernel::memfd_create("object", MFD_CLOEXEC).value();
    EXPECT_EQ(::ftruncate(fd.get(), 100 * kPageSize + 10), 0);
    EXPECT_EQ(::pwrite(fd.get(), "one", 3, 3 * kPageSize), 3);
    EXPECT_EQ(::pwrite(fd.get(), "two", 3, 100 * kPageSize), 3);
    return fd;
  };
  const UniqueFd source = make();
  const UniqueFd replica = make();
  const auto frames = hashes_of(*object_of(source.get(), "object"));
  EXPECT_EQ(pages_in(frames), 2u);
  const auto differences = [&] { return compare(object_of(replica.get(), "object"), frames); };
  EXPECT_EQ(::pwrite(replica.get(), "\0", 1, 50 * kPageSize), 1);
  EXPECT_THAT(differences(), IsEmpty());
  EXPECT_EQ(::pwrite(replica.get(), "!", 1, 50 * kPageSize), 1);
  EXPECT_EQ(::pwrite(replica.get(), "!", 1, 100 * kPageSize), 1);
  EXPECT_THAT(differences(), ElementsAre("object: 2 pages are other than the source's, the first "
                                         "at 32000"));
}

TEST(Verify, MapsThatGoOnInTheirNeighboursAreTheSame) {
  MemoryMapState sent;
  *sent.add_mappings() = mapping(kAt, 8, MappingState::KIND_ANONYMOUS);
  *sent.add_mappings() = mapping(kFileAt, 8, MappingState::KIND_PRIVATE_FILE);
  sent.set_brk(kAt + 10);
  MemoryMapState shown;
  *shown.add_mappings() = mapping(kAt, 3, MappingState::KIND_ANONYMOUS);
  *shown.add_mappings() = mapping(kAt + 3 * kPageSize, 5, MappingState::KIND_ANONYMOUS);
  *shown.add_mappings() = mapping(kFileAt, 2, MappingState::KIND_PRIVATE_FILE);
  *shown.add_mappings() = mapping(kFileAt + 2 * kPageSize, 6, MappingState::KIND_PRIVATE_FILE);
  shown.mutable_mappings(3)->set_offset(2 * kPageSize);
  shown.set_brk(kAt + kPageSize);
  EXPECT_EQ(difference(sent, shown), "");
  shown.mutable_mappings(3)->set_offset(kPageSize);
  EXPECT_THAT(difference(sent, shown), HasSubstr("mapping 700040000000-700040008000"));
  shown.mutable_mappings(3)->set_offset(2 * kPageSize);
  shown.mutable_mappings(1)->set_flags(resource::kMapLocked);
  EXPECT_THAT(difference(sent, shown), HasSubstr("mapping 700000000000-700000008000"));
  shown.mutable_mappings(1)->set_flags(0);
  shown.set_start_stack(1);
  EXPECT_THAT(difference(sent, shown), HasSubstr("start_stack"));
}

TEST(Verify, MapsOfAProcess) {
  const auto maps = read_memory_map(HostPid{::getpid()}, {});
  ASSERT_TRUE(maps.ok()) << maps.status();
  EXPECT_GT(maps->mappings_size(), 5);
  EXPECT_NE(maps->exe(), "");
}

}  // namespace
}  // namespace godwit::process
