// Warm connections to the daemons of the other nodes, found by name in the store.
#ifndef GODWIT_NODE_PEERS_H_
#define GODWIT_NODE_PEERS_H_

#include <grpcpp/channel.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "api/godwit.grpc.pb.h"
#include "node/records.h"
#include "tls/certificates.h"

namespace godwit::node {

struct Peer {
  std::string name;
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<api::Godwit::Stub> user;
  std::unique_ptr<api::GodwitPeer::Stub> peer;
};

// Any thread.
class Peers {
 public:
  Peers(const tls::Identity& identity, const Records* records)
      : identity_(identity), records_(records) {}
  // Does not wait for the connection.
  absl::StatusOr<std::shared_ptr<Peer>> find(const std::string& node);

 private:
  tls::Identity identity_;
  const Records* records_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Peer>> known_;
};

// Deadline and trace of a call that a daemon makes by itself.
void set_timeout(grpc::ClientContext& context, absl::Duration timeout);

}  // namespace godwit::node

#endif  // GODWIT_NODE_PEERS_H_
