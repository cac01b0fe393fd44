// Frames of a stream that are about files below the writable layer, at the destination.
#ifndef GODWIT_NODE_REPLICA_FILES_H_
#define GODWIT_NODE_REPLICA_FILES_H_

#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "capsule/file_check.h"
#include "migration/mover.pb.h"
#include "migration/peer.pb.h"
#include "stream/stream.h"

namespace godwit::node {

// As a refusal: the way is not there to carry it, or its disk is another one.
migration::Reason cannot_be_carried(const capsule::FileDifference& difference);

class ReplicaFiles {
 public:
  explicit ReplicaFiles(capsule::CapsuleFiles files) : check_(std::move(files)) {}

  // Before the replica applies it. Fails, with refusals(), where the replica would otherwise map or
  // open a file that is not the source's.
  absl::Status see(const stream::Frame& frame);
  std::optional<migration::WantedFiles> take_answer() {
    return std::exchange(answer_, std::nullopt);
  }
  const std::vector<migration::Reason>& refusals() const { return refusals_; }

 private:
  absl::Status compare_for_answer();
  absl::Status require_all();

  capsule::FileCheck check_;
  std::optional<migration::WantedFiles> answer_;
  std::vector<migration::Reason> refusals_;
  bool final_ = false;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_REPLICA_FILES_H_
