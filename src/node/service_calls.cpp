// Calls about services that are answered at once.
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <signal.h>

#include <map>

#include "api/rpc_status.h"
#include "base/log.h"
#include "base/status.h"
#include "node/api_service.h"
#include "node/launch.h"
#include "node/session_pump.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kListTimeout = absl::Seconds(1);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);
constexpr absl::Duration kKillWait = absl::Seconds(30);
constexpr absl::Duration kCancelSlice = absl::Milliseconds(500);

}  // namespace

grpc::Status ApiService::Run(grpc::ServerContext* context, const api::RunRequest* request,
                             api::RunReply* reply) {
  const auto peer = other_node(request->node());
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer == nullptr) return api::to_grpc(run_here(*request, *reply));
  const auto call = pass_on(*context);
  return api::to_grpc(
      unreachable(api::from_grpc((*peer)->user->Run(call.get(), *request, reply)), **peer));
}

absl::Status ApiService::run_here(const api::RunRequest& request, api::RunReply& reply) {
  GW_ASSIGN_OR_RETURN(Launch launch, Launch::prepare(node_, request));
  const auto started = launch.start();
  if (started.ok())
    *reply.mutable_service() = *started;
  else
    *reply.mutable_not_started() = failure_of(started.status());
  return absl::OkStatus();
}

grpc::Status ApiService::List(grpc::ServerContext*, const api::ListRequest* request,
                              api::ListReply* reply) {
  const auto all = node_.records().services();
  if (!all.ok()) return api::to_grpc(all.status());
  // Pids are known on the services' nodes only; each is asked once.
  std::map<std::string, api::ListReply> elsewhere;
  for (const VersionedService& each : *all) {
    const api::ServiceRecord& record = each.record;
    const bool here = record.owner() == node_.config().name;
    if (request->local() && !here) continue;
    if (!request->all() && record.state() == api::SERVICE_EXITED) continue;
    if (here) {
      *reply->add_services() = node_.describe(record);
      continue;
    }
    api::Service service = node_.describe(record);
    const auto [asked, first] = elsewhere.try_emplace(record.owner());
    if (first) {
      const auto peer = node_.peers().find(record.owner());
      grpc::ClientContext call;
      set_timeout(call, kListTimeout);
      api::ListRequest local;
      local.set_local(true);
      local.set_all(true);
      if (!peer.ok() || !(*peer)->user->List(&call, local, &asked->second).ok()) {
        asked->second.Clear();
        asked->second.set_unreachable(true);
      }
    }
    if (asked->second.unreachable()) service.set_state("lost");
    for (const api::Service& known : asked->second.services())
      if (known.name() == service.name()) service = known;
    *reply->add_services() = std::move(service);
  }
  return grpc::Status::OK;
}

grpc::Status ApiService::Inspect(grpc::ServerContext* context, const api::InspectRequest* request,
                                 api::Service* reply) {
  const auto found = node_.records().service(request->name());
  if (!found.ok()) return api::to_grpc(found.status());
  *reply = node_.describe(found->record);
  if (found->record.owner() == node_.config().name) return grpc::Status::OK;
  const auto peer = locate(*context, request->name(), kAlsoVms);
  // Gone since, or just moved: what the record said is as true as anything.
  if (!peer.ok() || *peer == nullptr) return grpc::Status::OK;
  auto call = pass_on(*context);
  set_timeout(*call, kListTimeout);
  api::Service there;
  if ((*peer)->user->Inspect(call.get(), *request, &there).ok())
    *reply = there;
  else
    reply->set_state("lost");
  return grpc::Status::OK;
}

grpc::Status ApiService::Signal(grpc::ServerContext* context, const api::SignalRequest* request,
                                api::Empty* reply) {
  return api::to_grpc(on_service(
      *context, request->name(), "being signalled", kServicesOnly,
      [&]() -> absl::Status {
        if (request->signal() <= 0 || request->signal() >= NSIG)
          return make_error(absl::StatusCode::kInvalidArgument, "{} is no signal",
                            request->signal());
        GW_ASSIGN_OR_RETURN(capsule::Capsule capsule, node_.services().open(request->name()));
        return capsule.signal(request->signal());
      },
      [&](Peer& peer, grpc::ClientContext& call) {
        return api::from_grpc(peer.user->Signal(&call, *request, reply));
      }));
}

grpc::Status ApiService::Stop(grpc::ServerContext* context, const api::StopRequest* request,
                              api::StopReply* reply) {
  return api::to_grpc(on_service(
      *context, request->name(), "being stopped", kAlsoVms,
      [&] { return stop_here(*request, *reply); },
      [&](Peer& peer, grpc::ClientContext& call) {
        return api::from_grpc(peer.user->Stop(&call, *request, reply));
      }));
}

