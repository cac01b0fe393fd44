#include "capsule/content_hash.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "capsule/test_service.h"
#include "capsule/used_file.pb.h"

namespace godwit::capsule {
namespace {

class ContentHash : public testing::Test {
 protected:
  void SetUp() override {
    char dir[] = "/tmp/godwit-hash-XXXXXX";
    folder_ = ::mkdtemp(dir);
    write("text");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& text) const { std::ofstream(file(), std::ios::binary) << text; }
  std::string file() const { return folder_ + "/file"; }
  std::string saved() const { return folder_ + "/hashes"; }
  std::string hash(ContentHashes& hashes, bool lasting = true) const {
    const UniqueFd fd(::open(file().c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    EXPECT_EQ(::fstat(fd.get(), &info), 0);
    const auto value = hashes.of(fd.get(), stamp_of(info), lasting);
    EXPECT_TRUE(value.ok()) << value.status();
    return value.value_or("");
  }
  // Until its last change is old enough to be told from a later one.
  void age() const {
    struct stat info {};
    ASSERT_EQ(::stat(file().c_str(), &info), 0);
    const int64_t old = stamp_of(info).ctime_ns + 25'000'000;
    const Deadline deadline = soon();
    while (clock_ns(CLOCK_REALTIME_COARSE) <= old && !deadline.passed()) ::usleep(1000);
  }

  std::string folder_;
};

TEST_F(ContentHash, IsThatOfTheWholeContent) {
  ContentHashes hashes(saved());
  const std::string text = hash(hashes);
  EXPECT_EQ(text.size(), kHashBytes);
  write("Text");
  EXPECT_NE(hash(hashes), text);
  write("text");
  EXPECT_EQ(hash(hashes), text);
  // More than a piece, and a difference at its very end.
  const std::string large(1'000'001, 'x');
  write(large);
  const std::string one = hash(hashes);
  write(large.substr(1) + "y");
  EXPECT_NE(hash(hashes), one);
  Hasher whole;
  whole.update(std::as_bytes(std::span(large)));
  EXPECT_EQ(one, whole.value());
  write("");
  EXPECT_EQ(hash(hashes), Hasher().value());
}

TEST_F(ContentHash, ReadsAgainOnlyWhatMayHaveChanged) {
  ContentHashes hashes(saved());
  (void)hash(hashes);
  EXPECT_EQ(hashes.files_hashed(), 1U);
  age();
  const std::string before = hash(hashes);
  const uint64_t read = hashes.files_hashed();
  EXPECT_EQ(hash(hashes), before);
  EXPECT_EQ(hashes.files_hashed(), read);
  write("TEXT");  // the same size
  EXPECT_NE(hash(hashes), before);
  EXPECT_EQ(hashes.files_hashed(), read + 1);
}

TEST_F(ContentHash, StopsWhenItIsTold) {
  ContentHashes hashes(saved());
  int asked = 0;
  hashes.stop_when([&] { return ++asked == 3; });
  write(std::string(10'000'000, 'x'));
  const UniqueFd fd(::open(file().c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  ASSERT_EQ(::fstat(fd.get(), &info), 0);
  EXPECT_TRUE(absl::IsCancelled(hashes.of(fd.get(), stamp_of(info), true).status()));
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(hashes.files_hashed(), 0U);
}

TEST_F(ContentHash, SavesWhatLastsForTheNextMover) {
  age();
  {
    ContentHashes hashes(saved());
    (void)hash(hashes, false);
    ASSERT_STATUS_OK(hashes.save());
    EXPECT_FALSE(std::filesystem::exists(saved()));
  }
  std::string value;
  {
    ContentHashes hashes(saved());
    value = hash(hashes);
    EXPECT_EQ(hashes.files_hashed(), 1U);
    ASSERT_STATUS_OK(hashes.save());
  }
  {
    ContentHashes next(saved());
    EXPECT_EQ(hash(next), value);
    EXPECT_EQ(next.files_hashed(), 0U);
  }
  KnownHashes other;
  const auto bytes = kernel::read_file(saved());
  ASSERT_TRUE(bytes.ok() && other.ParseFromString(*bytes));
  other.set_boot_id("another boot");
  std::ofstream(saved(), std::ios::binary) << other.SerializeAsString();
  ContentHashes after_boot(saved());
  EXPECT_EQ(hash(after_boot), value);
  EXPECT_EQ(after_boot.files_hashed(), 1U);
  std::ofstream(saved(), std::ios::binary) << "damaged";
  ContentHashes after_damage(saved());
  EXPECT_EQ(hash(after_damage), value);
  EXPECT_EQ(after_damage.files_hashed(), 1U);
}

}  // namespace
}  // namespace godwit::capsule
