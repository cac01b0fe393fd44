// A virtual machine's checkpoint, on its node: memory, devices and disks of one moment in one file.
//
//   guest     ---runs---|stands|----------------------runs on-----------------
//   disks                |  new writes go to overlays beside them  | merged
//   memory               |  QEMU sends it, first what is written to |
//
// Without --leave-running it stands still until all is in the file, and then ends. Where QEMU
// cannot save memory beside a guest that runs, it stands still until its memory is in the file.
#ifndef GODWIT_NODE_VM_CHECKPOINT_H_
#define GODWIT_NODE_VM_CHECKPOINT_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "base/unique_fd.h"
#include "migration/mover.pb.h"
#include "node/busy.h"
#include "node/records.h"
#include "node/source_migration.h"
#include "node/vm_drain.h"
#include "node/vm_image.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;

// One thread; once.
class VmCheckpoint {
 public:
  VmCheckpoint(Node& node, SourceMigration::OnProgress on_progress,
               SourceMigration::Cancelled cancelled)
      : node_(node), on_progress_(std::move(on_progress)), cancelled_(std::move(cancelled)) {}

  // kAborted: it has moved to another node, which is to be asked.
  absl::StatusOr<api::MigrateResult> save(const api::CheckpointRequest& request);

 private:
  absl::Status check(const api::CheckpointRequest& request);
  absl::Status look_at_domain();
  void judge_devices();
  absl::Status judge_disk(const vm::Disk& disk);

  // What can be done while it runs.
  absl::Status prepare();
  absl::Status write();
  absl::Status stop();
  absl::Status save_memory(stream::Writer& writer);
  absl::Status read_memory(SpaceWriter& space);
  void follow_qemu();
  // Of a machine that runs on: until it does.
  absl::Status see_it_run();
  absl::Status save_disks(stream::Writer& writer);
  absl::Status save_disk(stream::Writer& writer, const VmImageDisk& disk, uint64_t space);
  absl::Status publish();
  // Whether QEMU is well, and the user still wants it.
  absl::Status keep_on();
  void tell(const char* phase, uint64_t left, uint64_t total);

  absl::StatusOr<api::MigrateResult> conclude(const absl::Status& saved);
  api::MigrateResult result(const std::string& outcome);

  Node& node_;
  SourceMigration::OnProgress on_progress_;
  SourceMigration::Cancelled cancelled_;
  api::CheckpointRequest request_;
  std::shared_ptr<vm::Hypervisor> hypervisor_;
  Busy::Hold hold_;
  VersionedService current_;
  api::MigrationJournal entry_;
  vm::DomainSpec domain_;
  std::vector<migration::Reason> reasons_;
  VmImage image_;
  pages::PageCompression compression_;
  bool background_ = false;
  std::string why_stopped_;
  UniqueFd memory_;  // the pipe's reading end
  VmDrain drain_;
  UniqueFd file_;
  std::unique_ptr<stream::Sink> sink_;  // into file_
  std::unique_ptr<vm::Hypervisor::Subscription> watch_;
  api::MigrationStatistics statistics_;
  int64_t begun_ns_ = 0;
  int64_t stop_ns_ = 0;
  uint64_t disk_bytes_done_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t resumed_ns_ = 0;
  bool ended_ = false;
  bool read_ = false;  // all that QEMU sends, or it failed
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_CHECKPOINT_H_
