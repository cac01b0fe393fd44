// A node's daemon: what its calls and its migrations share. Holds no ptrace; capsules outlive it.
#ifndef GODWIT_NODE_NODE_H_
#define GODWIT_NODE_NODE_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "api/swap_stream.h"
#include "node/busy.h"
#include "node/journal.h"
#include "node/machine.h"
#include "node/mover_process.h"
#include "node/node_config.h"
#include "node/ownership.h"
#include "node/peers.h"
#include "node/post_copy.h"
#include "node/records.h"
#include "node/services.h"
#include "node/spare_mover.h"
#include "node/tasks.h"
#include "store/sqlite_store.h"
#include "tls/certificates.h"

namespace godwit::node {

class ReplicaSession;
class Vms;

// A migration of which this node is the source, while it runs.
struct Outgoing {
  std::atomic<bool> cancelled = false;
  std::atomic<uint32_t> throttle_percent = 0;  // as the mover said last
};

class Node {
 public:
  // Folder, certificates, store. Does not talk to other nodes yet.
  static absl::StatusOr<std::unique_ptr<Node>> open(const NodeConfig& config);
  ~Node();

  // Settles what an earlier daemon left, says in the store that this node is there. Waits for the
  // store for ever, until stop().
  absl::Status recover();
  // For calls of other nodes that begin something: what recover() looks at must stay as it is.
  // kUnavailable: it takes longer.
  absl::Status wait_recovered(Deadline deadline) const;
  void stop() { stopping_ = true; }
  bool stopping() const { return stopping_; }

  const NodeConfig& config() const { return config_; }
  const tls::Identity& identity() const { return identity_; }
  api::DataTls data_tls() const { return config_.data_tls ? api::DATA_TLS_ON : api::DATA_TLS_OFF; }
  // A migration's own limit (0: none), below the node's.
  void set_bandwidth(migration::MoverStart& start, int64_t bytes_per_s) const;
  // How a mover proves itself to the one at `peer`, and that one to it.
  void set_proof(migration::MoverStart& start, const std::string& token,
                 const std::string& peer) const;
  store::Store* local_store() { return local_store_.get(); }
  // A warm way to the keeper for one migration; null where the store is here, or on failure: then
  // records().store() does it.
  std::unique_ptr<api::SwapStream> open_swaps() const;
  const Records& records() const { return *records_; }
  const Services& services() const { return services_; }
  const Journal& journal() const { return journal_; }
  Peers& peers() { return *peers_; }
  Busy& busy() { return busy_; }
  Tasks& tasks() { return tasks_; }
  SpareMover& spare_mover() { return spare_mover_; }
  PostCopy& post_copy() { return post_copy_; }
  Vms& vms() const { return *vms_; }
  // Found out once, by the first who asks.
  absl::StatusOr<const MachineFacts*> machine_facts() const;

  // From here on the end of the capsule that is there now is noticed and recorded; whoever watched
  // an earlier one of that name stops.
  void supervise(const std::string& name);
  // A commit in place: the service is that capsule from here on, and the end of the other one is
  // nobody's any more.
  void replace_capsule(const std::string& service, const std::string& capsule);
  // Of `capsule`, the service's when it was opened. Back when its record says that it has ended,
  // or, with --rm, when it is gone; at once if the service has gone elsewhere. Whoever is told of
  // the end is told then.
  absl::Status wait_exit_recorded(const std::string& name, const std::string& capsule,
                                  const capsule::CapsuleInfo& info);
  // The service has ended: says so in its record, removes it with --rm. The caller holds it.
  absl::Status record_exit(const std::string& name, const capsule::CapsuleInfo& info);
  // Record, address, capsule, port. The caller holds the service.
  absl::Status remove_service(const std::string& name);

  // Capsule and port; nobody watches for its end any more.
  absl::Status destroy_local(const std::string& name);

  // What a user is told, from the record and, if it is here, the capsule.
  api::Service describe(const api::ServiceRecord& record) const;
  api::Node describe_self() const;

