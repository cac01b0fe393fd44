#include "capsule/user.h"

#include <charconv>
#include <optional>

#include "base/status.h"

namespace godwit::capsule {
namespace {

std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(by);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

std::optional<uint32_t> number(std::string_view text) {
  uint32_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  // (uid_t)-1 means "no change" to setresuid(2).
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value == UINT32_MAX) {
    return std::nullopt;
  }
  return value;
}

bool has_member(std::string_view list, std::string_view name) {
  for (const std::string_view member : split(list, ',')) {
    if (member == name) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<User> resolve_user(std::string_view spec, std::string_view passwd,
                                  std::string_view group) {
  const size_t colon = spec.find(':');
  const std::string_view who = spec.empty() ? "0" : spec.substr(0, colon);
  const std::optional<uint32_t> uid = number(who);
  User user;
  std::string_view name;
  bool found = false;
  for (const std::string_view line : split(passwd, '\n')) {
    const auto fields = split(line, ':');
    if (fields.size() < 6) continue;
    const auto entry_uid = number(fields[2]);
    const auto entry_gid = number(fields[3]);
    if (!entry_uid || !entry_gid) continue;
    if (fields[0] != who && !(uid && *entry_uid == *uid)) continue;
    name = fields[0];
    user.uid = *entry_uid;
    user.gid = *entry_gid;
    user.home = std::string(fields[5]);
    found = true;
    break;
  }
  if (!found) {
    if (!uid) {
      return make_error(absl::StatusCode::kNotFound,
                        "user \"{}\": not in the capsule's /etc/passwd", who);
    }
    user.uid = *uid;
  }
  const std::string_view wanted =
      colon == std::string_view::npos ? std::string_view() : spec.substr(colon + 1);
  std::optional<uint32_t> gid = number(wanted);
  for (const std::string_view line : split(group, '\n')) {
    const auto fields = split(line, ':');
    if (fields.size() < 4) continue;
    const auto entry_gid = number(fields[2]);
    if (!entry_gid) continue;
    if (!wanted.empty()) {
      if (!gid && fields[0] == wanted) gid = entry_gid;
    } else if (found && *entry_gid != user.gid && has_member(fields[3], name)) {
      user.groups.push_back(*entry_gid);
    }
  }
  if (colon != std::string_view::npos) {
    if (!gid) {
      return make_error(absl::StatusCode::kNotFound,
                        "group \"{}\": not in the capsule's /etc/group", wanted);
    }
    user.gid = *gid;
  }
  return user;
}

}  // namespace godwit::capsule
