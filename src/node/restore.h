// A service from a file: claimed like a new one, filled by a mover like a replica.
#ifndef GODWIT_NODE_RESTORE_H_
#define GODWIT_NODE_RESTORE_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "capsule/capsule.pb.h"
#include "node/source_migration.h"

namespace godwit::node {

class Node;

// Section of an image with the CapsuleSpec that its capsule is made from; object 0, epoch 0.
constexpr char kCapsuleSection[] = "capsule_spec";
// In a file a capsule's clocks are offsets to the wall clock, the one thing that machines and boots
// have in common: a restored capsule's clocks have gone on by the time that it was a file.
capsule::CapsuleSpec portable_spec(capsule::CapsuleSpec spec);
absl::StatusOr<capsule::CapsuleSpec> read_capsule_spec(const std::string& file,
                                                       const std::string& key_file);

// Blocks until it runs or has failed; then nothing is left.
absl::StatusOr<api::MigrateResult> restore(Node& node, const api::RestoreRequest& request,
                                           const SourceMigration::OnProgress& on_progress,
                                           const SourceMigration::Cancelled& cancelled);

}  // namespace godwit::node

#endif  // GODWIT_NODE_RESTORE_H_
