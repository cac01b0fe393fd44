#include "kernel/proc/mountinfo.h"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <utility>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

bool blank(TextScanner& s) { return s.literal(" "); }

bool parse_line(std::string_view line, Mount& m) {
  TextScanner s(line);
  unsigned major_number = 0;
  unsigned minor_number = 0;
  if (!s.number(m.id) || !blank(s) || !s.number(m.parent) || !blank(s) || !s.number(major_number) ||
      !s.literal(":") || !s.number(minor_number) || !blank(s)) {
    return false;
  }
  m.dev = makedev(major_number, minor_number);
  m.root = unescape_octal(s.word());
  if (!blank(s)) return false;
  m.point = unescape_octal(s.word());
  if (!blank(s)) return false;
  m.options = std::string(s.word());
  if (m.root.empty() || m.point.empty() || m.options.empty()) return false;
  while (!s.literal(" - ")) {
    if (!blank(s)) return false;
    const std::string_view word = s.word();
    if (word.empty()) return false;
    if (!m.optional.empty()) m.optional += ' ';
    m.optional += word;
  }
  m.type = unescape_octal(s.word());
  if (m.type.empty() || !blank(s)) return false;
  // A source of no characters leaves two blanks in a row.
  m.source = unescape_octal(s.word());
  if (!blank(s)) return false;
  m.super_options = unescape_octal(s.rest());
  return true;
}

}  // namespace

bool Mount::has_super_option(std::string_view name) const {
  for (std::string_view rest = super_options; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    if (rest.substr(0, comma) == name) return true;
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return false;
}

absl::StatusOr<std::vector<Mount>> parse_mountinfo(std::string_view text) {
  std::vector<Mount> mounts;
  for (TextScanner s(text); !s.at_end();) {
    const std::string_view line = s.line();
    Mount m;
    if (!parse_line(line, m)) {
      return make_error(absl::StatusCode::kInvalidArgument, "mountinfo: not a line of it: \"{}\"",
                        line.substr(0, 200));
    }
    mounts.push_back(std::move(m));
  }
  return mounts;
}

absl::StatusOr<std::vector<Mount>> read_mountinfo(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text,
                      read_file(fmt::format("/proc/{}/mountinfo", pid.value)));
  return parse_mountinfo(text);
}

absl::StatusOr<std::string> find_cgroup2_mount(const std::vector<Mount>& mounts) {
  const Mount* best = nullptr;
  for (const Mount& m : mounts) {
    if (m.type != "cgroup2") continue;
    const auto rank = [](const Mount& x) { return std::pair(x.root != "/", x.point.size()); };
    if (best == nullptr || rank(m) < rank(*best)) best = &m;
  }
  if (best == nullptr) {
    return make_error(absl::StatusCode::kNotFound, "no cgroup2 file system is mounted");
  }
  return best->point;
}

absl::StatusOr<std::string> parse_cgroup2_path(std::string_view text) {
  for (TextScanner s(text); !s.at_end();) {
    TextScanner line(s.line());
    if (!line.literal("0::")) continue;
    std::string_view path = line.rest();
    // A removed cgroup that a zombie is still in.
    if (path.ends_with(" (deleted)")) path.remove_suffix(10);
    if (!path.starts_with('/')) break;
    return unescape_octal(path);
  }
  return make_error(absl::StatusCode::kNotFound, "cgroup: no line \"0::/...\"");
}

absl::StatusOr<std::string> read_cgroup2_path(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/cgroup", pid.value)));
  return parse_cgroup2_path(text);
}

}  // namespace godwit::kernel
