// The destination of one migration as its daemon sees it: the capsule as a replica, its port behind
// a closed gate, the mover, and the commit, which happens here: the change of the service's owner
// in the store by compare-and-swap, from the one record that the source named.
//
// Two threads: the one that prepares and aborts (calls), and the session's own, which does nothing
// but wait for the mover, because the time from its "commit" to our answer is time of the freeze.
#ifndef GODWIT_NODE_REPLICA_SESSION_H_
#define GODWIT_NODE_REPLICA_SESSION_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "api/swap_stream.h"
#include "capsule/capsule.h"
#include "network/frames.h"
#include "node/busy.h"
#include "node/mover_process.h"
#include "node/records.h"
#include "node/spare_mover.h"

namespace godwit::node {

class Node;

class ReplicaSession : public std::enable_shared_from_this<ReplicaSession> {
 public:
  // Checks, makes capsule and port, starts the mover and waits until it listens; then runs by
  // itself. On error nothing is left behind.
  static absl::StatusOr<std::shared_ptr<ReplicaSession>> begin(
      Node& node, const api::PrepareReplicaRequest& request);

  const std::string& migration_id() const { return request_.migration_id(); }
  const api::PrepareReplicaReply& reply() const { return reply_; }
  // Ends it unless it has committed; returns when it has ended. kFailedPrecondition: committed.
  absl::Status abort();
  // The source's wish, when it runs on and no commit is possible any more: ends it, and gives what
  // was held here for the service. Does not wait for the replica to be taken down.
  absl::Status give_back(const std::function<void(const network::Frames&)>& give);

 private:
  ReplicaSession(Node& node, const api::PrepareReplicaRequest& request)
      : node_(node), request_(request) {}
  const std::string& capsule_name() const {
    return entry_.capsule().empty() ? request_.service() : entry_.capsule();
  }
  absl::Status prepare();
  absl::Status expect_record();
  absl::Status claim_record(capsule::CapsuleSpec& spec);
  void describe_commit(api::ServiceRecord& record, const std::string& source, const char* outcome);
  absl::Status start_mover();
  void run();
  // What the mover says until it ends or says "finished".
  void listen();
  migration::CommitAnswer commit(bool pages_missing);
  void warm_up();
  // kUnknown: it may have been swapped.
  absl::Status swap_owner(const std::string& record);
  void keep_hold(uint32_t fd);
  void keep_until_asked();

  Node& node_;
  api::PrepareReplicaRequest request_;
  api::PrepareReplicaReply reply_;
  Busy::Hold hold_;
  SpareMover::Pause pause_;
  std::optional<capsule::Capsule> capsule_;
  std::unique_ptr<MoverProcess> mover_;
  UniqueFd held_;  // copy of the mover's hold; set before others know this
  api::MigrationJournal entry_;
  std::vector<migration::MoverStart::AddressChange> address_changes_;  // of a clone
  std::string committed_record_;                                       // ready to be written
  std::string lacking_record_;  // the same, of a service whose pages are at the source yet
  std::unique_ptr<api::SwapStream> swaps_;
  std::mutex mutex_;
  std::condition_variable ended_;  // or asked_back_
  bool undecided_ = false;         // the session's thread only
  bool pages_missing_ = false;     // the session's thread only
  bool has_ended_ = false;
  bool committed_ = false;
  bool aborted_ = false;
  bool asked_back_ = false;  // by the source, or nobody will
  bool finished_well_ = false;
};

// What a replica needs of this node and of nobody else: may the service come here?
absl::Status check_destination(const Node& node, const capsule::CapsuleSpec& spec);

}  // namespace godwit::node

#endif  // GODWIT_NODE_REPLICA_SESSION_H_
