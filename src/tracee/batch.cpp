#include "tracee/batch.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "tracee/stub_layout.h"

namespace godwit::tracee {
namespace {

constexpr uint32_t kDataAlignment = 16;

void put(std::vector<std::byte>& image, uint64_t at, uint64_t value) {
  std::memcpy(image.data() + at, &value, sizeof value);
}

// Table entries are 72 bytes: the data after them is aligned again.
uint64_t data_offset(size_t calls) {
  return (STUB_FRAME_SIZE + calls * STUB_ENTRY_SIZE + kDataAlignment - 1) &
         ~uint64_t{kDataAlignment - 1};
}

bool is_error(int64_t result) { return result < 0 && result >= -4095; }

}  // namespace

Batch::Data Batch::reserve(size_t bytes) {
  const size_t at = (data_.size() + kDataAlignment - 1) & ~size_t{kDataAlignment - 1};
  data_.resize(at + bytes);
  return {.offset = static_cast<uint32_t>(at), .size = static_cast<uint32_t>(bytes)};
}

Batch::Data Batch::data(std::span<const std::byte> bytes) {
  const Data place = reserve(bytes.size());
  std::copy(bytes.begin(), bytes.end(), data_.begin() + place.offset);
  return place;
}

void Batch::patch_pointer(Data where, size_t at, Data target) {
  patches_.push_back({.where = where.offset + static_cast<uint32_t>(at), .target = target.offset});
}

size_t Batch::call(long number, std::initializer_list<Argument> arguments, bool must_succeed) {
  Call added{.number = number, .must_succeed = must_succeed, .result = -ECANCELED};
  std::copy_n(arguments.begin(), std::min(arguments.size(), added.arguments.size()),
              added.arguments.begin());
  calls_.push_back(added);
  return calls_.size() - 1;
}

int64_t Batch::result(size_t index) const { return calls_.at(index).result; }

std::span<const std::byte> Batch::bytes(Data d) const {
  return std::span(data_).subspan(d.offset, d.size);
}

absl::Status Batch::check(size_t index) const {
  const Call& made = calls_.at(index);
  if (!is_error(made.result)) return absl::OkStatus();
  std::array<uint64_t, 6> arguments{};
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Argument& argument = made.arguments[i];
    arguments[i] = argument.kind == Argument::Kind::kResult
                       ? static_cast<uint64_t>(calls_.at(argument.value).result)
                       : argument.value;
  }
  return errno_status(static_cast<int>(-made.result), describe_call(made.number, arguments));
}

absl::Status Batch::check_all() const {
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (calls_[i].must_succeed) GW_RETURN_IF_ERROR(check(i));
  }
  return absl::OkStatus();
}

uint64_t Batch::image_size() const { return data_offset(calls_.size()) + data_.size(); }

std::vector<std::byte> Batch::image(RemoteAddress frame) const {
  std::vector<std::byte> image(image_size());
  const uint64_t data = data_offset(calls_.size());
  put(image, STUB_FRAME_TABLE, frame.value + STUB_FRAME_SIZE);
  put(image, STUB_FRAME_COUNT, calls_.size());
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& made = calls_[i];
    const uint64_t entry = STUB_FRAME_SIZE + i * STUB_ENTRY_SIZE;
    uint64_t flags = made.must_succeed ? STUB_ENTRY_MUST_SUCCEED : 0;
    for (size_t k = 0; k < made.arguments.size(); ++k) {
      uint64_t value = made.arguments[k].value;
      if (made.arguments[k].kind == Argument::Kind::kData) {
        value += frame.value + data;
      } else if (made.arguments[k].kind == Argument::Kind::kResult) {
        value = frame.value + STUB_FRAME_SIZE + value * STUB_ENTRY_SIZE + STUB_ENTRY_RESULT;
        flags |= uint64_t{STUB_ENTRY_INDIRECT} << k;
      }
      put(image, entry + STUB_ENTRY_ARGUMENTS + 8 * k, value);
    }
    put(image, entry + STUB_ENTRY_NR, static_cast<uint64_t>(made.number));
    put(image, entry + STUB_ENTRY_RESULT, static_cast<uint64_t>(int64_t{-ECANCELED}));
    put(image, entry + STUB_ENTRY_FLAGS, flags);
  }
  std::copy(data_.begin(), data_.end(), image.begin() + static_cast<ptrdiff_t>(data));
  for (const Patch& patch : patches_) {
    put(image, data + patch.where, frame.value + data + patch.target);
  }
  return image;
}

void Batch::take_image(std::span<const std::byte> image) {
  for (size_t i = 0; i < calls_.size(); ++i) {
    std::memcpy(&calls_[i].result,
                image.data() + STUB_FRAME_SIZE + i * STUB_ENTRY_SIZE + STUB_ENTRY_RESULT,
                sizeof calls_[i].result);
  }
  const uint64_t data = data_offset(calls_.size());
  std::copy(image.begin() + static_cast<ptrdiff_t>(data), image.end(), data_.begin());
}

}  // namespace godwit::tracee
