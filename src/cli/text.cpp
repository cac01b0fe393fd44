#include "cli/text.h"

#include <signal.h>
#include <string.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>

#include "base/status.h"

namespace godwit::cli {
namespace {

// "1.5GiB" to 1.5 and "GiB".
absl::Status split_number(std::string_view text, double& number, std::string_view& unit) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number) || number < 0)
    return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" does not begin with a number",
                      text);
  unit = text.substr(static_cast<size_t>(end - text.data()));
  return absl::OkStatus();
}

struct Unit {
  std::string_view name;
  double factor;
};

absl::StatusOr<int64_t> with_unit(std::string_view text, std::initializer_list<Unit> units,
                                  std::string_view known) {
  double number = 0;
  std::string_view unit;
  GW_RETURN_IF_ERROR(split_number(text, number, unit));
  for (const Unit& each : units) {
    const double value = number * each.factor;
    if (each.name == unit && value < 9e18) return static_cast<int64_t>(std::llround(value));
  }
  return make_error(absl::StatusCode::kInvalidArgument, "\"{}\": use a number and one of {}", text,
                    known);
}

}  // namespace

absl::StatusOr<int64_t> parse_duration_ns(std::string_view text) {
  return with_unit(text,
                   {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}},
                   "ns, us, ms, s, m, h");
}

absl::StatusOr<int64_t> parse_bandwidth(std::string_view text) {
  constexpr double kKi = 1024, kMi = kKi * 1024, kGi = kMi * 1024;
  return with_unit(text,
                   {{"", 1},
                    {"B", 1},
                    {"K", 1e3},
                    {"KB", 1e3},
                    {"M", 1e6},
                    {"MB", 1e6},
                    {"G", 1e9},
                    {"GB", 1e9},
                    {"Ki", kKi},
                    {"KiB", kKi},
                    {"Mi", kMi},
                    {"MiB", kMi},
                    {"Gi", kGi},
                    {"GiB", kGi},
                    {"bit", 1 / 8.},
                    {"kbit", 1e3 / 8},
                    {"Kbit", 1e3 / 8},
                    {"Mbit", 1e6 / 8},
                    {"Gbit", 1e9 / 8}},
                   "B, K, M, G, KiB, MiB, GiB, Mbit, Gbit (a second)");
}

absl::StatusOr<int> parse_signal(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size() && number > 0 && number < NSIG)
    return number;
  std::string name(text.substr(text.starts_with("SIG") ? 3 : 0));
  for (int each = 1; each < NSIG; ++each) {
    const char* known = ::sigabbrev_np(each);
    if (known != nullptr && name == known) return each;
  }
  return make_error(absl::StatusCode::kInvalidArgument,
                    "\"{}\" is no signal: use a number or a name such as TERM or SIGTERM", text);
}

std::string format_ns(int64_t ns) {
  const auto value = static_cast<double>(ns);
  if (ns < 10'000) return fmt::format("{} ns", ns);
  if (ns < 1'000'000) return fmt::format("{:.0f} us", value / 1e3);
  if (ns < 1'000'000'000) return fmt::format("{:.2f} ms", value / 1e6);
  return fmt::format("{:.2f} s", value / 1e9);
}

std::string format_amount(uint64_t n, const char* one, const char* many) {
  return fmt::format("{} {}", n, n == 1 ? one : many);
}

std::string format_bytes(uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  const int decimals = unit == 0 || value >= 100 ? 0 : 1;
  return fmt::format("{:.{}f} {}", value, decimals, units[unit]);
}

std::string format_age(int64_t since_unix_ns) {
  if (since_unix_ns <= 0) return "-";
  const int64_t seconds = std::max<int64_t>(0, std::time(nullptr) - since_unix_ns / 1'000'000'000);
  const auto say = [](int64_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  if (seconds < 120) return say(seconds, "second");
  if (seconds < 7200) return say(seconds / 60, "minute");
  if (seconds < 2 * 86400) return say(seconds / 3600, "hour");
  return say(seconds / 86400, "day");
}

std::string Table::str() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  std::string out;
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i)
      // Nothing behind the last cell.
      out += i + 1 == row.size() ? row[i] : fmt::format("{:<{}}", row[i], widths[i] + 2);
    out += '\n';
  }
  return out;
}

}  // namespace godwit::cli
