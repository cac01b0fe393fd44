// Where a call goes: here, or to the node that has the service.
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include "api/rpc_status.h"
#include "base/status.h"
#include "node/api_service.h"

namespace godwit::node {
namespace {

constexpr char kPassedOn[] = "godwit-passed-on";
constexpr absl::Duration kBusyWait = absl::Seconds(10);
constexpr absl::Duration kRecoveredWait = absl::Seconds(10);
// A service can move again while a call follows it.

}  // namespace

bool was_passed_on(const grpc::ServerContext& context) {
  return context.client_metadata().count(kPassedOn) != 0;
}

std::unique_ptr<grpc::ClientContext> pass_on(const grpc::ServerContext& context) {
  auto call = grpc::ClientContext::FromServerContext(context);
  call->AddMetadata(kPassedOn, "1");
  return call;
}

absl::Status unreachable(const absl::Status& status, const Peer& peer) {
  if (!absl::IsUnavailable(status)) return status;
  return make_error(absl::StatusCode::kUnavailable, "node {} ({}) does not answer: {}", peer.name,
                    peer.address, message_of(status));
}

absl::StatusOr<std::shared_ptr<Peer>> ApiService::other_node(const std::string& name) {
  if (name.empty() || name == node_.config().name) {
    GW_RETURN_IF_ERROR(node_.wait_recovered(Deadline::in(kRecoveredWait)));
    return std::shared_ptr<Peer>();
  }
  return node_.peers().find(name);
}

absl::StatusOr<std::shared_ptr<Peer>> ApiService::locate(const grpc::ServerContext& context,
                                                         const std::string& service,
                                                         Workloads workloads) {
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(service));
  if (found.record.has_vm() && workloads == kServicesOnly)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{} is a virtual machine, and this command is for services", service);
  if (found.record.owner() == node_.config().name) {
    GW_RETURN_IF_ERROR(node_.wait_recovered(Deadline::in(kRecoveredWait)));
    return std::shared_ptr<Peer>();
  }
  if (was_passed_on(context))
    return make_error(absl::StatusCode::kAborted, "service {} has just moved to {}; ask again",
                      service, found.record.owner());
  return node_.peers().find(found.record.owner());
}

absl::Status ApiService::on_service(
    grpc::ServerContext& context, const std::string& service, const std::string& doing,
    Workloads workloads, const std::function<absl::Status()>& here,
    const std::function<absl::Status(Peer&, grpc::ClientContext&)>& there) {
  absl::Status result = absl::OkStatus();
  for (int moves = 0; moves < kMostMoves; ++moves) {
    GW_ASSIGN_OR_RETURN(const std::shared_ptr<Peer> peer, locate(context, service, workloads));
    if (peer == nullptr) {
      GW_ASSIGN_OR_RETURN(const Busy::Hold hold,
                          node_.busy().hold(service, doing, Deadline::in(kBusyWait)));
      GW_ASSIGN_OR_RETURN(const VersionedService now, node_.records().service(service));
      if (now.record.owner() != node_.config().name) continue;  // moved while we waited
      return here();
    }
    const auto call = pass_on(context);
    result = unreachable(there(*peer, *call), *peer);
    if (!absl::IsAborted(result)) return result;
  }
  return result.ok() ? keeps_moving(service) : result;
}

absl::Status keeps_moving(const std::string& service) {
  return make_error(absl::StatusCode::kAborted, "service {} keeps moving; ask again", service);
}

}  // namespace godwit::node
