// A stream in memory, for tests.
#ifndef GODWIT_STREAM_MEMORY_FOR_TEST_H_
#define GODWIT_STREAM_MEMORY_FOR_TEST_H_

#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "stream/stream.h"

namespace godwit::stream {

class MemorySink final : public Sink {
 public:
  // `proves`: as TLS would.
  explicit MemorySink(bool proves = false) : proves_(proves) {}
  absl::Status write(std::span<const iovec> parts) override {
    for (const iovec& part : parts)
      bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
    return absl::OkStatus();
  }
  absl::Status flush() override { return absl::OkStatus(); }
  bool proves_bytes() const override { return proves_; }

  std::string bytes;

 private:
  bool proves_;
};

// Of bytes that are somebody else's.
class MemoryFeed final : public Feed {
 public:
  explicit MemoryFeed(std::string_view bytes, bool proves = false)
      : bytes_(bytes), proves_(proves) {}
  absl::Status read(std::span<std::byte> to) override {
    if (bytes_.empty()) return absl::OutOfRangeError("end");
    if (bytes_.size() < to.size()) return absl::DataLossError("cut");
    std::memcpy(to.data(), bytes_.data(), to.size());
    bytes_.remove_prefix(to.size());
    return absl::OkStatus();
  }
  bool proves_bytes() const override { return proves_; }

 private:
  std::string_view bytes_;
  bool proves_;
};

}  // namespace godwit::stream

#endif  // GODWIT_STREAM_MEMORY_FOR_TEST_H_
