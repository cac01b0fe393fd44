#include "tracee/batch.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
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

// Beside the stub's own flags, which are in the first byte: argument k is a place in the data.
constexpr uint64_t kDataFlag = uint64_t{1} << 8;
// Or the place of an argument in the table.
constexpr uint64_t kPlaceFlag = kDataFlag << Batch::kArguments;
// A capture of a task has some hundred calls: no growing from one by doubling.
constexpr size_t kFirstCalls = 64;
constexpr size_t kFirstBytes = 1024;

bool is_error(int64_t result) { return result < 0 && result >= -4095; }

}  // namespace

Batch::Data Batch::reserve(size_t bytes) {
  const size_t at = (data_.size() + kDataAlignment - 1) & ~size_t{kDataAlignment - 1};
  if (data_.capacity() == 0) data_.reserve(std::max(kFirstBytes, bytes));
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
  static_assert(offsetof(Call, number) == STUB_ENTRY_NR);
  static_assert(offsetof(Call, arguments) == STUB_ENTRY_ARGUMENTS);
  static_assert(offsetof(Call, result) == STUB_ENTRY_RESULT);
  static_assert(offsetof(Call, flags) == STUB_ENTRY_FLAGS);
  static_assert(sizeof(Call) == STUB_ENTRY_SIZE);
  if (calls_.capacity() == 0) calls_.reserve(kFirstCalls);
  Call& added = calls_.emplace_back(Call{.number = static_cast<uint64_t>(number),
                                         .arguments = {},
                                         .result = -ECANCELED,
                                         .flags = must_succeed ? STUB_ENTRY_MUST_SUCCEED : 0u});
  size_t k = 0;
  for (const Argument& argument : arguments)
    if (k < added.arguments.size()) set_argument(calls_.size() - 1, k++, argument);
  return calls_.size() - 1;
}

void Batch::set_argument(size_t index, size_t argument, Argument value) {
  Call& call = calls_.at(index);
  call.arguments.at(argument) = value.value;
  const uint64_t kinds = (kDataFlag | kPlaceFlag | uint64_t{STUB_ENTRY_INDIRECT}) << argument;
  call.flags &= ~kinds;
  if (value.kind == Argument::Kind::kData) call.flags |= kDataFlag << argument;
  if (value.kind == Argument::Kind::kPlace) call.flags |= kPlaceFlag << argument;
  if (value.kind == Argument::Kind::kResult)
    call.flags |= uint64_t{STUB_ENTRY_INDIRECT} << argument;
}

int64_t Batch::result(size_t index) const { return calls_.at(index).result; }

std::span<const std::byte> Batch::bytes(Data d) const {
  return std::span(data_).subspan(d.offset, d.size);
}

absl::Status Batch::check(size_t index) const {
  const Call& made = calls_.at(index);
  if (!is_error(made.result)) return absl::OkStatus();
  std::array<uint64_t, kArguments> arguments = made.arguments;
  for (size_t k = 0; k < arguments.size(); ++k)
    if ((made.flags & (uint64_t{STUB_ENTRY_INDIRECT} << k)) != 0)
      arguments[k] = static_cast<uint64_t>(calls_.at(arguments[k]).result);
  return errno_status(static_cast<int>(-made.result),
                      describe_call(static_cast<long>(made.number), arguments));
}

absl::Status Batch::check_all() const {
  for (size_t i = 0; i < calls_.size(); ++i) {
    if ((calls_[i].flags & STUB_ENTRY_MUST_SUCCEED) != 0) GW_RETURN_IF_ERROR(check(i));
  }
  return absl::OkStatus();
}

uint64_t Batch::image_size() const { return data_offset(calls_.size()) + data_.size(); }

void Batch::make_image(RemoteAddress frame, std::vector<std::byte>& image) const {
  image.resize(image_size());
  const uint64_t data = data_offset(calls_.size());
  put(image, STUB_FRAME_TABLE, frame.value + STUB_FRAME_SIZE);
  put(image, STUB_FRAME_COUNT, calls_.size());
  std::memcpy(image.data() + STUB_FRAME_SIZE, calls_.data(), calls_.size() * STUB_ENTRY_SIZE);
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& made = calls_[i];
    const uint64_t entry = STUB_FRAME_SIZE + i * STUB_ENTRY_SIZE;
    for (size_t k = 0; made.flags > STUB_ENTRY_MUST_SUCCEED && k < made.arguments.size(); ++k) {
      const uint64_t at = entry + STUB_ENTRY_ARGUMENTS + 8 * k;
      if ((made.flags & (kDataFlag << k)) != 0)
        put(image, at, frame.value + data + made.arguments[k]);
      else if ((made.flags & (kPlaceFlag << k)) != 0)
        put(image, at,
            frame.value + STUB_FRAME_SIZE + made.arguments[k] / kArguments * STUB_ENTRY_SIZE +
                STUB_ENTRY_ARGUMENTS + 8 * (made.arguments[k] % kArguments));
      else if ((made.flags & (uint64_t{STUB_ENTRY_INDIRECT} << k)) != 0)
        put(image, at,
            frame.value + STUB_FRAME_SIZE + made.arguments[k] * STUB_ENTRY_SIZE +
                STUB_ENTRY_RESULT);
    }
    // It may be run again.
    put(image, entry + STUB_ENTRY_RESULT, static_cast<uint64_t>(int64_t{-ECANCELED}));
  }
  std::copy(data_.begin(), data_.end(), image.begin() + static_cast<ptrdiff_t>(data));
  for (const Patch& patch : patches_) {
    put(image, data + patch.where, frame.value + data + patch.target);
  }
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
