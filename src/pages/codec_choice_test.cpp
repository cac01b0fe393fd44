#include "pages/codec_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace godwit::pages {
namespace {

using stream::Codec;

constexpr uint64_t kBatch = uint64_t{2} << 20;

struct Machine {
  double read = 0.2;  // nanoseconds a byte
  double link = 40;
  std::map<Codec, double> ratio = {{Codec::kLz4, 0.45}, {Codec::kZstd, 0.3}};
  std::map<Codec, double> compress = {{Codec::kLz4, 1.6}, {Codec::kZstd, 4}};
  // What the destination does with a byte of memory; with a codec, decompresses first.
  double apply = 0.5;
  double decompress = 0.4;
  double socket = 4.0 * (1 << 20);  // bytes that a write finds room for
};

// A source, a socket's buffer, a link and a destination, one batch after the other.
class Migration {
 public:
  explicit Migration(Compress compress = Compress::kAuto) : choice(compress) {}

  // Sends so many batches; how many nanoseconds a byte took.
  double batches(int count, const Machine& machine) {
    const double begin = now_;
    for (int i = 0; i < count; ++i) one(machine);
    return (now_ - begin) / (static_cast<double>(kBatch) * count);
  }

  CodecChoice choice;
  std::map<Codec, int> used;
  int64_t sampled_ns = 0;
  int samples = 0;

 private:
  void one(const Machine& m) {
    const auto bytes = static_cast<double>(kBatch);
    BatchFigures batch;
    batch.codec = choice.next();
    batch.bytes = kBatch;
    ++used[batch.codec];
    if (const Codec codec = choice.sample(); codec != Codec::kNone) {
      constexpr double kSample = 65536;
      const auto ns = static_cast<int64_t>(kSample * m.compress.at(codec));
      choice.sampled({codec, static_cast<uint64_t>(kSample),
                      static_cast<uint64_t>(kSample * m.ratio.at(codec)), ns});
      sampled_ns += ns;
      ++samples;
    }
    const bool plain = batch.codec == Codec::kNone;
    const double ratio = plain ? 1 : m.ratio.at(batch.codec);
    batch.wire_bytes = static_cast<uint64_t>(bytes * (ratio > 0.94 ? 1 : ratio));
    batch.read_ns = static_cast<int64_t>(bytes * m.read);
    batch.compress_ns = plain ? 0 : static_cast<int64_t>(bytes * m.compress.at(batch.codec));
    const auto wire = static_cast<double>(batch.wire_bytes);

    const double start = now_;
    const double ready = start + static_cast<double>(batch.read_ns + batch.compress_ns);
    // The batch before is written meanwhile: whichever takes longer.
    const double copied = start + 0.15 * wire;
    // The other side takes bytes off the socket as fast as the link, or as it can apply them.
    const double drain =
        std::max(m.link, (m.apply + (plain ? 0 : m.decompress)) / std::max(0.001, wire / bytes));
    queued_ = std::max(0.0, queued_ - (start - drained_at_) / drain) + wire;
    drained_at_ = start;
    const double room = start + std::max(0.0, queued_ - m.socket) * drain;
    const double written = std::max(copied, room);
    now_ = std::max(ready, written);
    batch.write_ns = static_cast<int64_t>(written - start);
    batch.cycle_ns = static_cast<int64_t>(now_ - start);
    choice.sent(batch);
  }

