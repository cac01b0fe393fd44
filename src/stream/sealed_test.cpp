#include "stream/sealed.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit::stream {
namespace {

using ::testing::HasSubstr;

class SealedTest : public ::testing::Test {
 protected:
  SealedTest() {
    std::string path = ::testing::TempDir() + "/sealedXXXXXX";
    folder_ = ::mkdtemp(path.data());
    key_ = make_key("key", 'k', 32);
  }
  ~SealedTest() override {
    for (const char* name : {"key", "other", "short", "image"})
      (void)::unlink((folder_ + "/" + name).c_str());
    (void)::rmdir(folder_.c_str());
  }

  std::string make_key(const char* name, char filled, size_t bytes, mode_t mode = 0600) const {
    std::string path = folder_ + "/" + name;
    std::ofstream(path) << std::string(bytes, filled);
    (void)::chmod(path.c_str(), mode);
    return path;
  }

  UniqueFd open_image() const {
    return UniqueFd(::open((folder_ + "/image").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  }

  void write(const std::string& key, std::string_view text, size_t piece) const {
    const UniqueFd fd = open_image();
    ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
    const auto sink = image_sink(fd.get(), key);
    ASSERT_TRUE(sink.ok()) << sink.status();
    for (size_t at = 0; at < text.size(); at += piece) {
      const std::string_view part = text.substr(at, piece);
      const iovec halves[] = {
          {const_cast<char*>(part.data()), part.size() / 2},
          {const_cast<char*>(part.data()) + part.size() / 2, part.size() - part.size() / 2}};
      ASSERT_TRUE((*sink)->write(halves).ok());
      if (at % 3 == 0) {
        ASSERT_TRUE((*sink)->flush().ok());
      }
    }
    ASSERT_TRUE((*sink)->flush().ok());
  }

  // What of `bytes` can be read in pieces of 1000, and why no more.
  std::string read(const std::string& key, absl::Status& end) const {
    const UniqueFd fd = open_image();
    const auto feed = image_feed(fd.get(), key);
    end = feed.status();
    std::string all;
    while (end.ok()) {
      std::byte piece[1000];
      end = (*feed)->read(piece);
      if (end.ok()) all.append(reinterpret_cast<const char*>(piece), sizeof piece);
    }
    return all;
  }

  std::string folder_;
  std::string key_;
};

std::string noise(size_t bytes) {
  std::mt19937 random(7);
  std::string text(bytes, 0);
  for (char& one : text) one = static_cast<char>(random());
  return text;
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(SealedTest, WhatIsSealedComesBackWithItsKeyAlone) {
  const std::string text = noise(300'000);
  absl::Status end;
  for (const size_t piece : {size_t{700}, size_t{65536}, size_t{299'999}}) {
    write(key_, text, piece);
    EXPECT_EQ(read(key_, end), text);
    EXPECT_TRUE(absl::IsOutOfRange(end)) << end;
  }
  const std::string stored = contents(folder_ + "/image");
  EXPECT_THAT(stored, Not(HasSubstr(text.substr(0, 16))));
  // Another salt each time, and so another key.
  write(key_, text, text.size());
  EXPECT_NE(contents(folder_ + "/image").substr(40, 64), stored.substr(40, 64));

  EXPECT_EQ(read(make_key("other", 'o', 32), end), "");
  EXPECT_TRUE(absl::IsDataLoss(end));
  EXPECT_THAT(message_of(end), HasSubstr("the key is another one"));
  EXPECT_EQ(read("", end), "");
  EXPECT_TRUE(absl::IsFailedPrecondition(end));
  EXPECT_THAT(message_of(end), HasSubstr("it is encrypted"));
}

TEST_F(SealedTest, EveryChangedByteAndEveryCutIsAnError) {
  const std::string text = noise(5'000);
  write(key_, text, 2'000);
  const std::string whole = contents(folder_ + "/image");
  absl::Status end;
  const auto store = [&](std::string_view bytes) {
    std::ofstream(folder_ + "/image", std::ios::binary | std::ios::trunc) << bytes;
  };
  for (size_t at = 0; at < whole.size(); at += 11) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    store(changed);
    const std::string got = read(key_, end);
    EXPECT_TRUE(absl::IsDataLoss(end)) << at << ": " << end;
    EXPECT_EQ(got, text.substr(0, got.size()));
    EXPECT_LT(got.size(), text.size());
    store(whole.substr(0, at));
    const std::string less = read(key_, end);
    EXPECT_FALSE(end.ok());
    EXPECT_EQ(less, text.substr(0, less.size()));
  }
  // Records in another order.
  store(whole.substr(0, 40) + whole.substr(40 + 2020) + whole.substr(40, 2020));
  EXPECT_EQ(read(key_, end), "");
  EXPECT_TRUE(absl::IsDataLoss(end));
}

TEST_F(SealedTest, APlainFileIsNotTakenForAProvenOne) {
  const std::string text = noise(3'000);
  absl::Status end;
  write("", text, text.size());
  EXPECT_EQ(contents(folder_ + "/image"), text);
  EXPECT_EQ(read("", end), text);
  EXPECT_EQ(read(key_, end), "");
  EXPECT_TRUE(absl::IsDataLoss(end));
  EXPECT_THAT(message_of(end), HasSubstr("it is not encrypted"));
}

TEST_F(SealedTest, AKeyThatIsNoneSaysWhatToDo) {
  const UniqueFd fd = open_image();
  const auto why = [&](const std::string& key) {
    return std::string(message_of(image_sink(fd.get(), key).status()));
  };
  EXPECT_THAT(why(make_key("short", 's', 31)), HasSubstr("31 bytes"));
  EXPECT_THAT(why(make_key("short", 's', 5000)), HasSubstr("5000 bytes"));
  EXPECT_THAT(why(make_key("short", 's', 32, 0640)), HasSubstr("chmod 600"));
  EXPECT_THAT(why(folder_), HasSubstr("no regular file"));
  EXPECT_THAT(why(folder_ + "/nothing"), HasSubstr("nothing"));
  EXPECT_EQ(contents(folder_ + "/image"), "");
}

}  // namespace
}  // namespace godwit::stream
