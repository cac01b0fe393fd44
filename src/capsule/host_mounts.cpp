#include "capsule/host_mounts.h"

#include <sys/mount.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr std::array<std::string_view, 7> kDiskTypes = {"ext2",  "ext3", "ext4", "xfs",
                                                        "btrfs", "f2fs", "zfs"};

std::string_view next_field(std::string_view& rest) {
  const size_t at = rest.find(' ');
  const std::string_view field = rest.substr(0, at);
  rest.remove_prefix(at == std::string_view::npos ? rest.size() : at + 1);
  return field;
}

unsigned long flags_of(std::string_view options) {
  unsigned long flags = 0;
  while (!options.empty()) {
    const size_t at = options.find(',');
    const std::string_view option = options.substr(0, at);
    if (option == "nosuid") flags |= MS_NOSUID;
    if (option == "nodev") flags |= MS_NODEV;
    if (option == "noexec") flags |= MS_NOEXEC;
    if (option == "noatime") flags |= MS_NOATIME;
    if (option == "nodiratime") flags |= MS_NODIRATIME;
    options.remove_prefix(at == std::string_view::npos ? options.size() : at + 1);
  }
  return flags;
}

}  // namespace

bool is_local_disk(std::string_view type) {
  return std::find(kDiskTypes.begin(), kDiskTypes.end(), type) != kDiskTypes.end();
}

std::string unescape_mount_field(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      int code = 0;
      const char* const digits = text.data() + i + 1;
      const auto parsed = std::from_chars(digits, digits + 3, code, 8);
      if (parsed.ec == std::errc() && parsed.ptr == digits + 3) {
        out.push_back(static_cast<char>(code));
        i += 3;
        continue;
      }
    }
    out.push_back(text[i]);
  }
  return out;
}

std::vector<HostMount> parse_local_disk_mounts(std::string_view mountinfo) {
  std::vector<HostMount> mounts;
  while (!mountinfo.empty()) {
    const size_t end = mountinfo.find('\n');
    std::string_view line = mountinfo.substr(0, end);
    mountinfo.remove_prefix(end == std::string_view::npos ? mountinfo.size() : end + 1);
    const size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    std::string_view tail = line.substr(dash + 3);
    const std::string_view type = next_field(tail);
    if (!is_local_disk(type)) continue;
    for (int i = 0; i < 4; ++i) next_field(line);  // id, parent, device, root
    std::string path = unescape_mount_field(next_field(line));
    if (path == "/" || !path.starts_with('/')) continue;
    mounts.push_back({std::move(path), flags_of(next_field(line))});
  }
  return mounts;
}

absl::StatusOr<std::vector<HostMount>> local_disk_mounts() {
  GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file("/proc/self/mountinfo"));
  return parse_local_disk_mounts(text);
}

}  // namespace godwit::capsule
