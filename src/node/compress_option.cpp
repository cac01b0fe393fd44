#include "node/compress_option.h"

#include "base/status.h"
#include "pages/codec_choice.h"
#include "stream/stream.h"

namespace godwit::node {

absl::Status check_compress(const std::string& compress) {
  if (pages::compress_named(compress)) return absl::OkStatus();
  return make_error(absl::StatusCode::kInvalidArgument,
                    "--compress {}: use auto, none, lz4 or zstd", compress);
}

absl::StatusOr<std::string> compress_for(const std::string& wanted,
                                         const api::PrepareReplicaReply& answer,
                                         const std::string& node) {
  if (answer.stream_version() >= stream::kVersionCompressed)
    return wanted.empty() ? "auto" : wanted;
  if (wanted.empty() || wanted == "auto" || wanted == "none") return "none";
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "--compress {}: node {} reads no compressed pages, its godwit is older; use "
                    "--compress none",
                    wanted, node);
}

}  // namespace godwit::node
