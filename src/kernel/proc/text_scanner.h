// Reads the texts of /proc piece by piece. Every function that fails leaves the scanner unchanged:
// text from /proc is hostile like any other (a program names its files, threads and mappings).
#ifndef GODWIT_KERNEL_PROC_TEXT_SCANNER_H_
#define GODWIT_KERNEL_PROC_TEXT_SCANNER_H_

#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace godwit::kernel {

class TextScanner {
 public:
  explicit TextScanner(std::string_view text) : text_(text) {}

  bool at_end() const { return text_.empty(); }
  std::string_view rest() const { return text_; }
  char peek() const { return text_.empty() ? '\0' : text_.front(); }

  bool literal(std::string_view expected) {
    if (!text_.starts_with(expected)) return false;
    text_.remove_prefix(expected.size());
    return true;
  }

  // A whole number of type T without sign (or with '-' when T is signed); overflow fails.
  template <typename T>
  bool number(T& value, int base = 10) {
    const char* const end = text_.data() + text_.size();
    const auto [next, error] = std::from_chars(text_.data(), end, value, base);
    if (error != std::errc()) return false;
    text_.remove_prefix(static_cast<size_t>(next - text_.data()));
    return true;
  }

  // Any number of `c`, also none.
  void skip(char c) {
    while (!text_.empty() && text_.front() == c) text_.remove_prefix(1);
  }
  void skip_blanks() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\t'))
      text_.remove_prefix(1);
  }

  // Up to the next blank, newline or the end; may be empty.
  std::string_view word() {
    const size_t length = std::min(text_.find_first_of(" \t\n"), text_.size());
    const std::string_view result = text_.substr(0, length);
    text_.remove_prefix(length);
    return result;
  }

  // Up to the newline, which is taken but not returned, or the end.
  std::string_view line() {
    const size_t length = std::min(text_.find('\n'), text_.size());
    const std::string_view result = text_.substr(0, length);
    text_.remove_prefix(std::min(length + 1, text_.size()));
    return result;
  }

 private:
  std::string_view text_;
};

// "\040" -> ' ': what seq_path(9) and mangle() do to the characters that would break a line.
inline std::string unescape_octal(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && digit(i + 1) && digit(i + 2) && digit(i + 3) &&
        text[i + 1] <= '3') {
      result.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                         (text[i + 3] - '0')));
      i += 3;
    } else {
      result.push_back(text[i]);
    }
  }
  return result;
}

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_PROC_TEXT_SCANNER_H_
