// Writes JSON (RFC 8259), indented, in the order in which it is told.
#ifndef GODWIT_CLI_JSON_H_
#define GODWIT_CLI_JSON_H_

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

namespace godwit::cli {

std::string json_quote(std::string_view text);

class Json {
 public:
  // `key` is "" inside an array and at the top.
  Json& object(std::string_view key = "") { return open(key, '{'); }
  Json& array(std::string_view key = "") { return open(key, '['); }
  Json& end();
  Json& text(std::string_view key, std::string_view value) { return raw(key, json_quote(value)); }
  template <std::integral Number>
  Json& number(std::string_view key, Number value) {
    return raw(key, std::to_string(value));
  }
  Json& boolean(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
  // The text so far; whole once every object and array has ended.
  const std::string& str() const { return text_; }

 private:
  Json& open(std::string_view key, char bracket);
  Json& raw(std::string_view key, std::string_view value);
  void begin_value(std::string_view key);

  std::string text_;
  std::string closing_;  // brackets that are open, innermost last
  bool first_ = true;    // nothing in the innermost one yet
};

}  // namespace godwit::cli

#endif  // GODWIT_CLI_JSON_H_
