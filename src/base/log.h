// The one global: the logger. Lines go to stderr; a daemon's go to its log file by redirection.
// GODWIT_LOG=debug|info|warn|error sets the level (default info).
#ifndef GODWIT_BASE_LOG_H_
#define GODWIT_BASE_LOG_H_

#include <fmt/core.h>

#include <string_view>
#include <utility>

namespace godwit {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// `component` stands before every line, for example "node n1" or "mover redis source".
void init_logging(std::string_view component);
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view line);

template <typename... Args>
void log_debug(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::kDebug))
    log_line(LogLevel::kDebug, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::kInfo))
    log_line(LogLevel::kInfo, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kWarning, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> f, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace godwit

#endif  // GODWIT_BASE_LOG_H_
