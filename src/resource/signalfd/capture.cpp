// signalfd(2): a mask. Which signals wait is the reader's state, not the descriptor's: whoever
// reads gets its own pending signals, so the mover can make it.
#include <fmt/format.h>

#include "resource/file_description.h"
#include "resource/signalfd/signalfd.h"
#include "resource/signalfd/signalfd.pb.h"
#include "resource/signalfd/signalfd_internal.h"

namespace godwit::resource {

const FileKind& signalfd_kind() {
  static const SignalfdKind kind;
  return kind;
}

bool SignalfdKind::recognise(const OpenFile& file) const {
  return file.link == "anon_inode:[signalfd]";
}

absl::Status SignalfdKind::precheck(const OpenFile&, const CaptureContext&,
                                    std::vector<Refusal>&) const {
  return absl::OkStatus();
}

absl::StatusOr<std::string> SignalfdKind::capture(const OpenFile& file,
                                                  const CaptureContext&) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  const auto mask = info.number("sigmask", 16);
  if (!mask) {
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: fdinfo has no sigmask",
                      object_of(file));
  }
  SignalfdState state;
  state.set_mask(*mask);
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  return state.SerializeAsString();
}

}  // namespace godwit::resource
