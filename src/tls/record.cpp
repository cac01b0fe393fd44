#include "tls/record.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <limits>
#include <string>

namespace godwit::tls {
namespace {

constexpr size_t kTag = kGcmTag;

unsigned char* bytes_of(void* p) { return static_cast<unsigned char*>(p); }

// HKDF-Expand-Label(secret, label, "", to.size()) for one block of SHA-256 (RFC 8446, 7.1).
void expand(std::span<const unsigned char> secret, std::string_view label,
            std::span<unsigned char> to) {
  const std::string name = "tls13 " + std::string(label);
  std::string info;
  info.push_back(0);
  info.push_back(static_cast<char>(to.size()));
  info.push_back(static_cast<char>(name.size()));
  info += name;
  info.push_back(0);  // context
  info.push_back(1);  // number of the block
  std::array<unsigned char, 32> block{};
  unsigned length = block.size();
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(info.data()), info.size(), block.data(), &length);
  std::copy_n(block.begin(), to.size(), to.begin());
  OPENSSL_cleanse(block.data(), block.size());
}

std::array<std::byte, kHeader> header_of(size_t encrypted) {
  return {std::byte{23}, std::byte{3}, std::byte{3}, static_cast<std::byte>(encrypted >> 8),
          static_cast<std::byte>(encrypted & 0xff)};
}

}  // namespace

void prepare_records() {
  const Sealer sealer{Direction()};
  const Opener opener{Direction()};
}

Direction::~Direction() { OPENSSL_cleanse(secret.data(), secret.size()); }

RecordKey::RecordKey(const Direction& direction, Direct direct)
    : direction_(direction), direct_(direct) {
  set_key();
}

void RecordKey::set_key() {
  std::array<unsigned char, kGcmKey> key{};
  expand(direction_.secret, "key", key);
  expand(direction_.secret, "iv", iv_);
  cipher_ = make_gcm(key, direct_);
  OPENSSL_cleanse(key.data(), key.size());
}

void RecordKey::update() {
  std::array<unsigned char, 32> next{};
  expand(direction_.secret, "traffic upd", next);
  direction_.secret = next;
  OPENSSL_cleanse(next.data(), next.size());
  direction_.sequence = 0;
  set_key();
}

bool RecordKey::begin(std::span<const std::byte> header) {
  if (cipher_ == nullptr) return false;
  std::array<unsigned char, kGcmNonce> nonce = iv_;
  for (size_t i = 0; i < 8; ++i)
    nonce.at(4 + i) ^= static_cast<unsigned char>(direction_.sequence >> (56 - 8 * i));
  ++direction_.sequence;
  return cipher_->begin(nonce,
                        {reinterpret_cast<const unsigned char*>(header.data()), header.size()});
}

size_t Sealer::seal(Content type, std::span<const iovec> from, std::byte* to) {
  size_t plain = 0;
  for (const iovec& part : from) plain += part.iov_len;
  const auto header = header_of(plain + 1 + kTag);
  std::copy(header.begin(), header.end(), to);
  if (!begin(header)) return 0;
  unsigned char* at = bytes_of(to) + kHeader;
  for (const iovec& part : from) {
    if (!cipher().update(bytes_of(part.iov_base), at, part.iov_len)) return 0;
    at += part.iov_len;
  }
  const auto last = static_cast<unsigned char>(type);
  if (!cipher().update(&last, at, 1) ||
      !cipher().finish(std::span<unsigned char, kTag>(at + 1, kTag)))
    return 0;
  return plain + kOverhead;
}

size_t Sealer::seal_update(std::byte* to) {
  // KeyUpdate, 1 byte long: update_not_requested (RFC 8446, 4.6.3).
  std::array<unsigned char, 5> message{24, 0, 0, 1, 0};
  const iovec all{message.data(), message.size()};
  const size_t bytes = seal(Content::kHandshake, {&all, 1}, to);
  update();
  return bytes;
}

size_t Opener::record_bytes(std::span<const std::byte> from) {
  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  if (from.size() < kHeader) return 0;
  const size_t encrypted = std::to_integer<size_t>(from[3]) << 8 | std::to_integer<size_t>(from[4]);
  if (from[0] != std::byte{23} || from[1] != std::byte{3} || from[2] != std::byte{3} ||
      encrypted < 1 + kTag || kHeader + encrypted > kMaxRecord)
    return kNone;
  return kHeader + encrypted;
}

Content Opener::open(std::span<const std::byte> record, std::span<const iovec> to) {
  const auto* from = reinterpret_cast<const unsigned char*>(record.data());
  if (!begin(record.first(kHeader))) return Content::kInvalid;
  size_t left = record.size() - kOverhead;
  from += kHeader;
  for (const iovec& part : to) {
    const size_t some = std::min(part.iov_len, left);
    if (!cipher().update(from, bytes_of(part.iov_base), some)) return Content::kInvalid;
    from += some;
    left -= some;
  }
  unsigned char type = 0;
  std::array<unsigned char, kTag> tag{};
  if (left != 0 || !cipher().update(from, &type, 1)) return Content::kInvalid;
  std::copy_n(from + 1, kTag, tag.begin());
  if (!cipher().finish(tag)) return Content::kInvalid;
  // Padding ends in zeros. Nobody pads here.
  return type == 0 ? Content::kInvalid : static_cast<Content>(type);
}

}  // namespace godwit::tls
