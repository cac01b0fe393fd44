// The source of one migration as its daemon sees it, from the user's call to the result.
#ifndef GODWIT_NODE_SOURCE_MIGRATION_H_
#define GODWIT_NODE_SOURCE_MIGRATION_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "node/busy.h"
#include "node/earlier_moves.h"
#include "node/mover_process.h"
#include "node/node.h"
#include "node/records.h"
#include "node/spare_mover.h"

namespace godwit::node {

class SourceMigration {
 public:
  using OnProgress = std::function<void(const api::MigrateProgress&)>;
  using Cancelled = std::function<bool()>;

  SourceMigration(Node& node, OnProgress on_progress, Cancelled cancelled)
      : node_(node), on_progress_(std::move(on_progress)), user_cancelled_(std::move(cancelled)) {}

  // Blocks until the outcome is known. The result tells of refusal and rollback; a status only what
  // kept the migration from beginning. A source that has moved is taken down in the background.
  absl::StatusOr<api::MigrateResult> migrate(const api::MigrateRequest& request);
  absl::StatusOr<api::MigrateResult> checkpoint(const api::CheckpointRequest& request);
  absl::StatusOr<api::MigrateResult> clone(const api::CloneRequest& request);

 private:
  absl::Status check(const std::string& service, const std::string& doing);
  // Whether memory of it has not come here yet.
  bool lacks_pages(const std::string& service) const;
  absl::Status check_record(const api::ServiceRecord& record) const;
  absl::StatusOr<api::MigrateResult> dry_run(const api::MigrateRequest& request,
                                             migration::Strategy strategy);
  api::MigrateResult found_here(const std::string& service,
                                const migration::Finished& finished) const;
  void predict(migration::MoverStart start, Peer& peer, migration::Statistics& statistics,
               api::MigrateResult& result);
  EarlierFigures add_earlier_figures(migration::MoverStart& start,
                                     const std::string& destination) const;
  // With what the service needs; notes what the answer tells.
  absl::Status call_prepare(Peer& peer, api::PrepareReplicaRequest& request,
                            api::PrepareReplicaReply& reply);
  std::vector<migration::Reason> missing_here() const;
  api::MigrateResult refused(const std::vector<migration::Reason>& reasons) const;
  absl::StatusOr<api::MigrateResult> refused_there();
  absl::Status mark_migrating(const std::string& destination);
  // With the offsets of its clocks on that node's machine.
  absl::StatusOr<capsule::CapsuleSpec> spec_for(Peer& peer) const;
  absl::Status prepare_destination(const api::MigrateRequest& asked);
  absl::Status prepare_clone(const api::CloneRequest& request);
  absl::StatusOr<api::MigrateResult> cloned(const api::CloneRequest& request,
                                            const migration::Statistics& statistics);
  absl::Status start_mover(migration::MoverStart start);
  // What the mover says until it has finished; kOutOfRange: it died, or was killed for saying
  // nothing.
  absl::StatusOr<migration::Finished> follow();
  absl::Status roll_back_at_once();
  absl::StatusOr<api::MigrateResult> conclude(absl::StatusOr<migration::Finished> finished);
  absl::StatusOr<api::MigrateResult> rolled_back(const std::string& why, Node::Undone undone);
  void record_statistics(const api::MigrationStatistics& statistics);
  void take_down();
  migration::MoverStart describe(migration::Role role) const;
  migration::MoverStart describe(const api::MigrateRequest& request,
                                 migration::Strategy strategy) const;

  Node& node_;
  OnProgress on_progress_;
  Cancelled user_cancelled_;
  Busy::Hold hold_;
  SpareMover::Pause pause_;
  VersionedService current_;
  api::MigrationJournal entry_;
  api::PrepareReplicaReply replica_;
  std::vector<api::Refusal> warnings_;
  uint64_t layer_bytes_ = 0;
  std::unique_ptr<MoverProcess> mover_;
  LeftByMover left_;
};

// Of a migration.
std::string random_id();
// "moved", "rolled_back" and so on, and the mover's figures for the user.
const char* outcome_name(migration::Outcome outcome);
api::MigrationStatistics statistics_of(const migration::Statistics& from);

}  // namespace godwit::node

#endif  // GODWIT_NODE_SOURCE_MIGRATION_H_
