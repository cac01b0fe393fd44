#include "vm/rpc_gate.h"

#include <endian.h>

#include <cstring>

namespace godwit::vm {
namespace {

constexpr uint32_t kRemoteProgram = 0x20008086;
constexpr uint32_t kFinish3Params = 306;
constexpr uint32_t kCall = 0;
constexpr size_t kHeader = 28;
// VIR_NET_MESSAGE_MAX, and its length word.
constexpr size_t kMost = (size_t{32} << 20) + 4;

uint32_t word_at(std::string_view bytes, size_t at) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return be32toh(word);
}

bool lets_it_run(std::string_view message) {
  if (message.size() < kHeader + 4) return false;
  return word_at(message, 4) == kRemoteProgram && word_at(message, 12) == kFinish3Params &&
         word_at(message, 16) == kCall && word_at(message, message.size() - 4) == 0;
}

}  // namespace

std::string RpcGate::pass(std::string_view bytes) {
  if (open_) return std::string(bytes);
  waiting_.append(bytes);
  size_t passed = 0;
  while (!held_ && !broken_ && waiting_.size() - passed >= 4) {
    const std::string_view rest = std::string_view(waiting_).substr(passed);
    const size_t size = word_at(rest, 0);
    broken_ = size < kHeader || size > kMost;
    if (broken_ || rest.size() < size) break;
    held_ = lets_it_run(rest.substr(0, size));
    if (!held_) passed += size;
  }
  if (held_ && waiting_.size() - passed > kMost) broken_ = true;
  std::string going = waiting_.substr(0, passed);
  waiting_.erase(0, passed);
  return going;
}

std::string RpcGate::open() {
  open_ = true;
  held_ = false;
  std::string going;
  going.swap(waiting_);
  return going;
}

}  // namespace godwit::vm
