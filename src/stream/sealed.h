// A stream in a checkpoint's file, plain or sealed: encrypted, and proven to be of somebody who has
// the key.
//
//   sealed = magic(8) salt(32) record*
//   record = bytes of the text(4, little endian, 1 to 65536) encrypted text, tag(16)
//
// AES-128-GCM. The key: HKDF-SHA256 (RFC 5869) of the key file's bytes, the salt, and
// "godwit image 1"; so each file has its own, and a record's number, from 0, is its nonce. The four
// bytes of its length are proven with it. Where a file is cut between records the stream in it
// ends too early, which its reader notices.
#ifndef GODWIT_STREAM_SEALED_H_
#define GODWIT_STREAM_SEALED_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "stream/stream.h"

namespace godwit::stream {

inline constexpr size_t kLeastKeyBytes = 32;
inline constexpr size_t kMostKeyBytes = 4096;

// `key_file`: "" for a plain file; else a regular file of these sizes that nobody but its owner can
// read. kFailedPrecondition: it is none, with what to do. The descriptor stays the caller's.
absl::StatusOr<std::unique_ptr<Sink>> image_sink(int fd, const std::string& key_file);

// From where the descriptor stands: the file's beginning. kFailedPrecondition: it is sealed and no
// key is given; kDataLoss: it is plain and one is given, which would be taken for proven. What was
// changed, or sealed with another key, is a kDataLoss of the first read() that meets it.
absl::StatusOr<std::unique_ptr<Feed>> image_feed(int fd, const std::string& key_file);

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_SEALED_H_
