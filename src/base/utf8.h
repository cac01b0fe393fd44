// Names of files, threads and mappings are bytes (path_resolution(7), prctl(2)); texts that people
// read, and protobuf's `string`, are UTF-8: a message with anything else in one cannot be parsed.
#ifndef GODWIT_BASE_UTF8_H_
#define GODWIT_BASE_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace godwit {

// Length of the well-formed UTF-8 sequence at `at` (RFC 3629), 0 if there is none.
size_t utf8_length(std::string_view text, size_t at);

// Every byte that is not part of one becomes "\xNN".
std::string escape_non_utf8(std::string_view text);

}  // namespace godwit

#endif  // GODWIT_BASE_UTF8_H_
