#include "resource/clone_addresses.h"

#include <arpa/inet.h>

#include <algorithm>

#include "base/status.h"

namespace godwit::resource {
namespace {

constexpr size_t kIpv4 = 4;
constexpr size_t kIpv6 = 16;
constexpr std::string_view kMapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
constexpr std::string_view kLoopback6("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", kIpv6);

absl::StatusOr<std::string> parse(const std::string& text) {
  char bytes[kIpv6];
  if (::inet_pton(AF_INET, text.c_str(), bytes) == 1) return std::string(bytes, kIpv4);
  if (::inet_pton(AF_INET6, text.c_str(), bytes) == 1) return std::string(bytes, kIpv6);
  return make_error(absl::StatusCode::kInvalidArgument, "{} is no address", text);
}

bool is_mapped(std::string_view ip) { return ip.size() == kIpv6 && ip.starts_with(kMapped); }

}  // namespace

absl::Status CloneAddresses::add(const std::string& original, const std::string& clone) {
  Change change;
  GW_ASSIGN_OR_RETURN(change.from, parse(original));
  GW_ASSIGN_OR_RETURN(change.to, parse(clone));
  if (change.from.size() != change.to.size())
    return make_error(absl::StatusCode::kInvalidArgument, "{} and {} are of different families",
                      original, clone);
  changes_.push_back(std::move(change));
  return absl::OkStatus();
}

std::string CloneAddresses::translated(std::string_view ip) const {
  const std::string_view bare = is_mapped(ip) ? ip.substr(kMapped.size()) : ip;
  for (const Change& change : changes_)
    if (change.from == bare) return std::string(ip.substr(0, ip.size() - bare.size())) + change.to;
  return std::string(ip);
}

bool CloneAddresses::is_inside(std::string_view ip) const {
  const std::string_view bare = is_mapped(ip) ? ip.substr(kMapped.size()) : ip;
  if (bare == kLoopback6 || (bare.size() == kIpv4 && bare[0] == 127)) return true;
  return std::any_of(changes_.begin(), changes_.end(),
                     [bare](const Change& change) { return change.to == bare; });
}

}  // namespace godwit::resource
