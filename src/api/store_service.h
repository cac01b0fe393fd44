// The store's calls as the keeper answers them. A service that keeps no store answers
// kFailedPrecondition. The rest of GodwitPeer is the node's.
#ifndef GODWIT_API_STORE_SERVICE_H_
#define GODWIT_API_STORE_SERVICE_H_

#include "api/godwit.grpc.pb.h"
#include "store/store.h"

namespace godwit::api {

class StoreService : public GodwitPeer::Service {
 public:
  // `store` is null on a node that keeps none; it must outlive this.
  explicit StoreService(store::Store* store) : store_(store) {}

  grpc::Status StoreGet(grpc::ServerContext*, const StoreKey*, StoreEntry*) override;
  grpc::Status StoreList(grpc::ServerContext*, const StoreKey*, StoreEntries*) override;
  grpc::Status StoreCompareAndSwap(grpc::ServerContext*, const StoreSwap*, StoreRevision*) override;
  grpc::Status StoreRemove(grpc::ServerContext*, const StoreSwap*, Empty*) override;

 private:
  store::Store* store_;
};

}  // namespace godwit::api

#endif  // GODWIT_API_STORE_SERVICE_H_
