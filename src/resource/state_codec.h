// Between a resource's message, the kernel's structs and a batch's data area.
#ifndef GODWIT_RESOURCE_STATE_CODEC_H_
#define GODWIT_RESOURCE_STATE_CODEC_H_

#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status.h"
#include "tracee/batch.h"

namespace godwit::resource {

// An empty state is the message with nothing set: the default of a new task.
template <typename Message>
absl::StatusOr<Message> parse_state(std::string_view state, std::string_view resource) {
  Message message;
  if (state.size() > size_t{std::numeric_limits<int>::max()} ||
      !message.ParseFromArray(state.data(), static_cast<int>(state.size())))
    return make_error(absl::StatusCode::kDataLoss, "state of {} cannot be read: {} bytes", resource,
                      state.size());
  return message;
}

template <typename T>
requires std::is_trivially_copyable_v<T> std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

// What a call of the batch wrote into `data`, `index` being the place in an array of T.
template <typename T>
requires std::is_trivially_copyable_v<T> T value_in(const tracee::Batch& batch,
                                                    tracee::Batch::Data data, size_t index = 0) {
  T value{};
  const std::span<const std::byte> bytes = batch.bytes(data);
  if ((index + 1) * sizeof(T) <= bytes.size())
    std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// One element of an array inside `data`, as the argument of a call.
inline tracee::Batch::Data slice(tracee::Batch::Data data, size_t offset, size_t size) {
  return {data.offset + static_cast<uint32_t>(offset), static_cast<uint32_t>(size)};
}

// A raw result that is an error number, 0 otherwise.
inline int error_in(int64_t result) {
  return result < 0 && result >= -4095 ? static_cast<int>(-result) : 0;
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_STATE_CODEC_H_
