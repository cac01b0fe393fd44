// A pid as the capsule sees it and as this machine sees it are different things: types keep them
// apart.
#ifndef GODWIT_BASE_IDS_H_
#define GODWIT_BASE_IDS_H_

#include <sys/types.h>

#include <compare>
#include <cstdint>

namespace godwit {

// pid or tid in the capsule's pid namespace: the same at source and destination.
struct ImagePid {
  int32_t value = 0;
  auto operator<=>(const ImagePid&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, ImagePid p) {
    return H::combine(std::move(h), p.value);
  }
};

// pid or tid in our own pid namespace.
struct HostPid {
  pid_t value = 0;
  auto operator<=>(const HostPid&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, HostPid p) {
    return H::combine(std::move(h), p.value);
  }
};

// An address in another process. Never dereferenced here.
struct RemoteAddress {
  uint64_t value = 0;
  auto operator<=>(const RemoteAddress&) const = default;
  RemoteAddress operator+(uint64_t bytes) const { return {value + bytes}; }
};

}  // namespace godwit

#endif  // GODWIT_BASE_IDS_H_
