#include "api/remote_store.h"

#include <grpcpp/client_context.h>

#include <chrono>

#include "api/rpc_status.h"
#include "base/status.h"

namespace godwit::api {
namespace {

void set_deadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::nanoseconds(absl::ToInt64Nanoseconds(timeout)));
}

absl::Status store_status(const grpc::Status& status) {
  const absl::Status result = from_grpc(status);
  // Only then the keeper itself was not reached; its own answers speak for themselves.
  if (absl::IsUnavailable(result) || absl::IsDeadlineExceeded(result))
    return annotate(result, "the node that keeps the store does not answer");
  return result;
}

}  // namespace

absl::StatusOr<store::Entry> RemoteStore::get(const std::string& key) {
  grpc::ClientContext context;
  set_deadline(context, timeout_);
  StoreKey request;
  request.set_key(key);
  StoreEntry reply;
  GW_RETURN_IF_ERROR(store_status(stub_->StoreGet(&context, request, &reply)));
  return store::Entry{reply.key(), reply.value(), reply.revision()};
}

absl::StatusOr<std::vector<store::Entry>> RemoteStore::list(const std::string& prefix) {
  grpc::ClientContext context;
  set_deadline(context, timeout_);
  StoreKey request;
  request.set_key(prefix);
  StoreEntries reply;
  GW_RETURN_IF_ERROR(store_status(stub_->StoreList(&context, request, &reply)));
  std::vector<store::Entry> entries;
  for (const StoreEntry& each : reply.entries())
    entries.push_back({each.key(), each.value(), each.revision()});
  return entries;
}

absl::StatusOr<store::Revision> RemoteStore::compare_and_swap(const std::string& key,
                                                              store::Revision expected,
                                                              const std::string& value) {
  grpc::ClientContext context;
  set_deadline(context, timeout_);
  StoreSwap request;
  request.set_key(key);
  request.set_expected_revision(expected);
  request.set_value(value);
  StoreRevision reply;
  GW_RETURN_IF_ERROR(store_status(stub_->StoreCompareAndSwap(&context, request, &reply)));
  return reply.revision();
}

absl::Status RemoteStore::remove(const std::string& key, store::Revision expected) {
  grpc::ClientContext context;
  set_deadline(context, timeout_);
  StoreSwap request;
  request.set_key(key);
  request.set_expected_revision(expected);
  Empty reply;
  return store_status(stub_->StoreRemove(&context, request, &reply));
}

}  // namespace godwit::api