absl::Status ApiService::stop_here(const api::StopRequest& request, api::StopReply& reply) {
  const absl::Duration patience =
      request.timeout_ns() == 0 ? kStopTimeout : absl::Nanoseconds(request.timeout_ns());
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(request.name()));
  if (found.record.has_vm()) return node_.vms().stop(request.name(), patience);
  auto opened = node_.services().open(request.name());
  if (absl::IsNotFound(opened.status())) return absl::OkStatus();  // lost with its machine
  GW_RETURN_IF_ERROR(opened.status());
  capsule::Capsule& capsule = *opened;
  GW_ASSIGN_OR_RETURN(capsule::CapsuleInfo info, capsule.info());
  if (info.state() != capsule::CAPSULE_EXITED) {
    const int number = request.signal() == 0 ? SIGTERM : request.signal();
    // Ended by itself just now: then waiting is short.
    capsule.signal(number).IgnoreError();
    auto end = capsule.wait_exit(Deadline::in(patience));
    if (absl::IsDeadlineExceeded(end.status())) {
      GW_RETURN_IF_ERROR(capsule.kill());
      end = capsule.wait_exit(Deadline::in(kKillWait));
    }
    GW_RETURN_IF_ERROR(end.status());
    info = *end;
  }
  reply.set_exit_code(info.exit_code());
  return node_.record_exit(request.name(), info);
}

grpc::Status ApiService::Remove(grpc::ServerContext* context, const api::RemoveRequest* request,
                                api::Empty* reply) {
  return api::to_grpc(on_service(
      *context, request->name(), "being removed", kAlsoVms, [&] { return remove_here(*request); },
      [&](Peer& peer, grpc::ClientContext& call) {
        return api::from_grpc(peer.user->Remove(&call, *request, reply));
      }));
}

absl::Status ApiService::remove_here(const api::RemoveRequest& request) {
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(request.name()));
  if (found.record.has_vm()) return node_.vms().remove(request.name(), request.force());
  const auto info = node_.services().info(request.name());
  if (info.ok() && info->state() != capsule::CAPSULE_EXITED && !request.force())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "service {} runs; stop it first, or use rm --force", request.name());
  return node_.remove_service(request.name());
}

grpc::Status ApiService::Wait(grpc::ServerContext* context, const api::WaitRequest* request,
                              api::WaitReply* reply) {
  while (!context->IsCancelled()) {
    const auto found = node_.records().service(request->name());
    if (!found.ok()) return api::to_grpc(found.status());
    if (found->record.state() == api::SERVICE_EXITED) {
      reply->set_exit_code(found->record.exit_code());
      return grpc::Status::OK;
    }
    const auto peer = locate(*context, request->name());
    if (!peer.ok()) return api::to_grpc(peer.status());
    if (*peer != nullptr) {
      const auto call = pass_on(*context);
      const grpc::Status there = (*peer)->user->Wait(call.get(), *request, reply);
      if (there.error_code() == grpc::StatusCode::ABORTED) continue;  // moved on
      return api::to_grpc(unreachable(api::from_grpc(there), **peer));
    }
    const std::string watched = node_.services().capsule_of(request->name());
    auto capsule = node_.services().open(request->name());
    if (absl::IsNotFound(capsule.status())) continue;  // on its way to another node
    if (!capsule.ok()) return api::to_grpc(capsule.status());
    const auto end = capsule->wait_exit(Deadline::in(kCancelSlice));
    if (absl::IsDeadlineExceeded(end.status())) continue;
    if (!end.ok()) return api::to_grpc(end.status());
    // A capsule also ends here when the service has gone elsewhere.
    const auto now = node_.records().service(request->name());
    if (now.ok() && (now->record.owner() != node_.config().name ||
                     now->record.state() == api::SERVICE_MIGRATING ||
                     node_.services().capsule_of(request->name()) != watched))
      continue;
    const absl::Status recorded = node_.wait_exit_recorded(request->name(), watched, *end);
    if (!recorded.ok()) return api::to_grpc(recorded);
    reply->set_exit_code(end->exit_code());
    return grpc::Status::OK;
  }
  return {grpc::StatusCode::CANCELLED, "cancelled"};
}

grpc::Status ApiService::Nodes(grpc::ServerContext*, const api::Empty*, api::NodesReply* reply) {
  const auto nodes = node_.records().nodes();
  if (!nodes.ok()) return api::to_grpc(nodes.status());
  const auto services = node_.records().services();
  if (!services.ok()) return api::to_grpc(services.status());
  std::map<std::string, uint32_t> count;
  for (const VersionedService& each : *services)
    if (each.record.state() != api::SERVICE_EXITED) ++count[each.record.owner()];
  for (const VersionedNode& each : *nodes) {
    api::Node* node = reply->add_nodes();
    if (each.record.name() == node_.config().name) {
      *node = node_.describe_self();
    } else {
      grpc::ClientContext call;
      set_timeout(call, kListTimeout);
      const auto peer = node_.peers().find(each.record.name());
      if (!peer.ok() || !(*peer)->peer->Ping(&call, api::Empty(), node).ok()) {
        node->set_name(each.record.name());
        node->set_host(each.record.host());
        node->set_port(each.record.port());
        node->set_kernel(each.record.kernel());
        node->set_subnet(each.record.subnet());
        node->set_state("unreachable");
      }
    }
    *node->mutable_features() = each.record.features();
    node->set_services(count[node->name()]);
  }
  return grpc::Status::OK;
}

}  // namespace godwit::node
