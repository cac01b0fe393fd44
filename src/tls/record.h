// TLS 1.3's records (RFC 8446, 5.2) of TLS_AES_128_GCM_SHA256, made and opened in place: what
// kernel TLS does, where there is one. OpenSSL shakes hands (handshake.h) and this carries on with
// the traffic secrets: pages are encrypted from where they lie into what is sent, and decrypted
// into where they are to be, and a connection can be handed to another process.
//
//   23 03 03 length(2) | encrypted: data type(1) | tag(16)      additional data: the first 5 bytes
//   nonce = iv xor number of the record
//
// Other end: any TLS 1.3 implementation (record_test.cpp talks to OpenSSL's).
#ifndef GODWIT_TLS_RECORD_H_
#define GODWIT_TLS_RECORD_H_

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "tls/gcm.h"

namespace godwit::tls {

inline constexpr size_t kMaxPlain = size_t{1} << 14;  // of one record
inline constexpr size_t kHeader = 5;
inline constexpr size_t kOverhead = kHeader + 1 + 16;
// What a peer may make of it by padding (RFC 8446, 5.2).
inline constexpr size_t kMaxRecord = kHeader + kMaxPlain + 256;

// What is done once in a process, some ms of CPU time: for one that has time to do it ahead.
void prepare_records();

enum class Content : uint8_t { kInvalid = 0, kAlert = 21, kHandshake = 22, kData = 23 };

// One direction of a connection. Whoever has it can read and forge what goes that way.
struct Direction {
  std::array<unsigned char, 32> secret{};
  uint64_t sequence = 0;  // of the next record

  Direction() = default;
  Direction(const Direction&) = default;
  Direction& operator=(const Direction&) = default;
  ~Direction();
};

// Key and nonces of a Direction; one thread uses it.
class RecordKey {
 public:
  RecordKey(const Direction& direction, Direct direct);
  // False: there is no AES-GCM.
  bool usable() const { return cipher_ != nullptr; }
  const Direction& direction() const { return direction_; }

 protected:
  // Sets the next record's nonce and takes in its header.
  bool begin(std::span<const std::byte> header);
  // The next generation of the secret (RFC 8446, 7.2), as after a KeyUpdate.
  void update();
  Gcm& cipher() const { return *cipher_; }

 private:
  void set_key();

  Direction direction_;
  Direct direct_;
  std::array<unsigned char, kGcmNonce> iv_{};
  std::unique_ptr<Gcm> cipher_;
};

class Sealer : public RecordKey {
 public:
  explicit Sealer(const Direction& direction) : RecordKey(direction, Direct::kEncrypt) {}
  // Encrypts at most kMaxPlain bytes into `to`, which has room for kOverhead more. Bytes written;
  // 0: the cipher failed.
  size_t seal(Content type, std::span<const iovec> from, std::byte* to);
  // AES-GCM keeps its promises for 2^24.5 records with one key (RFC 8446, 5.5).
  bool needs_update() const { return direction().sequence >= update_after_; }
  // Writes the record that announces it, kOverhead + 5 bytes.
  size_t seal_update(std::byte* to);
  void update_after(uint64_t records) { update_after_ = records; }

 private:
  uint64_t update_after_ = uint64_t{1} << 24;
};

class Opener : public RecordKey {
 public:
  explicit Opener(const Direction& direction) : RecordKey(direction, Direct::kDecrypt) {}

  // Length of the record that begins here, header and all; 0: more is needed to tell; SIZE_MAX:
  // this is no record.
  static size_t record_bytes(std::span<const std::byte> from);
  // Decrypts a whole record into `to`, whose room is at least its length - kOverhead, and which
  // may be written to whatever comes of it. The type; kInvalid: it was changed on the way, or is
  // not the next one of this connection.
  Content open(std::span<const std::byte> record, std::span<const iovec> to);
  // The peer has told by a KeyUpdate.
  void key_updated() { update(); }
};

}  // namespace godwit::tls

#endif  // GODWIT_TLS_RECORD_H_
