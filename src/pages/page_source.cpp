#include "pages/page_source.h"

#include "base/status.h"

namespace godwit::pages {

absl::Status ProcessPages::read(uint64_t space, PageRange range, std::span<std::byte> to) {
  got_.clear();
  PageSet unreadable;
  GW_RETURN_IF_ERROR(readers_.at(space).read({&range, 1}, to, got_, unreadable));
  if (unreadable.empty()) return absl::OkStatus();
  return make_error(absl::StatusCode::kDataLoss, "page {:x} of process {} cannot be read",
                    unreadable.ranges().front().start, space);
}

}  // namespace godwit::pages
