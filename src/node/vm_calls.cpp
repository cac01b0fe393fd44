// Calls about virtual machines.
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "api/rpc_status.h"
#include "base/status.h"
#include "node/api_service.h"
#include "node/vm_precheck.h"
#include "node/vm_replica.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kRecoveredWait = absl::Seconds(20);
// How often the user's disappearance is looked for.
constexpr useconds_t kCancelSliceUs = 50'000;

}  // namespace

grpc::Status ApiService::AddVm(grpc::ServerContext* context, const api::AddVmRequest* request,
                               api::Service* reply) {
  const auto peer = other_node(request->node());
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer != nullptr) {
    const auto call = pass_on(*context);
    return api::to_grpc(
        unreachable(api::from_grpc((*peer)->user->AddVm(call.get(), *request, reply)), **peer));
  }
  auto added = node_.vms().add(*request);
  if (added.ok()) *reply = *std::move(added);
  return api::to_grpc(added.status());
}

grpc::Status ApiService::StartVm(grpc::ServerContext* context, const api::InspectRequest* request,
                                 api::Service* reply) {
  return api::to_grpc(on_service(
      *context, request->name(), "being started", kAlsoVms,
      [&]() -> absl::Status {
        GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(request->name()));
        if (!found.record.has_vm())
          return make_error(absl::StatusCode::kFailedPrecondition,
                            "{} is a service; godwit run starts one", request->name());
        GW_ASSIGN_OR_RETURN(*reply, node_.vms().start(request->name()));
        return absl::OkStatus();
      },
      [&](Peer& peer, grpc::ClientContext& call) {
        return api::from_grpc(peer.user->StartVm(&call, *request, reply));
      }));
}

// Until the guest's end or the user's. kAborted: it has moved.
absl::StatusOr<int> ApiService::console_here(grpc::ServerContext& context, const std::string& name,
                                             Session& session, SessionInput& input) {
  GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(name));
  GW_ASSIGN_OR_RETURN(const auto hypervisor, node_.vms().hypervisor());
  GW_ASSIGN_OR_RETURN(const auto console, hypervisor->console(found.record.vm().uuid()));
  // The end of the input is none of the console: the guest may have something to say yet.
  input.give_to([&console](api::ExecInput& next) {
    return !next.has_data() || console->write(next.data()).ok();
  });
  std::atomic<bool> over = false;
  std::thread watching([&] {
    while (!over && !context.IsCancelled()) ::usleep(kCancelSliceUs);
    console->close();
  });
  absl::Status ended = absl::OkStatus();
  for (;;) {
    const auto bytes = console->read();
    ended = bytes.status();
    if (!bytes.ok() || bytes->empty()) break;
    api::ExecOutput output;
    output.set_out(*bytes);
    if (!session.Write(output)) break;
  }
  over = true;
  watching.join();
  input.keep();
  if (context.IsCancelled()) return absl::CancelledError("the user has gone");
  const auto now = node_.records().service(name);
  if (now.ok() && now->record.owner() != node_.config().name)
    return make_error(absl::StatusCode::kAborted, "{} runs on, on {}", name, now->record.owner());
  GW_RETURN_IF_ERROR(ended);
  return 0;
}

grpc::Status PeerService::PrepareVm(grpc::ServerContext*, const api::PrepareVmRequest* request,
                                    api::PrepareVmReply* reply) {
  if (request->dry_run()) return api::to_grpc(judge_vm(node_, *request, *reply));
  const absl::Status recovered = node_.wait_recovered(Deadline::in(kRecoveredWait));
  if (!recovered.ok()) return api::to_grpc(recovered);
  return api::to_grpc(VmReplica::begin(node_, *request, *reply).status());
}

grpc::Status PeerService::SwitchVmOver(grpc::ServerContext*,
                                       const api::SwitchVmOverRequest* request,
                                       api::SwitchVmOverReply* reply) {
  const auto session = node_.vms().session(request->migration_id());
  if (session == nullptr)
    return {grpc::StatusCode::NOT_FOUND, "no such migration is under way here"};
  const absl::Status done = session->switch_over(*request);
  reply->set_committed(done.ok());
  reply->set_error(std::string(message_of(done)));
  return grpc::Status::OK;
}

grpc::Status PeerService::GiveVmFrames(grpc::ServerContext*,
                                       const api::SwitchVmOverRequest* request, api::Empty*) {
  const auto session = node_.vms().session(request->migration_id());
  if (session != nullptr) session->give(*request);
  return grpc::Status::OK;
}

grpc::Status PeerService::AbortVm(grpc::ServerContext*, const api::AbortReplicaRequest* request,
                                  api::Empty*) {
  const auto session = node_.vms().session(request->migration_id());
  return session == nullptr ? grpc::Status::OK : api::to_grpc(session->abort());
}

}  // namespace godwit::node
