// What a user types and reads: amounts with units, tables.
#ifndef GODWIT_CLI_TEXT_H_
#define GODWIT_CLI_TEXT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::cli {

// "500us", "20ms", "1.5s", "2m"; a unit is needed.
absl::StatusOr<int64_t> parse_duration_ns(std::string_view text);
// Bytes a second: "100M", "100MiB", "1.5GB", "10Gbit" (bits); K, M, G are 1000s, Ki, Mi, Gi 1024s.
absl::StatusOr<int64_t> parse_bandwidth(std::string_view text);
// A signal's number from "15", "TERM", "SIGTERM".
absl::StatusOr<int> parse_signal(std::string_view text);

std::string format_ns(int64_t ns);         // "850 us", "1.31 ms", "2.40 s"
std::string format_bytes(uint64_t bytes);  // "259 MiB"
std::string format_amount(uint64_t n, const char* one, const char* many);  // "1 process"
std::string format_age(int64_t since_unix_ns);                             // "3 minutes"

// Columns as wide as their widest cell, two spaces between.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string str() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace godwit::cli

#endif  // GODWIT_CLI_TEXT_H_
