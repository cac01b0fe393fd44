#include "node/peers.h"

#include <grpcpp/client_context.h>

#include <chrono>

#include "api/transport.h"
#include "base/status.h"

namespace godwit::node {

absl::StatusOr<std::shared_ptr<Peer>> Peers::find(const std::string& node) {
  GW_ASSIGN_OR_RETURN(const VersionedNode record, records_->node(node));
  const std::string address = record.record.host() + ":" + std::to_string(record.record.port());
  std::lock_guard lock(mutex_);
  std::shared_ptr<Peer>& known = known_[node];
  // A node that came back elsewhere: the old connection ends with its last user.
  if (known == nullptr || known->address != address) {
    known = std::make_shared<Peer>();
    known->name = node;
    known->address = address;
    known->channel = api::peer_channel(identity_, node, address);
    known->user = api::Godwit::NewStub(known->channel);
    known->peer = api::GodwitPeer::NewStub(known->channel);
  }
  return known;
}

void set_timeout(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::nanoseconds(absl::ToInt64Nanoseconds(timeout)));
}

}  // namespace godwit::node
