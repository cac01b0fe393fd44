#include "vm/fault_around.h"

#include <endian.h>

#include <algorithm>
#include <cstring>

namespace godwit::vm {
namespace {

constexpr uint16_t kShut = 1;
constexpr uint16_t kRequestOfBlock = 3;
constexpr uint16_t kRequest = 4;
constexpr size_t kHead = 4;
constexpr size_t kRange = 12;
// At 1 Gbit/s another half a millisecond on the link.
constexpr uint64_t kWindow = uint64_t{64} << 10;

template <typename Word>
Word word_at(std::string_view bytes, size_t at) {
  Word word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  if constexpr (sizeof word == 2)
    return be16toh(word);
  else if constexpr (sizeof word == 4)
    return be32toh(word);
  else
    return be64toh(word);
}

void append(std::string& out, uint64_t value, size_t size) {
  for (size_t i = size; i > 0; --i) out.push_back(static_cast<char>(value >> (8 * (i - 1))));
}

void ask(uint64_t start, uint64_t end, std::string& out) {
  if (start >= end) return;
  append(out, kRequest, 2);
  append(out, kRange, 2);
  append(out, start, 8);
  append(out, end - start, 4);
}

}  // namespace

void FaultAround::ask_beside(uint64_t start, uint64_t len, std::string& out) {
  const uint64_t end = start + len;
  uint64_t& known_end = known_end_[block_];
  known_end = std::max(known_end, end);
  const uint64_t window = start / kWindow;
  const auto [last, first] = last_.try_emplace(block_, window);
  if (!first && last->second == window) return;  // all of it is on its way
  last->second = window;
  // What comes after it first.
  ask(end, std::min((window + 1) * kWindow, known_end), out);
  ask(window * kWindow, start, out);
}

std::string FaultAround::pass(std::string_view bytes) {
  if (over_) return std::string(bytes);
  waiting_.append(bytes);
  std::string out;
  size_t at = 0;
  while (waiting_.size() - at >= kHead) {
    const std::string_view rest = std::string_view(waiting_).substr(at);
    const auto type = word_at<uint16_t>(rest, 0);
    over_ = type < kShut || type > kRequest;
    if (over_) {
      out.append(rest);
      at = waiting_.size();
      break;
    }
    const size_t size = kHead + word_at<uint16_t>(rest, 2);
    if (rest.size() < size) break;
    out.append(rest.substr(0, size));
    at += size;
    const bool named = type == kRequestOfBlock;
    if ((!named && type != kRequest) || size < kHead + kRange + (named ? 1 : 0)) continue;
    if (named) block_ = rest.substr(kHead + kRange + 1, size - kHead - kRange - 1);
    ask_beside(word_at<uint64_t>(rest, kHead), word_at<uint32_t>(rest, kHead + 8), out);
  }
  waiting_.erase(0, at);
  return out;
}

}  // namespace godwit::vm
