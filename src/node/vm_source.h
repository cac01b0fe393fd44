// The source of a virtual machine's migration, from the user's call to the result.
//
// libvirt moves it, with this daemon as its client (vm/libvirt_migrate.cpp) and the bytes through
// VmRelay. What libvirt would decide by itself is taken from it: the domain stays paused at the
// destination until that node's daemon has committed, and the client's last word here ("confirm",
// which resumes the domain or ends it) is held back from when the domain has been stopped. So
// whatever breaks, the store decides, and libvirt leaves the domain paused until it has.
#ifndef GODWIT_NODE_VM_SOURCE_H_
#define GODWIT_NODE_VM_SOURCE_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "api/godwit.pb.h"
#include "migration/convergence.h"
#include "node/source_migration.h"
#include "node/vm_network.h"
#include "node/vm_precheck.h"
#include "node/vm_relay_process.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class VmMigration {
 public:
  VmMigration(Node& node, SourceMigration::OnProgress on_progress,
              SourceMigration::Cancelled cancelled)
      : node_(node), on_progress_(std::move(on_progress)), user_cancelled_(std::move(cancelled)) {}

  // As SourceMigration::migrate().
  absl::StatusOr<api::MigrateResult> migrate(const api::MigrateRequest& request);

 private:
  absl::StatusOr<api::MigrateResult> move(const api::MigrateRequest& request);
  // Of a machine that runs and may go by any strategy, by what it writes now.
  void forecast_strategy(const api::MigrateRequest& request);
  absl::Status check(const api::MigrateRequest& request);
  absl::Status look_at_domain();
  absl::Status choose_strategy(const std::string& asked);
  absl::StatusOr<api::MigrateResult> dry_run(const api::MigrateRequest& request);
  absl::Status mark_migrating();
  absl::Status ask_destination(bool dry_run, int64_t stall_timeout_ns);
  absl::Status open_relay(const api::MigrateRequest& request);
  absl::Status start_libvirt(const api::MigrateRequest& request);
  // Until it runs there, or the reason why not.
  absl::Status follow(const api::MigrateRequest& request);
  absl::Status look_at_job(const api::MigrateRequest& request);
  absl::Status heed(migration::PassVerdict verdict, const api::MigrateRequest& request);
  absl::Status turn_to_post_copy();
  // It runs there; until all of its memory does, or nobody wants to wait.
  void follow_pages();
  void begin_switchover();
  void give_stragglers();
  absl::StatusOr<api::MigrateResult> conclude(const absl::Status& moved);
  absl::StatusOr<api::MigrateResult> conclude_post_copy(const absl::Status& moved);
  api::MigrateResult result(const std::string& outcome, const std::string& owner);
  void cut();

  Node& node_;
  SourceMigration::OnProgress on_progress_;
  SourceMigration::Cancelled user_cancelled_;
  std::shared_ptr<vm::Hypervisor> hypervisor_;
  Busy::Hold hold_;
  VersionedService current_;
  api::MigrationJournal entry_;
  std::string xml_;
  vm::DomainSpec domain_;
  bool runs_ = false;
  bool cold_ = false;
  migration::Strategy strategy_ = migration::STRATEGY_INVALID;  // that is followed
  bool may_post_copy_ = false;                                  // libvirt is told so
  bool post_copy_ = false;                                      // and it was begun
  bool pages_there_ = true;
  uint64_t bytes_per_s_ = 0;  // that it may send; 0: no limit
  std::string because_;       // of an attempt before this one
  std::unique_ptr<SharedMarks> marks_;
  std::vector<migration::Reason> reasons_;
  api::PrepareVmReply prepared_;
  std::vector<api::VmDisk> copied_;  // that the destination does not see
  api::MigrationStatistics statistics_;
  std::unique_ptr<VmRelayProcess> relay_;
  std::unique_ptr<VmFrameRecorder> recorder_;
  int64_t begun_ns_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<vm::Hypervisor::Subscription> watch_;
  int64_t stopped_ns_ = 0;                    // 0: it runs
  int64_t stopped_real_ns_ = 0;               // the same by CLOCK_REALTIME
  bool resumed_ = false;                      // by libvirt, after that
  std::optional<absl::Status> libvirt_said_;  // its call has returned
  std::optional<absl::Status> switched_;      // the destination's answer
  int64_t switched_ns_ = 0;
  bool switching_ = false;
  // libvirt's call, which may outlive this object: it ends with the relay.
  struct LibvirtCall {
    std::mutex mutex;
    VmMigration* whose = nullptr;
  };
  std::shared_ptr<LibvirtCall> libvirt_call_;
  std::thread libvirt_;
  std::thread switchover_;
  std::shared_ptr<grpc::ClientContext> switch_call_;

  std::optional<migration::Convergence> convergence_;
  bool does_not_converge_ = false;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_SOURCE_H_
