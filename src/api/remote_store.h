// The store of another node, over the API. One warm connection; each call has a deadline.
#ifndef GODWIT_API_REMOTE_STORE_H_
#define GODWIT_API_REMOTE_STORE_H_

#include <grpcpp/channel.h>

#include <memory>

#include "absl/time/time.h"
#include "api/godwit.grpc.pb.h"
#include "store/store.h"

namespace godwit::api {

class RemoteStore : public store::Store {
 public:
  RemoteStore(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout)
      : stub_(GodwitPeer::NewStub(channel)), timeout_(timeout) {}

  absl::StatusOr<store::Entry> get(const std::string& key) override;
  absl::StatusOr<std::vector<store::Entry>> list(const std::string& prefix) override;
  absl::StatusOr<store::Revision> compare_and_swap(const std::string& key, store::Revision expected,
                                                   const std::string& value) override;
  absl::Status remove(const std::string& key, store::Revision expected) override;

 private:
  std::unique_ptr<GodwitPeer::Stub> stub_;
  absl::Duration timeout_;
};

}  // namespace godwit::api

#endif  // GODWIT_API_REMOTE_STORE_H_
