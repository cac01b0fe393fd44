// A virtual machine that is on its way to this node, from the source's question until it runs here
// or nothing of it is left.
//
// libvirt's client is the source's daemon, and it leaves the domain paused here once all of it has
// come ("finish"). It is this daemon that makes this node the owner in the store, and only then
// lets it run; and only after the source has said that what could resume the domain there is held
// back (SwitchVmOver).
//
// Where post-copy is possible libvirt would let it run by itself in "finish", and so the relay here
// holds that back. It is let go after the commit.
#ifndef GODWIT_NODE_VM_REPLICA_H_
#define GODWIT_NODE_VM_REPLICA_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.pb.h"
#include "api/records.pb.h"
#include "api/swap_stream.h"
#include "node/busy.h"
#include "node/vm_network.h"
#include "node/vm_relay_process.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;

class VmReplica {
 public:
  // Journal, sockets; a thread goes on with it. With refusals in `reply` nothing is made, and the
  // result is null.
  static absl::StatusOr<std::shared_ptr<VmReplica>> begin(Node& node,
                                                          const api::PrepareVmRequest& request,
                                                          api::PrepareVmReply& reply);

  const std::string& migration_id() const { return request_.migration_id(); }
  // Blocks until it runs here (OK) or will not.
  absl::Status switch_over(const api::SwitchVmOverRequest& request);
  // Frames for it that came to the source since.
  void give(const api::SwitchVmOverRequest& request);
  // It will not come, unless it has been committed; blocks until nothing is left.
  absl::Status abort();

 private:
  VmReplica(Node& node, const api::PrepareVmRequest& request) : node_(node), request_(request) {}
  absl::Status prepare(api::PrepareVmReply& reply);
  absl::Status expect_record();
  absl::Status make_disks(const api::PrepareVmReply& judged);
  void run();
  // What there is to wait for before the commit.
  absl::Status wait_until_complete();
  absl::Status commit();
  // From here on it may run here, and there is no way back for the source.
  absl::Status let_run();
  // Until all of its memory is here.
  absl::Status follow_pages();
  void keep_frames(const api::SwitchVmOverRequest& request);
  void give_kept();
  void lead_frames_here();
  // Of the domain that libvirt has made here.
  void prepare_network();

  Node& node_;
  const api::PrepareVmRequest request_;
  std::shared_ptr<vm::Hypervisor> hypervisor_;
  Busy::Hold hold_;
  api::MigrationJournal entry_;
  api::ServiceRecord committed_record_;
  std::unique_ptr<api::SwapStream> swaps_;
  std::unique_ptr<VmRelayProcess> relay_;
  std::unique_ptr<vm::Hypervisor::Subscription> watch_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<vm::DomainSpec> here_;
  std::unique_ptr<VmFrameGiver> giver_;
  std::deque<api::SwitchVmOverRequest> kept_;  // frames that it is to get when it is loaded
  bool announce_ = false;
  bool begun_ = false;     // libvirt has started it here
  bool complete_ = false;  // and all of it has come
  bool asked_ = false;     // by the source, to switch over
  bool pages_follow_ = false;
  bool runs_ = false;
  bool aborted_ = false;
  bool committed_ = false;
  bool ended_ = false;
  absl::Status why_not_ = absl::OkStatus();
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_REPLICA_H_
