#include "kernel/proc/fdinfo.h"

#include <fmt/format.h>

#include <utility>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

template <typename T>
bool head(TextScanner& s, std::string_view key, T& value, int base = 10) {
  if (!s.literal(key)) return false;
  s.skip_blanks();
  return s.number(value, base) && s.literal("\n");
}

}  // namespace

absl::StatusOr<FdInfo> parse_fdinfo(std::string_view text) {
  FdInfo info;
  TextScanner s(text);
  if (!head(s, "pos:", info.pos) || !head(s, "flags:", info.flags, 8) ||
      !head(s, "mnt_id:", info.mnt_id)) {
    return make_error(absl::StatusCode::kInvalidArgument, "fdinfo: no pos, flags, mnt_id: \"{}\"",
                      text.substr(0, 200));
  }
  if (s.rest().starts_with("ino:") && !head(s, "ino:", info.ino)) {
    return make_error(absl::StatusCode::kInvalidArgument, "fdinfo: bad ino");
  }
  while (!s.at_end()) {
    TextScanner line(s.line());
    const size_t colon = line.rest().find(':');
    if (line.at_end()) continue;
    // "inotify wd:3 ino:..." and the like: the first colon is not after a key alone. Such lines
    // keep their whole text as value, with the first word as key.
    std::string_view key = line.rest().substr(0, colon);
    std::string_view value;
    if (colon != std::string_view::npos && key.find(' ') == std::string_view::npos) {
      value = line.rest().substr(colon + 1);
    } else {
      key = line.word();
      value = line.rest();
    }
    TextScanner trimmed(value);
    trimmed.skip_blanks();
    value = trimmed.rest();
    while (value.ends_with(' ') || value.ends_with('\t')) value.remove_suffix(1);
    info.lines.push_back({std::string(key), std::string(value)});
  }
  return info;
}

std::optional<std::string_view> FdInfo::find(std::string_view key) const {
  for (const Line& line : lines) {
    if (line.key == key) return line.value;
  }
  return std::nullopt;
}

std::optional<uint64_t> FdInfo::number(std::string_view key, int base) const {
  const auto text = find(key);
  if (!text) return std::nullopt;
  TextScanner s(*text);
  uint64_t value = 0;
  if (base == 16) (void)s.literal("0x");
  if (!s.number(value, base) || !s.at_end()) return std::nullopt;
  return value;
}

absl::StatusOr<std::string> read_fdinfo_text(HostPid pid, int fd) {
  return read_file(fmt::format("/proc/{}/fdinfo/{}", pid.value, fd));
}

absl::StatusOr<FdInfo> read_fdinfo(HostPid pid, int fd) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_fdinfo_text(pid, fd));
  return parse_fdinfo(text);
}

}  // namespace godwit::kernel
