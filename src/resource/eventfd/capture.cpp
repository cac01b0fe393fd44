// eventfd(2). Count and mode stand in fdinfo; "eventfd-semaphore" is there since Linux 6.7.
#include <fmt/format.h>

#include "resource/eventfd/eventfd.h"
#include "resource/eventfd/eventfd.pb.h"
#include "resource/eventfd/eventfd_internal.h"
#include "resource/file_description.h"

namespace godwit::resource {

const FileKind& eventfd_kind() {
  static const EventfdKind kind;
  return kind;
}

bool EventfdKind::recognise(const OpenFile& file) const {
  return file.link == "anon_inode:[eventfd]";
}

absl::Status EventfdKind::precheck(const OpenFile& file, const CaptureContext&,
                                   std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  if (!info.number("eventfd-semaphore")) {
    refuse(file, "eventfd.semaphore", "this kernel does not tell whether it is a semaphore",
           "use Linux 6.7 or later", refusals);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> EventfdKind::capture(const OpenFile& file,
                                                 const CaptureContext&) const {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  const auto count = info.number("eventfd-count", 16);
  const auto semaphore = info.number("eventfd-semaphore");
  // UINT64_MAX is what a kernel-side overflow leaves; no write can make it.
  if (!count || !semaphore || *count == UINT64_MAX) {
    return make_error(absl::StatusCode::kFailedPrecondition, "{}: unusable eventfd-count or mode",
                      object_of(file));
  }
  EventfdState state;
  state.set_count(*count);
  state.set_semaphore(*semaphore != 0);
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  return state.SerializeAsString();
}

}  // namespace godwit::resource
