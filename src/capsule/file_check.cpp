#include "capsule/file_check.h"

#include <sys/stat.h>

#include "base/status.h"

namespace godwit::capsule {

absl::Status FileCheck::offered(uint64_t id, std::string_view state) {
  UsedFile parsed;
  if (!parsed.ParseFromArray(state.data(), static_cast<int>(state.size())) ||
      !is_plain_path(parsed.path()) || parsed.hash().size() != kHashBytes ||
      !S_ISREG(parsed.mode()))
    return make_error(absl::StatusCode::kDataLoss, "file {}: not a valid state", id);
  Offer& offer = offers_[id];
  offer.in_use = offer.in_use || (offer.equal && offer.state.mapped());
  if (offer.state.path() != parsed.path()) offer.in_use = false;
  offer.equal = false;
  pending_ = true;
  offer.state = std::move(parsed);
  return absl::OkStatus();
}

// Empty: equal.
absl::StatusOr<std::string> FileCheck::compare(Offer& offer, bool& own_mount) {
  const UsedFile& wanted = offer.state;
  auto found = files_.find(wanted.path());
  if (absl::IsNotFound(found.status())) return "is missing here";
  GW_RETURN_IF_ERROR(found.status());
  own_mount = !found->on_root;
  if (!S_ISREG(found->info.st_mode)) return "is not a regular file here";
  const auto size = static_cast<uint64_t>(found->info.st_size);
  if (size != wanted.size())
    return fmt::format("is another one here: {} bytes, not {}", size, wanted.size());
  GW_ASSIGN_OR_RETURN(const std::string hash, files_.hash(wanted.path(), *found));
  if (hash != wanted.hash()) return fmt::format("is another one here, also of {} bytes", size);
  if (found->info.st_mode != wanted.mode() || found->info.st_uid != wanted.uid() ||
      found->info.st_gid != wanted.gid())
    return fmt::format("has mode {:o} and owner {}:{} here, not {:o} and {}:{}",
                       found->info.st_mode & 07777, found->info.st_uid, found->info.st_gid,
                       wanted.mode() & 07777, wanted.uid(), wanted.gid());
  offer.fd = std::move(found->fd);
  return std::string();
}

absl::StatusOr<std::vector<FileDifference>> FileCheck::differences() {
  std::vector<FileDifference> list;
  if (!pending_) return list;
  for (auto& [id, offer] : offers_) {
    if (offer.equal) continue;
    FileDifference difference;
    GW_ASSIGN_OR_RETURN(difference.what, compare(offer, difference.own_mount));
    offer.equal = difference.what.empty();
    if (offer.equal) continue;
    difference.id = id;
    difference.path = offer.state.path();
    // The replica's mapping is of the node's own file: a copy would not come into it.
    if (offer.in_use && !own_.contains(difference.path))
      return make_error(absl::StatusCode::kAborted,
                        "{}: was changed on the source's node while the service was being moved; "
                        "move it again",
                        difference.path);
    list.push_back(std::move(difference));
  }
  pending_ = !list.empty();
  return list;
}

WantedFile FileCheck::want(const FileDifference& difference) {
  return {difference.id, !own_.insert(difference.path).second};
}

}  // namespace godwit::capsule
