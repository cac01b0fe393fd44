// The virtual machines of a node: domains of its libvirt that users have given to Godwit. Their
// records stand beside those of services; what they are is libvirt's to know.
#ifndef GODWIT_NODE_VMS_H_
#define GODWIT_NODE_VMS_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "api/godwit.pb.h"
#include "node/records.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;
class VmReplica;

// Any thread; calls that change one machine must not overlap (Busy).
class Vms {
 public:
  explicit Vms(Node& node) : node_(node) {}

  // Found when it is first needed. kUnimplemented: what to install.
  absl::StatusOr<std::shared_ptr<vm::Hypervisor>> hypervisor();
  std::string libvirt_socket() const;

  absl::StatusOr<api::Service> add(const api::AddVmRequest& request);
  absl::StatusOr<api::Service> start(const std::string& name);
  // The power button, and after `patience` the plug. Fine when it does not run.
  absl::Status stop(const std::string& name, absl::Duration patience);
  // Of Godwit's records; libvirt's definition stays. `force`: the domain is ended and undefined.
  absl::Status remove(const std::string& name, bool force);
  void describe(const api::ServiceRecord& record, api::Service& service);
  // For the user, of a machine that runs here: until all of its memory is here.
  // kFailedPrecondition: nothing is missing.
  absl::StatusOr<api::MigrateResult> follow_pages(
      const std::string& name, const std::function<void(const api::MigrateProgress&)>& told,
      const std::function<bool()>& cancelled);

  // A daemon has been started, or a move to here is done: the record follows what the domain does
  // from now on.
  absl::Status take_on(const std::string& name, const std::string& uuid);
  void let_go(const std::string& name);

  // As Node's for services: by what the store says. Repeatable.
  absl::StatusOr<std::string> settle_source(const api::MigrationJournal& entry);
  absl::Status settle_destination(const api::MigrationJournal& entry);
  // Of a checkpoint or a restore: by its file, and by what libvirt says.
  absl::Status settle_local(const api::MigrationJournal& entry);
  absl::Status settle_checkpoint(api::MigrationJournal entry);
  absl::Status settle_restore(const api::MigrationJournal& entry);
  // Tells the destination that it is off, in the background.
  void call_off(const api::MigrationJournal& entry);

  void add_session(const std::shared_ptr<VmReplica>& session);
  void drop_session(const std::string& migration_id);
  std::shared_ptr<VmReplica> session(const std::string& migration_id);
  void abort_sessions();

 private:
  absl::Status refresh(const std::string& name);
  absl::StatusOr<bool> is_needed(const api::MigrationJournal& entry);
  absl::StatusOr<bool> settle_pages(const api::MigrationJournal& entry);

  Node& node_;
  std::mutex mutex_;
  std::shared_ptr<vm::Hypervisor> hypervisor_;
  std::map<std::string, std::unique_ptr<vm::Hypervisor::Subscription>> watches_;
  std::map<std::string, std::shared_ptr<VmReplica>> sessions_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VMS_H_
