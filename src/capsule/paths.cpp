#include "capsule/paths.h"

#include <sys/stat.h>

#include <cerrno>

#include "base/status.h"

namespace godwit::capsule {
namespace {

bool letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// Missing parents too. The mode is set without regard to the umask.
absl::Status make_dirs(const std::string& path, mode_t mode) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (::mkdir(part.c_str(), 0755) == 0) {
      if (at == std::string::npos && ::chmod(part.c_str(), mode) != 0) {
        return errno_status(errno, fmt::format("chmod(\"{}\", {:o})", part, mode));
      }
    } else if (errno != EEXIST) {
      return errno_status(errno, fmt::format("mkdir(\"{}\")", part));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status check_name(std::string_view name) {
  bool good = !name.empty() && name.size() <= 63 && letter_or_digit(name[0]);
  for (const char c : name) good = good && (letter_or_digit(c) || c == '_' || c == '.' || c == '-');
  if (good) return absl::OkStatus();
  return make_error(
      absl::StatusCode::kInvalidArgument,
      "name \"{}\": use 1 to 63 letters, digits, '_', '.', '-', a letter or digit first", name);
}

std::string_view service_of(std::string_view capsule) {
  return capsule.substr(0, capsule.find('~'));
}

absl::Status check_capsule_name(std::string_view name) {
  GW_RETURN_IF_ERROR(check_name(service_of(name)));
  const size_t tilde = name.find('~');
  if (tilde == std::string_view::npos) return absl::OkStatus();
  const std::string_view tail = name.substr(tilde + 1);
  bool good = !tail.empty() && tail.size() <= 16;
  for (const char c : tail) good = good && letter_or_digit(c);
  if (good) return absl::OkStatus();
  return make_error(absl::StatusCode::kInvalidArgument, "\"{}\" is no capsule's name", name);
}

absl::Status make_service_dirs(const ServicePaths& paths) {
  GW_RETURN_IF_ERROR(make_dirs(paths.dir, 0700));
  GW_RETURN_IF_ERROR(make_dirs(paths.layer(), 0700));
  GW_RETURN_IF_ERROR(make_dirs(paths.upper(), 0755));
  GW_RETURN_IF_ERROR(make_dirs(paths.work(), 0755));
  // Becomes /dev/shm: world-writable and sticky as there.
  GW_RETURN_IF_ERROR(make_dirs(paths.shm(), 01777));
  GW_RETURN_IF_ERROR(make_dirs(paths.root(), 0755));
  return make_dirs(paths.port(), 0700);
}

}  // namespace godwit::capsule
