#include "tls/record.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <limits>
#include <string>

namespace godwit::tls {
namespace {

constexpr size_t kKey = 16;
constexpr size_t kTag = 16;

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

RecordKey::RecordKey(const Direction& direction, bool to_encrypt)
    : direction_(direction), to_encrypt_(to_encrypt), context_(EVP_CIPHER_CTX_new()) {
  if (!set_key()) context_.reset();
}

bool RecordKey::set_key() {
  std::array<unsigned char, kKey> key{};
  expand(direction_.secret, "key", key);
  expand(direction_.secret, "iv", iv_);
  const bool set =
      context_ != nullptr && EVP_CipherInit_ex(context_.get(), EVP_aes_128_gcm(), nullptr,
                                               key.data(), nullptr, to_encrypt_ ? 1 : 0) == 1;
  OPENSSL_cleanse(key.data(), key.size());
  return set;
}

void RecordKey::update() {
  std::array<unsigned char, 32> next{};
  expand(direction_.secret, "traffic upd", next);
  direction_.secret = next;
  OPENSSL_cleanse(next.data(), next.size());
  direction_.sequence = 0;
  if (!set_key()) context_.reset();
}

bool RecordKey::begin(std::span<const std::byte> header) {
  if (context_ == nullptr) return false;
  std::array<unsigned char, 12> nonce = iv_;
  for (size_t i = 0; i < 8; ++i)
    nonce.at(4 + i) ^= static_cast<unsigned char>(direction_.sequence >> (56 - 8 * i));
  ++direction_.sequence;
  int length = 0;
  return EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, nonce.data(), -1) == 1 &&
         EVP_CipherUpdate(context_.get(), nullptr, &length,
                          reinterpret_cast<const unsigned char*>(header.data()),
                          static_cast<int>(header.size())) == 1;
}

size_t Sealer::seal(Content type, std::span<const iovec> from, std::byte* to) {
  size_t plain = 0;
  for (const iovec& part : from) plain += part.iov_len;
  const auto header = header_of(plain + 1 + kTag);
  std::copy(header.begin(), header.end(), to);
  if (!begin(header)) return 0;
  unsigned char* at = bytes_of(to) + kHeader;
  int length = 0;
  for (const iovec& part : from) {
    if (EVP_EncryptUpdate(context(), at, &length, bytes_of(part.iov_base),
                          static_cast<int>(part.iov_len)) != 1)
      return 0;
    at += length;
  }
  const auto last = static_cast<unsigned char>(type);
  if (EVP_EncryptUpdate(context(), at, &length, &last, 1) != 1) return 0;
  at += length;
  if (EVP_EncryptFinal_ex(context(), at, &length) != 1 ||
      EVP_CIPHER_CTX_ctrl(context(), EVP_CTRL_AEAD_GET_TAG, kTag, at) != 1)
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
  int length = 0;
  for (const iovec& part : to) {
    const size_t some = std::min(part.iov_len, left);
    if (some == 0) continue;
    if (EVP_DecryptUpdate(context(), bytes_of(part.iov_base), &length, from,
                          static_cast<int>(some)) != 1)
      return Content::kInvalid;
    from += some;
    left -= some;
  }
  unsigned char type = 0;
  std::array<unsigned char, kTag> tag{};
  if (left != 0 || EVP_DecryptUpdate(context(), &type, &length, from, 1) != 1)
    return Content::kInvalid;
  std::copy_n(from + 1, kTag, tag.begin());
  if (EVP_CIPHER_CTX_ctrl(context(), EVP_CTRL_AEAD_SET_TAG, kTag, tag.data()) != 1 ||
      EVP_DecryptFinal_ex(context(), tag.data(), &length) != 1)
    return Content::kInvalid;
  // Padding ends in zeros. Nobody pads here.
  return type == 0 ? Content::kInvalid : static_cast<Content>(type);
}

}  // namespace godwit::tls