  double now_ = 0;
  double queued_ = 0;
  double drained_at_ = 0;
};

TEST(CodecChoiceTest, NamesAreThoseOfTheOption) {
  EXPECT_EQ(compress_named("auto"), Compress::kAuto);
  EXPECT_EQ(compress_named("none"), Compress::kNone);
  EXPECT_EQ(compress_named(""), Compress::kNone);
  EXPECT_EQ(compress_named("lz4"), Compress::kLz4);
  EXPECT_EQ(compress_named("zstd"), Compress::kZstd);
  EXPECT_EQ(compress_named("gzip"), std::nullopt);
}

TEST(CodecChoiceTest, WhatTheUserWantsIsDone) {
  const Machine fast{.link = 0.1};
  for (const auto& [compress, codec] : {std::pair{Compress::kNone, Codec::kNone},
                                        {Compress::kLz4, Codec::kLz4},
                                        {Compress::kZstd, Codec::kZstd}}) {
    Migration migration(compress);
    migration.batches(100, fast);
    EXPECT_EQ(migration.used[codec], 100);
    EXPECT_EQ(migration.samples, 0);
  }
}

// 200 Mbit/s: the socket takes the first batches, then the link is seen.
TEST(CodecChoiceTest, ASlowLinkIsMadeUpForSoon) {
  Migration migration;
  const Machine slow;
  migration.batches(60, slow);
  EXPECT_LE(migration.used[Codec::kNone], 12);
  EXPECT_EQ(migration.choice.next(), Codec::kZstd) << "the better ratio";
  EXPECT_LT(migration.batches(200, slow), 40 * 0.3 * 1.1);
}

TEST(CodecChoiceTest, AFastLinkIsLeftAlone) {
  Migration migration;
  const Machine fast{.link = 0.3};
  const double took = migration.batches(1000, fast);
  EXPECT_EQ(migration.used[Codec::kNone], 1000);
  EXPECT_LT(static_cast<double>(migration.sampled_ns),
            0.01 * took * static_cast<double>(1000 * kBatch));
}

TEST(CodecChoiceTest, ALinkBetweenTakesTheQuickerCodec) {
  Migration migration;
  const Machine middling{.link = 4};  // 2 Gbit/s
  migration.batches(300, middling);
  EXPECT_EQ(migration.choice.next(), Codec::kLz4);
  EXPECT_LT(migration.batches(300, middling), 4 * 0.6);
}

TEST(CodecChoiceTest, WhatDoesNotShrinkCostsNextToNothing) {
  Migration migration;
  const Machine noise{.ratio = {{Codec::kLz4, 1}, {Codec::kZstd, 1}}};
  const double took = migration.batches(1000, noise);
  EXPECT_EQ(migration.used[Codec::kNone], 1000);
  EXPECT_LE(migration.samples, 30);
  EXPECT_LT(took, 40.2);
}

TEST(CodecChoiceTest, MemoryOfAnotherKindIsNoticed) {
  Migration migration;
  Machine machine{.ratio = {{Codec::kLz4, 1}, {Codec::kZstd, 1}}};
  migration.batches(200, machine);
  EXPECT_EQ(migration.choice.next(), Codec::kNone);
  machine.ratio = Machine().ratio;
  migration.batches(150, machine);
  EXPECT_NE(migration.choice.next(), Codec::kNone);
  machine.ratio = {{Codec::kLz4, 1}, {Codec::kZstd, 1}};
  migration.batches(20, machine);
  EXPECT_EQ(migration.choice.next(), Codec::kNone);
}

// Writing waits, and what it waits for is the destination's CPU.
TEST(CodecChoiceTest, ABusyDestinationIsNoSlowLink) {
  Migration migration;
  const Machine busy{.link = 0.1, .apply = 6, .decompress = 1};
  const double took = migration.batches(2000, busy);
  EXPECT_EQ(migration.choice.next(), Codec::kNone);
  EXPECT_LT(took, 6 * 1.02) << "what trials cost";
}

TEST(CodecChoiceTest, ABusySourceSendsPlainAgain) {
  Migration migration;
  Machine machine{.link = 4};
  migration.batches(300, machine);
  ASSERT_EQ(migration.choice.next(), Codec::kLz4);
  // Somebody else wants its CPUs.
  machine.compress = {{Codec::kLz4, 6}, {Codec::kZstd, 16}};
  migration.batches(300, machine);
  EXPECT_EQ(migration.choice.next(), Codec::kNone);
}

TEST(CodecChoiceTest, ALinkThatBecomesFastIsUsedPlain) {
  Migration migration;
  Machine machine{.link = 8};
  migration.batches(200, machine);
  ASSERT_NE(migration.choice.next(), Codec::kNone);
  machine.link = 0.3;
  migration.batches(1500, machine);
  EXPECT_EQ(migration.choice.next(), Codec::kNone);
  machine.link = 40;
  migration.batches(60, machine);
  EXPECT_NE(migration.choice.next(), Codec::kNone) << "and slow again";
}

TEST(CodecChoiceTest, WhatShrinksVeryMuchIsNotTriedPlainAtALoss) {
  Migration migration;
  const Machine sparse{.ratio = {{Codec::kLz4, 0.02}, {Codec::kZstd, 0.01}},
                       .compress = {{Codec::kLz4, 0.4}, {Codec::kZstd, 1.2}}};
  migration.batches(20, sparse);
  EXPECT_LT(migration.batches(2000, sparse), 1.0);
}

TEST(CodecChoiceTest, ABatchThatIsWaitedForIsCompressedOnlyOverASlowLink) {
  Migration migration;
  EXPECT_EQ(migration.choice.alone(kBatch), Codec::kNone) << "nothing is known";
  migration.batches(100, Machine());
  EXPECT_NE(migration.choice.alone(kBatch), Codec::kNone);
  EXPECT_NE(migration.choice.alone(16 * 4096), Codec::kNone);
  EXPECT_EQ(migration.choice.alone(100), Codec::kNone);

  Migration fast;
  fast.batches(100, Machine{.link = 0.3});
  EXPECT_EQ(fast.choice.alone(kBatch), Codec::kNone);

  EXPECT_EQ(CodecChoice(Compress::kLz4).alone(kBatch), Codec::kLz4);
  EXPECT_EQ(CodecChoice(Compress::kLz4).alone(2 * 4096), Codec::kNone);
}

// A host that stands still for 35 ms now and then is no slow link.
TEST(CodecChoiceTest, StallsChangeNothing) {
  Migration migration;
  const Machine fast{.link = 0.4};
  const Machine stall{.read = 17, .link = 17};
  for (int i = 0; i < 100; ++i) {
    migration.batches(7, fast);
    migration.batches(1, stall);
  }
  EXPECT_GT(migration.used[Codec::kNone], 700);
}

}  // namespace
}  // namespace godwit::pages
