// What a daemon does for a service that runs on one node while pages of it are on another: it keeps
// the pages' way open, and the copy that has them until nobody needs it.
//
//   destination  fetch(): while pages are missing and no connection stands, asks the source's node
//   to
//                connect; when none is missing, takes `pages_at` out of the service's record
//   source       keep(): the frozen copy stays until the record does not name this node any more;
//                serve(): a mover gives the pages to whoever is the service's owner
//
// The pages may be in a file on the service's own node instead (restore --lazy): then reconnect()
// has a mover of this node's give them.
//
// All of it follows from the record: a daemon that is started again goes on.
#ifndef GODWIT_NODE_POST_COPY_H_
#define GODWIT_NODE_POST_COPY_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "base/clock.h"
#include "node/mover_process.h"
#include "node/records.h"

namespace godwit::node {

class Node;

class PostCopy {
 public:
  explicit PostCopy(Node& node) : node_(node) {}

  // In the background, once for a service, until nothing of it is missing here.
  void fetch(const std::string& service);
  // The same with a mover that gives them from the record's file already.
  void fetch_from_file(const std::string& service, std::shared_ptr<MoverProcess> mover);
  // What keeps pages of the service from coming; empty: nothing is known to.
  std::string error_of(const std::string& service) const;
  // For the user: follows it. `source_lost`: what is missing will never come, a touch of it ends in
  // SIGBUS. kFailedPrecondition: nothing is missing.
  using OnProgress = std::function<void(const api::MigrateProgress&)>;
  absl::StatusOr<api::MigrateResult> resume(const std::string& service, bool source_lost,
                                            const OnProgress& told,
                                            const std::function<bool()>& cancelled);

  // Whether the copy of the service here has pages that its owner lacks, by this migration.
  absl::StatusOr<bool> is_needed(const api::MigrationJournal& entry) const;
  // In the background until it is not needed any more; then it is settled like any other. Once for
  // a migration.
  void keep(const api::MigrationJournal& entry);
  // Until no copy of the service is kept here; kFailedPrecondition: one still is.
  absl::Status wait_until_gone(const std::string& service, Deadline deadline);
  // `peer` wants its pages: a mover connects to it. Back when that has been started.
  absl::Status serve(const api::ServePagesRequest& request, const std::string& peer);

 private:
  struct Kept {
    api::MigrationJournal entry;
    std::shared_ptr<MoverProcess> mover;  // that serves; null: none
  };
  // Whether it is over, one way or another.
  absl::StatusOr<bool> fetch_step(const std::string& service);
  absl::Status reconnect(const api::ServiceRecord& record);
  absl::Status ask_for_pages(const api::ServiceRecord& record, uint16_t port,
                             const std::string& token);
  absl::Status serve_file(const api::ServiceRecord& record, migration::MoverStart start);
  void follow_file(const std::string& service, std::shared_ptr<MoverProcess> mover);
  void note_error(const std::string& service, const std::string& error);
  absl::Status forget_source(const std::string& service);
  void keep_until_not_needed(const std::string& migration);
  void follow(const std::string& migration, const std::shared_ptr<MoverProcess>& mover);
  void pause(absl::Duration time) const;

  Node& node_;
  mutable std::mutex mutex_;
  std::set<std::string> fetching_;                                   // services
  std::map<std::string, std::string> errors_;                        // by service
  std::map<std::string, std::shared_ptr<MoverProcess>> from_files_;  // by service
  std::map<std::string, Kept> kept_;                                 // by migration
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_POST_COPY_H_
