#include "node/replica_files.h"

#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "base/utf8.h"
#include "node/file_sections.h"

namespace godwit::node {

migration::Reason cannot_be_carried(const capsule::FileDifference& difference) {
  migration::Reason reason;
  reason.set_code("file.differs");
  reason.set_object(escape_non_utf8(difference.path));
  reason.set_reason(escape_non_utf8(difference.what));
  reason.set_way_out(difference.own_mount
                         ? "it lies on a disk of its own, which a service's layer does not "
                           "cover: install the same version on this node"
                         : "install the same version on this node, or save the service with "
                           "checkpoint --with-files");
  return reason;
}

absl::Status ReplicaFiles::see(const stream::Frame& frame) {
  if (const auto* begin = std::get_if<stream::EpochBegin>(&frame)) {
    final_ = begin->final;
    return absl::OkStatus();
  }
  if (const auto* section = std::get_if<stream::Section>(&frame)) {
    if (section->key.kind == kFileSection) return check_.offered(section->key.id, section->state);
    if (section->key.kind == kFileQuestion) return compare_for_answer();
    return absl::OkStatus();
  }
  if (const auto* removed = std::get_if<stream::SectionRemoved>(&frame)) {
    if (removed->key.kind == kFileSection) check_.withdrawn(removed->key.id);
    return absl::OkStatus();
  }
  if (std::holds_alternative<stream::Preamble>(frame) ||
      std::holds_alternative<stream::FileBlocks>(frame))
    return absl::OkStatus();
  // Now the replica brings all sections of the epoch to its processes.
  return require_all();
}

absl::Status ReplicaFiles::compare_for_answer() {
  FAULT_POINT("replica.compare_files");
  GW_ASSIGN_OR_RETURN(const auto differences, check_.differences());
  answer_.emplace();
  for (const capsule::FileDifference& difference : differences) {
    const capsule::WantedFile wanted = check_.want(difference);
    log_info("{} {}: carried from the source", difference.path, difference.what);
    auto* file = answer_->add_files();
    file->set_id(wanted.id);
    file->set_in_place(wanted.in_place);
  }
  if (final_) return absl::OkStatus();
  const absl::Status saved = check_.files().hashes().save();
  if (!saved.ok()) log_warning("hashes of files: {}", message_of(saved));
  return absl::OkStatus();
}

absl::Status ReplicaFiles::require_all() {
  GW_ASSIGN_OR_RETURN(const auto differences, check_.differences());
  if (differences.empty()) return absl::OkStatus();
  refusals_.clear();
  for (const capsule::FileDifference& difference : differences)
    refusals_.push_back(cannot_be_carried(difference));
  return make_error(absl::StatusCode::kFailedPrecondition, "{} {}; {}", refusals_[0].object(),
                    refusals_[0].reason(), refusals_[0].way_out());
}

}  // namespace godwit::node
