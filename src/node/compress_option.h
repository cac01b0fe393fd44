// --compress, between the user, two nodes that may be of different versions, and a mover.
#ifndef GODWIT_NODE_COMPRESS_OPTION_H_
#define GODWIT_NODE_COMPRESS_OPTION_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"

namespace godwit::node {

// kInvalidArgument: no such way.
absl::Status check_compress(const std::string& compress);

// For a move to `node`, which gave this answer: a node of an older version reads no compressed
// pages. kFailedPrecondition: then what is wanted cannot be had.
absl::StatusOr<std::string> compress_for(const std::string& wanted,
                                         const api::PrepareReplicaReply& answer,
                                         const std::string& node);

}  // namespace godwit::node

#endif  // GODWIT_NODE_COMPRESS_OPTION_H_
