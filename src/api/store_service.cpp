#include "api/store_service.h"

#include "api/rpc_status.h"

namespace godwit::api {
namespace {

grpc::Status no_store() {
  return {grpc::StatusCode::FAILED_PRECONDITION, "this node does not keep the store"};
}

void fill(const store::Entry& entry, StoreEntry* reply) {
  reply->set_key(entry.key);
  reply->set_value(entry.value);
  reply->set_revision(entry.revision);
}

}  // namespace

grpc::Status StoreService::StoreGet(grpc::ServerContext*, const StoreKey* request,
                                    StoreEntry* reply) {
  if (store_ == nullptr) return no_store();
  const auto entry = store_->get(request->key());
  if (entry.ok()) fill(*entry, reply);
  return to_grpc(entry.status());
}

grpc::Status StoreService::StoreList(grpc::ServerContext*, const StoreKey* request,
                                     StoreEntries* reply) {
  if (store_ == nullptr) return no_store();
  const auto entries = store_->list(request->key());
  if (!entries.ok()) return to_grpc(entries.status());
  for (const store::Entry& each : *entries) fill(each, reply->add_entries());
  return grpc::Status::OK;
}

grpc::Status StoreService::StoreCompareAndSwap(grpc::ServerContext*, const StoreSwap* request,
                                               StoreRevision* reply) {
  if (store_ == nullptr) return no_store();
  const auto revision =
      store_->compare_and_swap(request->key(), request->expected_revision(), request->value());
  if (revision.ok()) reply->set_revision(*revision);
  return to_grpc(revision.status());
}

grpc::Status StoreService::StoreRemove(grpc::ServerContext*, const StoreSwap* request, Empty*) {
  if (store_ == nullptr) return no_store();
  return to_grpc(store_->remove(request->key(), request->expected_revision()));
}

}  // namespace godwit::api
