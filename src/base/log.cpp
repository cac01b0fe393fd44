#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace godwit {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::shared_ptr<spdlog::logger>& logger() {
  static std::shared_ptr<spdlog::logger> instance =
      std::make_shared<spdlog::logger>("godwit", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  return instance;
}

}  // namespace

void init_logging(std::string_view component) {
  const char* wanted = std::getenv("GODWIT_LOG");
  logger()->set_level(spdlog::level::from_str(wanted != nullptr ? wanted : "info"));
  logger()->set_pattern("%Y-%m-%d %H:%M:%S.%f %L [" + std::string(component) + "] %v");
  logger()->flush_on(spdlog::level::debug);
}

bool log_enabled(LogLevel level) { return logger()->should_log(to_spdlog(level)); }

void log_line(LogLevel level, std::string_view line) { logger()->log(to_spdlog(level), line); }

}  // namespace godwit
