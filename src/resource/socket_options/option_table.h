// The table behind options.h.
#ifndef GODWIT_RESOURCE_SOCKET_OPTIONS_OPTION_TABLE_H_
#define GODWIT_RESOURCE_SOCKET_OPTIONS_OPTION_TABLE_H_

#include <cstdint>
#include <span>

#include "resource/socket_options/options.h"

namespace godwit::resource {

enum class OptionForm : uint8_t { kInt, kLinger, kTime, kUnsigned64, kTimestamping };
enum class OptionFamily : uint8_t { kAny, kInet, kInet6 };

struct OptionSpec {
  int level;
  int name;
  uint32_t uses;
  int64_t left_out;  // value that a state does not mention
  OptionForm form = OptionForm::kInt;
  OptionFamily family = OptionFamily::kAny;
};

// In the order in which they are set.
std::span<const OptionSpec> option_table();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SOCKET_OPTIONS_OPTION_TABLE_H_
