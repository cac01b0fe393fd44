// Whether a virtual machine can go to another node. QEMU accepts another CPU model or a device more
// or less at the destination without a word, so both ends are looked at first.
#ifndef GODWIT_NODE_VM_PRECHECK_H_
#define GODWIT_NODE_VM_PRECHECK_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "migration/mover.pb.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;

// At the source: what of it cannot go anywhere. `running`: not only its definition goes.
absl::StatusOr<std::vector<migration::Reason>> unmovable_parts(vm::Hypervisor& hypervisor,
                                                               const vm::DomainSpec& domain,
                                                               bool running);

// Whether rounds would lose what the running domain writes meanwhile.
//
// QEMU before 9.0 reads and clears the dirty bits of a RAM block whose size is a multiple of 64
// pages (256 KiB) without a word to the emulator's threads (include/exec/ram_addr.h,
// cpu_physical_memory_sync_dirty_bitmap()): a page that one of them has in its TLB is written on
// without being marked again. KVM tracks by itself. A machine type that only 9.0 and later have
// tells the age of the QEMU that runs it; a version that is installed does not.
absl::StatusOr<std::optional<migration::Reason>> misses_writes(vm::Hypervisor& hypervisor,
                                                               const vm::DomainSpec& domain);

// At the destination; refusals go into `reply`.
absl::Status judge_vm(Node& node, const api::PrepareVmRequest& request, api::PrepareVmReply& reply);

migration::Reason vm_reason(const char* code, std::string object, std::string reason,
                            std::string way_out);

// The disks that the guest writes to.
std::vector<vm::Disk> written_disks(const vm::DomainSpec& domain);

// Files beside a machine's disks, by which the other end sees that they are the same there. Taken
// away at the end.
class SharedMarks {
 public:
  // One for each folder that has a disk which is written to; those whose folder takes none, or that
  // libvirt alone sees, are left out and count as not shared.
  SharedMarks(const std::string& id, const vm::DomainSpec& domain);
  ~SharedMarks();
  SharedMarks(const SharedMarks&) = delete;
  SharedMarks& operator=(const SharedMarks&) = delete;
  // Empty: none.
  std::string beside(const vm::Disk& disk) const;

 private:
  std::string path_beside(const vm::Disk& disk) const;
  std::string id_;
  std::vector<std::string> paths_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_PRECHECK_H_
