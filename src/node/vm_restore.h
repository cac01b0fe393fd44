// A virtual machine from a checkpoint file: disks first, while all of the file is read and checked;
// then libvirt is given the memory, as if it had saved it itself, through a FIFO.
#ifndef GODWIT_NODE_VM_RESTORE_H_
#define GODWIT_NODE_VM_RESTORE_H_

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "base/unique_fd.h"
#include "node/busy.h"
#include "node/records.h"
#include "node/source_migration.h"
#include "node/vm_image.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;

// By its name in `folder`, which this daemon and libvirt see.
std::string vm_fifo(const std::string& folder, const std::string& id);

// Opens its bridges' ports, but not those of cards without a link: QEMU announces itself through
// them when it is let run, link or not, and would draw frames away from whoever has the address.
absl::Status connect_plugged(vm::DomainSpec domain);

// One thread; once.
class VmRestore {
 public:
  VmRestore(Node& node, SourceMigration::OnProgress on_progress,
            SourceMigration::Cancelled cancelled)
      : node_(node), on_progress_(std::move(on_progress)), cancelled_(std::move(cancelled)) {}

  absl::StatusOr<api::MigrateResult> restore(const api::RestoreRequest& request);

 private:
  struct Space {
    VmSpace told;
    std::unique_ptr<vm::Hypervisor::FileWriter> writer;  // none: memory
  };
  absl::StatusOr<std::unique_ptr<stream::Feed>> open_stream();
  absl::Status read_image();
  absl::Status become();
  absl::Status judge(api::MigrateResult& result);
  absl::Status judge_medium(const VmImageDisk& medium, api::MigrateResult& result);
  absl::Status claim();
  absl::Status make_disks();
  absl::Status begin_space(uint64_t number, const VmSpace& told);
  absl::Status write_disk(uint64_t number, uint64_t offset, std::span<const std::byte> bytes);
  absl::Status load_memory();
  absl::Status feed_memory(int fifo);
  // libvirt has started QEMU, which reads its taps.
  void close_bridges();
  absl::Status wait_for_closed_bridges();
  absl::Status run();
  absl::StatusOr<api::MigrateResult> conclude(const absl::Status& restored);
  absl::StatusOr<bool> keep_on(const char* phase, uint64_t bytes_read);

  Node& node_;
  SourceMigration::OnProgress on_progress_;
  SourceMigration::Cancelled cancelled_;
  api::RestoreRequest request_;
  std::shared_ptr<vm::Hypervisor> hypervisor_;
  Busy::Hold hold_;
  UniqueFd file_;
  uint64_t file_bytes_ = 0;
  VmImage image_;         // as it is to be here
  bool another_ = false;  // under another name
  VersionedService versioned_;
  api::MigrationJournal entry_;
  std::map<uint64_t, Space> spaces_;
  api::MigrationStatistics statistics_;
  int64_t begun_ns_ = 0;
  int64_t told_ns_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool bridges_closed_ = false;
  bool loaded_ = false;
  absl::Status load_status_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_RESTORE_H_
