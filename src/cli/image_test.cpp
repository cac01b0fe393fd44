// What `godwit image show` makes of good and of bad files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/cli.h"
#include "cli/image_render.h"
#include "resource/eventfd/eventfd.pb.h"
#include "resource/identity/identity.pb.h"
#include "stream/stream.h"

namespace godwit::cli {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

// An unnamed file; reading starts at its first byte.
class ImageTest : public testing::Test {
 protected:
  ImageTest() : file_(std::tmpfile()), fd_(::fileno(file_)) {}
  ~ImageTest() override { std::fclose(file_); }

  // One process with two threads, a mapping, an eventfd, three pages; `final` as the last epoch is.
  void write_image(bool final) {
    const auto sink = stream::fd_sink(fd_);
    stream::Writer writer(*sink);
    ASSERT_TRUE(writer.preamble(preamble()).ok());
    ASSERT_TRUE(writer.begin_epoch(false).ok());
    resource::ProcessTreeState tree;
    auto* process = tree.add_processes();
    process->set_pid(2);
    process->set_parent(1);
    process->add_threads(2);
    process->add_threads(5);
    ASSERT_TRUE(writer.section({"process_tree", 0}, tree.SerializeAsString()).ok());
    resource::MemoryMapState map;
    auto* mapping = map.add_mappings();
    mapping->set_start(0x1000);
    mapping->set_end(0x5000);
    mapping->set_kind(resource::MappingState::KIND_ANONYMOUS);
    mapping->set_protection(3);
    mapping->set_path("[heap]");
    auto* huge = map.add_mappings();
    huge->set_start(0x40000000);
    huge->set_end(0x40400000);
    huge->set_kind(resource::MappingState::KIND_ANONYMOUS);
    huge->set_huge_page_bytes(0x200000);
    ASSERT_TRUE(writer.section({"memory_map", 2}, map.SerializeAsString()).ok());
    const std::string pages(3 * stream::kPageSize, 'x');
    const stream::PageRun run{0x1000, 3};
    const iovec part{const_cast<char*>(pages.data()), pages.size()};
    ASSERT_TRUE(writer.pages(2, {&run, 1}, {&part, 1}).ok());
    ASSERT_TRUE(writer.end_epoch().ok());
    ASSERT_TRUE(writer.begin_epoch(final).ok());
    resource::FdTableState table;
    auto* entry = table.add_entries();
    entry->set_fd(7);
    entry->set_description(11);
    ASSERT_TRUE(writer.section({"fd_table", 2}, table.SerializeAsString()).ok());
    resource::EventfdState event;
    event.set_count(42);
    ASSERT_TRUE(writer.section({"eventfd", 11}, event.SerializeAsString()).ok());
    resource::TaskIdentityState identity;
    identity.set_name("evil\x1b[2J");
    ASSERT_TRUE(writer.section({"task_identity", 2}, identity.SerializeAsString()).ok());
    ASSERT_TRUE(writer.end_epoch().ok());
    ASSERT_EQ(::lseek(fd_, 0, SEEK_SET), 0);
  }

  static stream::Preamble preamble() {
    stream::Preamble made;
    made.workload = "web";
    made.created_unix_ns = 1'000'000'000;
    return made;
  }

  absl::StatusOr<Image> read() {
    const auto feed = stream::fd_feed(fd_);
    return read_image(*feed);
  }

