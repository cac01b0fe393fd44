#include <fcntl.h>

#include "base/status.h"
#include "resource/fd_table/fd_table.h"
#include "resource/file_description.h"
#include "resource/signal_owner/signal_owner.h"

namespace godwit::resource {

// Sockets have it in their own state.
bool has_signal_owner_in_table(const OpenFile& file) {
  return !S_ISSOCK(file.stat.st_mode) && (file.status_flags & O_PATH) == 0;
}

absl::Status Descriptors::read_signal_owners(const CaptureContext& context) {
  for (const Description& one : descriptions_) {
    const OpenFile& file = one.file;
    if (!has_signal_owner_in_table(file)) continue;
    GW_ASSIGN_OR_RETURN(std::optional<SignalOwner> owner, signal_owner_of(file));
    if (!owner) continue;
    std::vector<Refusal> refusals;
    GW_RETURN_IF_ERROR(refuse_signal_owner(file, context, refusals));
    GW_RETURN_IF_ERROR(refused_now(refusals));
    owner->set_status_flags(static_cast<uint32_t>(file.status_flags));
    FdTableState::Owner& added = *tables_[file.tgid].add_owners();
    added.set_fd(file.remote_fd);
    *added.mutable_owner() = *std::move(owner);
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource
