// A service as the destination of a migration: the replica's processes in the capsule and behind
// the port that this node's daemon prepared.
#ifndef GODWIT_NODE_WORKLOAD_REPLICA_H_
#define GODWIT_NODE_WORKLOAD_REPLICA_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "capsule/capsule.h"
#include "capsule/enter.h"
#include "capsule/file_layer.h"
#include "migration/workload.h"
#include "node/replica_files.h"
#include "node/service_port.h"
#include "process/background.h"
#include "process/replica.h"

namespace godwit::node {

class ServiceReplica final : public migration::ReplicaWorkload {
 public:
  // `clone`: see process::ReplicaHost.
  static absl::StatusOr<std::unique_ptr<ServiceReplica>> open(const capsule::NodePaths& node,
                                                              const std::string& service,
                                                              resource::CloneAddresses clone);
  ~ServiceReplica() override;

  absl::Status apply(const stream::Frame& frame) override;
  std::optional<migration::WantedFiles> wanted_files() override { return files_->take_answer(); }
  std::vector<migration::Reason> refusals() const override { return files_->refusals(); }
  absl::Status announce() override;
  uint64_t pages_missing() const override { return replica_->pages_missing(); }
  void expect_pages() override;
  bool may_miss(uint64_t space) const override { return replica_->may_miss(space); }
  absl::StatusOr<std::vector<Needed>> needed_first() override;
  absl::Status fetch_pages(migration::ChannelPtr faults, migration::ChannelPtr push,
                           absl::Duration patience) override;
  absl::Status make_ready() override;
  absl::Status check_whole() override;
  absl::Status activate() override;
  absl::StatusOr<uint32_t> open(const std::vector<std::string>& from_source) override;
  absl::Status settle() override;
  absl::Status deliver(const std::vector<std::string>& frames) override;
  void discard() override;
  void leave() override;
  // Its copy keeps held frames over our death.
  int hold_fd() const { return port_->port.hold_fd(); }
  void describe(migration::Statistics& statistics) override;

 private:
  explicit ServiceReplica(capsule::Capsule capsule) : capsule_(std::move(capsule)) {}

  capsule::Capsule capsule_;
  capsule::StdioEnds stdio_;
  std::optional<capsule::LayerTarget> layer_;
  std::optional<ReplicaFiles> files_;
  std::unique_ptr<capsule::CapsuleThread> thread_;
  std::optional<OpenedPort> port_;
  std::unique_ptr<process::Replica> replica_;
  // Last: it uses the others.
  process::Background announcer_{process::Background::Urgency::kOrdinary};
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_WORKLOAD_REPLICA_H_
