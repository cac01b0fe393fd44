#include "cli/json.h"

#include <fmt/core.h>

namespace godwit::cli {
namespace {

// Length of the well-formed UTF-8 sequence at `at` (RFC 3629), 0 if there is none.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if (length == 3 && ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f)))
    return 0;
  if (length == 4 && ((first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f)))
    return 0;
  return length;
}

}  // namespace

std::string json_quote(std::string_view text) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const size_t length = utf8_length(text, at);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else if (length == 0) {
      out += "\\ufffd";  // command lines may hold any bytes, JSON may not
    } else {
      out += text.substr(at, length);
    }
    at += length == 0 ? 1 : length;
  }
  return out + '"';
}

void Json::begin_value(std::string_view key) {
  if (!first_) text_ += ',';
  first_ = false;
  if (!closing_.empty()) {
    text_ += '\n';
    text_.append(closing_.size() * 2, ' ');
  }
  if (!key.empty()) text_ += json_quote(key) + ": ";
}

Json& Json::open(std::string_view key, char bracket) {
  begin_value(key);
  text_ += bracket;
  closing_ += bracket == '{' ? '}' : ']';
  first_ = true;
  return *this;
}

Json& Json::raw(std::string_view key, std::string_view value) {
  begin_value(key);
  text_ += value;
  return *this;
}

Json& Json::end() {
  const char bracket = closing_.back();
  closing_.pop_back();
  if (!first_) {
    text_ += '\n';
    text_.append(closing_.size() * 2, ' ');
  }
  text_ += bracket;
  if (closing_.empty()) text_ += '\n';
  first_ = false;
  return *this;
}

}  // namespace godwit::cli
