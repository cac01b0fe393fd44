#include "node/compress_option.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace godwit::node {
namespace {

using ::testing::HasSubstr;

TEST(CompressOptionTest, OnlyKnownWaysAreTaken) {
  for (const char* good : {"", "auto", "none", "lz4", "zstd"})
    EXPECT_TRUE(check_compress(good).ok()) << good;
  EXPECT_TRUE(absl::IsInvalidArgument(check_compress("gzip")));
}

TEST(CompressOptionTest, AnOlderDestinationGetsPlainPages) {
  const api::PrepareReplicaReply old;
  for (const char* wanted : {"", "auto", "none"})
    EXPECT_EQ(*compress_for(wanted, old, "n2"), "none");
  const auto refused = compress_for("lz4", old, "n2");
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status()));
  EXPECT_THAT(std::string(message_of(refused.status())), HasSubstr("node n2 reads no compressed"));
  api::PrepareReplicaReply now;
  now.set_stream_version(2);
  EXPECT_EQ(*compress_for("", now, "n2"), "auto");
  for (const char* wanted : {"auto", "none", "lz4", "zstd"})
    EXPECT_EQ(*compress_for(wanted, now, "n2"), wanted);
}

}  // namespace
}  // namespace godwit::node
