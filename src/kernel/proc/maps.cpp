#include "kernel/proc/maps.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

bool flag(char c, char set, bool& value) {
  value = c == set;
  return value || c == '-';
}

std::string unescape_newlines(std::string_view path) {
  std::string result;
  result.reserve(path.size());
  while (true) {
    const size_t at = path.find("\\012");
    result.append(path.substr(0, at));
    if (at == std::string_view::npos) return result;
    result.push_back('\n');
    path.remove_prefix(at + 4);
  }
}

// "7f0000000000-7f0000021000 rw-p 00000000 08:01 1234    /path". Only a newline of a path is
// escaped (seq_path(m, path, "\n")), so a path that holds the four characters \012 cannot be told
// from one with a newline: those who need to know compare device and inode.
bool parse_header(std::string_view line, Mapping& m) {
  TextScanner s(line);
  unsigned major_number = 0;
  unsigned minor_number = 0;
  if (!s.number(m.start, 16) || !s.literal("-") || !s.number(m.end, 16) || !s.literal(" ")) {
    return false;
  }
  const std::string_view bits = s.word();
  if (bits.size() != 4 || (bits[3] != 'p' && bits[3] != 's')) return false;
  if (!flag(bits[0], 'r', m.read) || !flag(bits[1], 'w', m.write) ||
      !flag(bits[2], 'x', m.execute)) {
    return false;
  }
  m.shared = bits[3] == 's';
  if (!s.literal(" ") || !s.number(m.offset, 16) || !s.literal(" ") ||
      !s.number(major_number, 16) || !s.literal(":") || !s.number(minor_number, 16) ||
      !s.literal(" ") || !s.number(m.inode)) {
    return false;
  }
  if (!s.at_end() && s.peek() != ' ') return false;
  m.dev = makedev(major_number, minor_number);
  s.skip(' ');
  m.path = unescape_newlines(s.rest());
  return m.start < m.end;
}

absl::Status bad_line(std::string_view file, std::string_view line) {
  return make_error(absl::StatusCode::kInvalidArgument, "{}: not a line of it: \"{}\"", file,
                    line.substr(0, 200));
}

absl::Status add(std::vector<Mapping>& mappings, std::string_view file, std::string_view line) {
  Mapping m;
  if (!parse_header(line, m)) return bad_line(file, line);
  // The kernel walks its tree in order, a page of text at a time, and looks for what holds or
  // follows the address where it stopped: meanwhile two may have become one, which then comes again
  // with its old beginning. What follows is left of it.
  if (!mappings.empty() && m.start < mappings.back().end) {
    const uint64_t known = mappings.back().end;
    if (m.end <= known) return absl::OkStatus();
    if (m.inode != 0) m.offset += known - m.start;
    m.start = known;
  }
  mappings.push_back(std::move(m));
  return absl::OkStatus();
}

}  // namespace

bool Mapping::of_kernel() const {
  return inode == 0 &&
         (path == "[vdso]" || path == "[vvar]" || path == "[vvar_vclock]" || path == "[vsyscall]");
}

bool Mapping::has_flag(std::string_view code) const {
  if (code.size() != 2) return false;
  for (size_t at = 0; at + 2 <= vm_flags.size(); at += 3) {
    if (std::string_view(vm_flags).substr(at, 2) == code) return true;
  }
  return false;
}

absl::StatusOr<std::vector<Mapping>> parse_maps(std::string_view text) {
  std::vector<Mapping> mappings;
  mappings.reserve(static_cast<size_t>(std::count(text.begin(), text.end(), '\n')));
  for (TextScanner s(text); !s.at_end();) {
    GW_RETURN_IF_ERROR(add(mappings, "maps", s.line()));
  }
  return mappings;
}

absl::StatusOr<std::vector<Mapping>> parse_smaps(std::string_view text) {
  std::vector<Mapping> mappings;
  for (TextScanner s(text); !s.at_end();) {
    const std::string_view line = s.line();
    // A mapping's own line starts with a hexadecimal digit in lower case, a property with a
    // capital letter.
    if (line.empty() || line.front() < 'A' || line.front() > 'Z') {
      GW_RETURN_IF_ERROR(add(mappings, "smaps", line));
      continue;
    }
    if (mappings.empty()) return bad_line("smaps", line);
    TextScanner property(line);
    if (!property.literal("VmFlags:")) continue;
    property.skip_blanks();
    std::string_view flags = property.rest();
    while (flags.ends_with(' ')) flags.remove_suffix(1);
    for (size_t i = 2; i < flags.size(); i += 3) {
      if (flags[i] != ' ') return bad_line("smaps", line);
    }
    if (flags.size() % 3 == 1) return bad_line("smaps", line);
    mappings.back().vm_flags = std::string(flags);
  }
  return mappings;
}

absl::StatusOr<std::vector<Mapping>> read_maps(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/maps", pid.value)));
  return parse_maps(text);
}

absl::StatusOr<std::vector<Mapping>> read_smaps(HostPid pid) {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file(fmt::format("/proc/{}/smaps", pid.value)));
  return parse_smaps(text);
}

absl::StatusOr<std::vector<Mapping>> read_smaps_below(HostPid pid, uint64_t address) {
  GW_ASSIGN_OR_RETURN(const UniqueFd file,
                      open(fmt::format("/proc/{}/smaps", pid.value), O_RDONLY | O_CLOEXEC));
  std::string text;
  size_t looked_at = 0;  // whole lines
  for (;;) {
    std::array<char, 4096> piece;
    const ssize_t n = ::read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("read(/proc/{}/smaps)", pid.value));
    text.append(piece.data(), static_cast<size_t>(n));
    for (size_t end = text.find('\n', looked_at); end != std::string::npos;
         end = text.find('\n', looked_at)) {
      TextScanner line(std::string_view(text).substr(looked_at, end - looked_at));
      uint64_t start = 0;
      if ((line.peek() < 'A' || line.peek() > 'Z') && line.number(start, 16) && line.literal("-") &&
          start >= address)
        return parse_smaps(std::string_view(text).substr(0, looked_at));
      looked_at = end + 1;
    }
    if (n == 0) return parse_smaps(text);
  }
}

}  // namespace godwit::kernel
