#include "cli/json.h"

#include <fmt/core.h>

#include "base/utf8.h"

namespace godwit::cli {

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