  std::FILE* file_;
  const int fd_;
};

TEST_F(ImageTest, ShowsWhatIsInIt) {
  write_image(true);
  const auto image = read();
  ASSERT_TRUE(image.ok()) << message_of(image.status());
  EXPECT_TRUE(image->complete);
  ASSERT_EQ(image->epochs.size(), 2u);
  EXPECT_EQ(image->epochs[0].pages, 3u);
  EXPECT_EQ(image->epochs[0].bytes + image->epochs[1].bytes + 32 + 32 + 3, image->bytes);
  ASSERT_EQ(image->processes.size(), 1u);
  EXPECT_EQ(image->processes[0].mapped_bytes, 0x404000u);
  EXPECT_EQ(image->descriptions.at(11).text, "eventfd count 42");

  const std::string text = image_text(*image, false);
  EXPECT_THAT(text, HasSubstr("service web, saved 1970-01-01 00:00:01 UTC, format 1"));
  EXPECT_THAT(text, HasSubstr("1 processes, 2 threads, 1 open descriptions, 0 of them sockets"));
  EXPECT_THAT(text, HasSubstr("eventfd count 42"));
  EXPECT_THAT(text, HasSubstr("evil\\x1b[2J"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, Not(HasSubstr("[heap]")));
  EXPECT_THAT(image_text(*image, true), ContainsRegex("rw- +anonymous +\\[heap\\]"));
  EXPECT_THAT(image_text(*image, true), HasSubstr("---     anonymous, huge pages"));

  Json json;
  image_json(json, *image);
  for (const char* field :
       {"\"workload\": \"web\"", "\"complete\": true", "\"threads\": 2", "\"tid\": 5",
        "\"mapped_bytes\": 4210688", "\"what\": \"eventfd count 42\"", "\"pages\": 3",
        "\"kind\": \"memory_map\""})
    EXPECT_THAT(json.str(), HasSubstr(field));
}

TEST_F(ImageTest, SaysHowPagesAreStored) {
  const auto sink = stream::fd_sink(fd_);
  stream::Writer writer(*sink);
  stream::Preamble version_2 = preamble();
  version_2.version = stream::kVersionCompressed;
  ASSERT_TRUE(writer.preamble(version_2).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  const std::vector<std::byte> page(stream::kPageSize, std::byte{'x'});
  const iovec part{const_cast<std::byte*>(page.data()), page.size()};
  const stream::PageRun run{0x1000, 1};
  ASSERT_TRUE(writer.pages(2, {&run, 1}, {&part, 1}).ok());
  std::vector<std::byte> stored(page.size());
  stored.resize(stream::Compressor().compress(stream::Codec::kZstd, page, stored, [] {}));
  ASSERT_TRUE(writer.compressed_pages(2, {&run, 1}, stream::Codec::kZstd, stored).ok());
  ASSERT_TRUE(writer.end_epoch().ok());
  ASSERT_EQ(::lseek(fd_, 0, SEEK_SET), 0);

  const auto image = read();
  ASSERT_TRUE(image.ok()) << message_of(image.status());
  EXPECT_EQ(image->epochs[0].page_bytes, stream::kPageSize + stored.size());
  EXPECT_THAT(image_text(*image, false), HasSubstr("8.0 KiB  4.0 KiB  zstd"));
  Json json;
  image_json(json, *image);
  for (const std::string& field :
       {std::string("\"compression\": \"zstd\""), std::string("\"page_bytes\": 8192"),
        "\"page_bytes_stored\": " + std::to_string(stream::kPageSize + stored.size())})
    EXPECT_THAT(json.str(), HasSubstr(field));
}

TEST_F(ImageTest, SaysWhenItCannotBeRestored) {
  write_image(false);
  const auto image = read();
  ASSERT_TRUE(image.ok());
  EXPECT_FALSE(image->complete);
  EXPECT_THAT(image_text(*image, false), HasSubstr("cannot be restored"));
}

TEST_F(ImageTest, EveryCutGivesAnErrorWithItsPlace) {
  write_image(true);
  const off_t size = ::lseek(fd_, 0, SEEK_END);
  for (off_t cut = size - 1; cut >= 0; cut -= 97) {
    ASSERT_EQ(::ftruncate(fd_, cut), 0);
    ASSERT_EQ(::lseek(fd_, 0, SEEK_SET), 0);
    const auto image = read();
    if (image.ok()) {
      // Between two epochs a stream may end; it says that it is not complete.
      EXPECT_FALSE(image->complete) << cut;
      continue;
    }
    EXPECT_THAT(std::string(message_of(image.status())), HasSubstr("offset")) << cut;
  }
}

TEST_F(ImageTest, AMappingThatEndsBeforeItStartsIsDamage) {
  const auto sink = stream::fd_sink(fd_);
  stream::Writer writer(*sink);
  ASSERT_TRUE(writer.preamble(preamble()).ok());
  ASSERT_TRUE(writer.begin_epoch(true).ok());
  resource::ProcessTreeState tree;
  tree.add_processes()->set_pid(2);
  ASSERT_TRUE(writer.section({"process_tree", 0}, tree.SerializeAsString()).ok());
  resource::MemoryMapState map;
  map.add_mappings()->set_start(0x1000);
  ASSERT_TRUE(writer.section({"memory_map", 2}, map.SerializeAsString()).ok());
  ASSERT_TRUE(writer.end_epoch().ok());
  ASSERT_EQ(::lseek(fd_, 0, SEEK_SET), 0);
  EXPECT_TRUE(absl::IsDataLoss(read().status()));
}

struct Said {
  int code = 0;
  std::string error;
};

Said show(std::string file) {
  std::string words[] = {"godwit", "image", "show", std::move(file)};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Said said;
  said.code = cli_main(4, argv);
  testing::internal::GetCapturedStdout();
  said.error = testing::internal::GetCapturedStderr();
  return said;
}

TEST_F(ImageTest, ForeignFilesAreErrorsOfTheCommand) {
  const Said foreign = show("/proc/self/exe");
  EXPECT_EQ(foreign.code, 1);
  EXPECT_THAT(foreign.error, HasSubstr("/proc/self/exe: stream offset 0: "));
  const Said empty = show("/dev/null");
  EXPECT_EQ(empty.code, 1);
  EXPECT_THAT(empty.error, HasSubstr("/dev/null: stream offset 0: "));
  const Said missing = show("/nonexistent/image");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.error, HasSubstr("/nonexistent/image"));
  write_image(true);
  EXPECT_EQ(show("/proc/self/fd/" + std::to_string(fd_)).code, 0);
}

}  // namespace
}  // namespace godwit::cli
