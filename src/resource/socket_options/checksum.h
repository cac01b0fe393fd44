// The Internet checksum (RFC 1071).
#ifndef GODWIT_RESOURCE_SOCKET_OPTIONS_CHECKSUM_H_
#define GODWIT_RESOURCE_SOCKET_OPTIONS_CHECKSUM_H_

#include <cstdint>
#include <cstring>
#include <string_view>

namespace godwit::resource {

class Checksum {
 public:
  // Of any length; only the last piece may be odd.
  void add(std::string_view bytes) {
    for (; bytes.size() >= 2; bytes.remove_prefix(2)) {
      uint16_t word = 0;
      std::memcpy(&word, bytes.data(), sizeof word);
      sum_ += word;
    }
    if (!bytes.empty()) sum_ += static_cast<uint8_t>(bytes.front());
  }
  template <typename T>
  void add_object(const T& object) {
    static_assert(sizeof(T) % 2 == 0);
    add(std::string_view(reinterpret_cast<const char*>(&object), sizeof object));
  }
  // As it stands in a packet.
  uint16_t value() const {
    uint64_t sum = sum_;
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
  }

 private:
  uint64_t sum_ = 0;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SOCKET_OPTIONS_CHECKSUM_H_
