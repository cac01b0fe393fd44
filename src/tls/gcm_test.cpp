#include "tls/gcm.h"

#include <gtest/gtest.h>

#include <array>
#include <string_view>
#include <vector>

namespace godwit::tls {
namespace {

using Bytes = std::vector<unsigned char>;
using Make = std::unique_ptr<Gcm> (*)(std::span<const unsigned char, kGcmKey>, Direct);

Bytes bytes_of(size_t count, unsigned seed) {
  Bytes bytes(count);
  for (unsigned char& each : bytes) {
    seed = seed * 1664525 + 1013904223;
    each = static_cast<unsigned char>(seed >> 24);
  }
  return bytes;
}

struct Message {
  Bytes bytes;
  std::array<unsigned char, kGcmTag> tag{};
  bool good = false;
};

// In pieces of `piece` bytes, the last one of one byte, as records have it.
Message run(Make make, Direct direct, const Message& from, const Bytes& nonce,
            const Bytes& additional, size_t piece) {
  std::array<unsigned char, kGcmKey> key{};
  key.fill(7);
  const auto gcm = make(key, direct);
  Message to{.bytes = Bytes(from.bytes.size()), .tag = from.tag};
  to.good =
      gcm->begin(std::span<const unsigned char, kGcmNonce>(nonce.data(), kGcmNonce), additional);
  const size_t all = from.bytes.size();
  for (size_t at = 0; at < all;) {
    const size_t some = at + 1 == all ? 1 : std::min(piece, all - 1 - at);
    to.good = to.good && gcm->update(from.bytes.data() + at, to.bytes.data() + at, some);
    at += some;
  }
  to.good = gcm->finish(to.tag) && to.good;
  return to;
}

// NIST's test case 3 for AES-128 (The Galois/Counter Mode of Operation, appendix B).
void known_answer(Make make) {
  const auto of_hex = [](std::string_view text) {
    Bytes bytes;
    for (size_t i = 0; i < text.size(); i += 2)
      bytes.push_back(
          static_cast<unsigned char>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16)));
    return bytes;
  };
  const Bytes key = of_hex("feffe9928665731c6d6a8f9467308308");
  const Bytes nonce = of_hex("cafebabefacedbaddecaf888");
  const Bytes plain = of_hex(
      "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
      "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255");
  const auto gcm =
      make(std::span<const unsigned char, kGcmKey>(key.data(), kGcmKey), Direct::kEncrypt);
  ASSERT_TRUE(gcm->begin(std::span<const unsigned char, kGcmNonce>(nonce.data(), kGcmNonce), {}));
  Bytes out(plain.size());
  ASSERT_TRUE(gcm->update(plain.data(), out.data(), plain.size()));
  std::array<unsigned char, kGcmTag> tag{};
  ASSERT_TRUE(gcm->finish(tag));
  EXPECT_EQ(out, of_hex("42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
                        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985"));
  EXPECT_EQ(Bytes(tag.begin(), tag.end()), of_hex("4d5c2af327cd64a62cf35abd2ba6fab4"));
}

bool have_vector() {
  const std::array<unsigned char, kGcmKey> key{};
  return make_vector_gcm(key, Direct::kEncrypt) != nullptr;
}

TEST(Gcm, GivesTheKnownAnswer) {
  known_answer(make_openssl_gcm);
  if (have_vector()) known_answer(make_vector_gcm);
}

TEST(Gcm, BothMakeTheSameAndOpenEachOthers) {
  if (!have_vector()) GTEST_SKIP() << "no intel-ipsec-mb, or a CPU without VAES";
  const Bytes nonce = bytes_of(kGcmNonce, 3);
  using Sizes = std::vector<size_t>;
  for (const size_t size : Sizes{1, 2, 15, 16, 17, 255, 256, 257, 4095, 4097, 16384, 16385}) {
    for (const size_t piece : Sizes{1, 13, 16, 100, 4096, 16384}) {
      const Bytes additional = bytes_of(5, static_cast<unsigned>(size));
      const Message plain{.bytes = bytes_of(size, 1)};
      const Message one = run(make_openssl_gcm, Direct::kEncrypt, plain, nonce, additional, piece);
      const Message other = run(make_vector_gcm, Direct::kEncrypt, plain, nonce, additional, piece);
      ASSERT_TRUE(one.good && other.good);
      ASSERT_EQ(one.bytes, other.bytes) << size << " in pieces of " << piece;
      ASSERT_EQ(one.tag, other.tag) << size << " in pieces of " << piece;
      for (const Make opener : {make_openssl_gcm, make_vector_gcm}) {
        const Message opened = run(opener, Direct::kDecrypt, one, nonce, additional, piece);
        ASSERT_TRUE(opened.good);
        ASSERT_EQ(opened.bytes, plain.bytes);
      }
    }
  }
}

TEST(Gcm, WhatWasChangedIsNotOpened) {
  const Bytes nonce = bytes_of(kGcmNonce, 3);
  const Bytes additional = bytes_of(5, 4);
  for (const Make make : {make_openssl_gcm, make_vector_gcm}) {
    if (make == make_vector_gcm && !have_vector()) continue;
    const Message sent =
        run(make, Direct::kEncrypt, {.bytes = bytes_of(1000, 1)}, nonce, additional, 100);
    for (const size_t at : {size_t{0}, size_t{500}, size_t{999}}) {
      Message changed = sent;
      changed.bytes[at] ^= 1;
      EXPECT_FALSE(run(make, Direct::kDecrypt, changed, nonce, additional, 100).good);
    }
    for (size_t at = 0; at < kGcmTag; ++at) {
      Message changed = sent;
      changed.tag.at(at) ^= 0x80;
      EXPECT_FALSE(run(make, Direct::kDecrypt, changed, nonce, additional, 100).good);
    }
    EXPECT_FALSE(run(make, Direct::kDecrypt, sent, bytes_of(kGcmNonce, 9), additional, 100).good);
    EXPECT_FALSE(run(make, Direct::kDecrypt, sent, nonce, bytes_of(5, 5), 100).good);
    EXPECT_TRUE(run(make, Direct::kDecrypt, sent, nonce, additional, 1000).good);
  }
}

}  // namespace
}  // namespace godwit::tls