  // Ends a migration of which this node is the source and whose mover is dead or has finished: asks
  // the store who owns the service, goes back or finishes, whatever of that has not been done
  // yet. Waits for the store as long as it takes. Returns the node that has the service.
  enum class Undone {
    kNothing,
    kThawed,  // it runs and can be reached, but the mover died and left something in it
    kAll,
  };
  absl::StatusOr<std::string> settle_source(const api::MigrationJournal& entry, Undone undone,
                                            LeftByMover left = {});
  // The same at the destination.
  absl::Status settle_destination(const api::MigrationJournal& entry, UniqueFd hold = UniqueFd());
  // Goes on in the background with what could not be settled, and then takes the service on if it
  // is this node's. The journal keeps the entries until then.
  void settle_later(const std::string& service, std::vector<api::MigrationJournal> entries,
                    Busy::Hold hold);
  // Until it succeeds, or stop(); with pauses. `doing` is for the log.
  absl::Status keep_trying(const std::string& doing,
                           const std::function<absl::Status()>& act) const;
  // Tells the destination of a migration that it is off, in the background and as long as that
  // may take, and gives the service what was sent there. Only when it cannot commit any more.
  void call_off(const api::MigrationJournal& entry);
  // Calls `ask` until its answer is neither kUnavailable nor kDeadlineExceeded, or stop().
  absl::Status until_answered(const std::function<absl::Status()>& ask) const;
  // For one question: says why once, waits a moment; no more after stop().
  AskAgain ask_again() const;

  std::shared_ptr<Outgoing> begin_outgoing(const std::string& service);
  void end_outgoing(const std::string& service);
  bool cancel_outgoing(const std::string& service);
  // Null: none is under way.
  std::shared_ptr<Outgoing> outgoing(const std::string& service) const;
  void add_session(const std::shared_ptr<ReplicaSession>& session);
  void drop_session(const std::string& migration_id);
  std::shared_ptr<ReplicaSession> session(const std::string& migration_id);

 private:
  explicit Node(const NodeConfig& config);
  void watch_for_exit(const std::string& name, uint64_t watch);
  bool watch_is_current(const std::string& name, uint64_t watch) const;
  void clean_up_after_mover(const std::string& service,
                            std::vector<LeftByMover::Userfaultfd> userfaultfds);
  // By service; without entries: only to be taken on.
  using Unsettled = std::map<std::string, std::vector<api::MigrationJournal>>;
  absl::Status settle(const api::MigrationJournal& entry);
  absl::Status settle_service(VersionedService versioned);
  absl::Status settle_vm(VersionedService versioned);
  absl::Status remove_strays(const Unsettled& unsettled);
  absl::Status until_done(const std::function<absl::Status()>& ask) const;
  absl::Status announce_self();

  NodeConfig config_;
  Services services_;
  Journal journal_;
  tls::Identity identity_;
  std::unique_ptr<store::SqliteStore> local_store_;
  std::optional<api::Keeper> keeper_;  // none: the store is here
  std::unique_ptr<store::Store> remote_store_;
  std::unique_ptr<Records> records_;
  std::unique_ptr<Peers> peers_;
  Busy busy_;
  SpareMover spare_mover_;
  mutable std::mutex facts_mutex_;
  mutable std::optional<MachineFacts> facts_;
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  mutable std::condition_variable recovered_changed_;
  bool recovered_ = false;
  std::map<std::string, uint64_t> watches_;
  uint64_t last_watch_ = 0;
  std::map<std::string, std::shared_ptr<Outgoing>> outgoing_;
  std::map<std::string, std::shared_ptr<ReplicaSession>> sessions_;
  PostCopy post_copy_{*this};
  std::unique_ptr<Vms> vms_;
  Tasks tasks_;  // last: its threads use the others
};

// Runs a daemon until SIGTERM or SIGINT. Returns the process's exit code.
int node_main(const NodeConfig& config);

}  // namespace godwit::node

#endif  // GODWIT_NODE_NODE_H_
