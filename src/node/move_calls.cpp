// Calls that move services, and what nodes ask each other for it.
#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include "api/rpc_status.h"
#include "api/transport.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "node/api_service.h"
#include "node/log_carrier.h"
#include "node/replica_session.h"
#include "node/restore.h"
#include "node/source_migration.h"
#include "node/vm_checkpoint.h"
#include "node/vm_image.h"
#include "node/vm_restore.h"
#include "node/vm_source.h"
#include "node/vms.h"

namespace godwit::node {
namespace {

// Less than the source waits for the answer.
constexpr absl::Duration kRecoveredWait = absl::Seconds(20);

SourceMigration::OnProgress to_stream(ApiService::Moves& out) {
  return [&out](const api::MigrateProgress& progress) {
    api::MigrateEvent event;
    *event.mutable_progress() = progress;
    // A user who has gone is noticed as a cancelled call.
    out.Write(event);
  };
}

grpc::Status send_result(const absl::StatusOr<api::MigrateResult>& result, ApiService::Moves& out) {
  if (!result.ok()) return api::to_grpc(result.status());
  api::MigrateEvent event;
  *event.mutable_result() = *result;
  out.Write(event);
  return grpc::Status::OK;
}

grpc::Status relay(grpc::ClientReader<api::MigrateEvent>& there, ApiService::Moves& out,
                   const Peer& peer) {
  api::MigrateEvent event;
  while (there.Read(&event)) out.Write(event);
  return api::to_grpc(unreachable(api::from_grpc(there.Finish()), peer));
}

absl::Status judge(const Node& node, const api::PrepareReplicaRequest& request,
                   api::PrepareReplicaReply& reply) {
  GW_ASSIGN_OR_RETURN(const MachineFacts* facts, node.machine_facts());
  GW_RETURN_IF_ERROR(
      judge_needs(*facts, node.services().paths(), node.config().name, request, reply));
  const auto differs = judge_data_tls(node.config().name, node.config().data_tls, request.source(),
                                      request.data_tls());
  if (differs) *reply.add_refusals() = to_refusal(*differs);
  return absl::OkStatus();
}

}  // namespace

grpc::Status ApiService::at_its_node(
    grpc::ServerContext& context, const std::string& service, Workloads workloads, Moves& out,
    const std::function<absl::StatusOr<api::MigrateResult>(SourceMigration&)>& here,
    const std::function<std::unique_ptr<MovesThere>(Peer&, grpc::ClientContext*)>& there) {
  for (int moves = 0; moves < kMostMoves; ++moves) {
    const auto peer = locate(context, service, workloads);
    if (!peer.ok()) return api::to_grpc(peer.status());
    if (*peer == nullptr) {
      SourceMigration migration(node_, to_stream(out),
                                [&context] { return context.IsCancelled(); });
      const auto result = here(migration);
      if (!absl::IsAborted(result.status())) return send_result(result, out);
    } else {
      const auto call = pass_on(context);
      const grpc::Status result = relay(*there(**peer, call.get()), out, **peer);
      if (result.error_code() != grpc::StatusCode::ABORTED) return result;
    }
  }
  return api::to_grpc(keeps_moving(service));
}

grpc::Status ApiService::Migrate(grpc::ServerContext* context, const api::MigrateRequest* request,
                                 Moves* out) {
  return at_its_node(
      *context, request->name(), kAlsoVms, *out,
      [&](SourceMigration& migration) -> absl::StatusOr<api::MigrateResult> {
        GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(request->name()));
        if (!found.record.has_vm()) return migration.migrate(*request);
        VmMigration vm(node_, to_stream(*out), [context] { return context->IsCancelled(); });
        return vm.migrate(*request);
      },
      [&](Peer& peer, auto* call) { return peer.user->Migrate(call, *request); });
}

grpc::Status ApiService::CancelMigration(grpc::ServerContext* context,
                                         const api::InspectRequest* request, api::Empty* reply) {
  const auto peer = locate(*context, request->name(), kAlsoVms);
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer != nullptr) {
    const auto call = pass_on(*context);
    return (*peer)->user->CancelMigration(call.get(), *request, reply);
  }
  if (node_.cancel_outgoing(request->name())) return grpc::Status::OK;
  return api::to_grpc(make_error(absl::StatusCode::kFailedPrecondition,
                                 "service {} is not on the move", request->name()));
}

grpc::Status ApiService::ResumeMigration(grpc::ServerContext* context,
                                         const api::ResumeRequest* request, Moves* out) {
  const auto peer = locate(*context, request->name(), kAlsoVms);
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer != nullptr) {
    const auto call = pass_on(*context);
    return relay(*(*peer)->user->ResumeMigration(call.get(), *request), *out, **peer);
  }
  const auto found = node_.records().service(request->name());
  if (!found.ok()) return api::to_grpc(found.status());
  if (found->record.has_vm() && request->source_lost())
    return api::to_grpc(make_error(absl::StatusCode::kInvalidArgument,
                                   "{} is a virtual machine, which ends without the memory that it "
                                   "lacks: godwit rm --force {}",
                                   request->name(), request->name()));
  if (found->record.has_vm())
    return send_result(node_.vms().follow_pages(request->name(), to_stream(*out),
                                                [context] { return context->IsCancelled(); }),
                       *out);
  return send_result(
      node_.post_copy().resume(request->name(), request->source_lost(), to_stream(*out),
                               [context] { return context->IsCancelled(); }),
      *out);
}

grpc::Status ApiService::Checkpoint(grpc::ServerContext* context,
                                    const api::CheckpointRequest* request, Moves* out) {
  return at_its_node(
      *context, request->name(), kAlsoVms, *out,
      [&](SourceMigration& migration) -> absl::StatusOr<api::MigrateResult> {
        GW_ASSIGN_OR_RETURN(const VersionedService found, node_.records().service(request->name()));
        if (!found.record.has_vm()) return migration.checkpoint(*request);
        VmCheckpoint vm(node_, to_stream(*out), [context] { return context->IsCancelled(); });
        return vm.save(*request);
      },
      [&](Peer& peer, auto* call) { return peer.user->Checkpoint(call, *request); });
}

grpc::Status ApiService::Clone(grpc::ServerContext* context, const api::CloneRequest* request,
                               Moves* out) {
  return at_its_node(
      *context, request->name(), kServicesOnly, *out,
      [&](SourceMigration& migration) { return migration.clone(*request); },
      [&](Peer& peer, auto* call) { return peer.user->Clone(call, *request); });
}

grpc::Status ApiService::Restore(grpc::ServerContext* context, const api::RestoreRequest* request,
                                 Moves* out) {
  const auto peer = other_node(request->node());
  if (!peer.ok()) return api::to_grpc(peer.status());
  if (*peer != nullptr) {
    const auto call = pass_on(*context);
    return relay(*(*peer)->user->Restore(call.get(), *request), *out, **peer);
  }
  const auto cancelled = [context] { return context->IsCancelled(); };
  return send_result(is_vm_image(request->file(), request->key_file())
                         ? VmRestore(node_, to_stream(*out), cancelled).restore(*request)
                         : restore(node_, *request, to_stream(*out), cancelled),
                     *out);
}

grpc::Status PeerService::PrepareReplica(grpc::ServerContext*,
                                         const api::PrepareReplicaRequest* request,
                                         api::PrepareReplicaReply* reply) {
  if (request->dry_run()) {
    capsule::CapsuleSpec spec;
    if (!spec.ParseFromString(request->spec()))
      return {grpc::StatusCode::INVALID_ARGUMENT, "the service's spec does not parse"};
    const absl::Status fit = check_destination(node_, spec);
    if (!fit.ok()) return api::to_grpc(fit);
    absl::Status looked = judge(node_, *request, *reply);
    looked.Update(compare_files(node_.services().paths(), spec, *request, *reply));
    return api::to_grpc(looked);
  }
  const absl::Status recovered = node_.wait_recovered(Deadline::in(kRecoveredWait));
  if (!recovered.ok()) return api::to_grpc(recovered);
  api::PrepareReplicaReply judged;
  const absl::Status fit = judge(node_, *request, judged);
  if (!fit.ok()) return api::to_grpc(fit);
  if (judged.refusals_size() > 0) {
    *reply = std::move(judged);
    return grpc::Status::OK;
  }
  const auto session = ReplicaSession::begin(node_, *request);
  if (session.ok()) *reply = (*session)->reply();
  reply->set_machine(judged.machine());
  return api::to_grpc(session.status());
}

grpc::Status PeerService::AbortReplica(grpc::ServerContext*,
                                       const api::AbortReplicaRequest* request,
                                       grpc::ServerWriter<api::ReturnedFrames>* out) {
  const auto session = node_.session(request->migration_id());
  if (session == nullptr)
    return {grpc::StatusCode::NOT_FOUND, "no such migration is under way here"};
  return api::to_grpc(session->give_back([out](const network::Frames& frames) {
    constexpr size_t kMessage = size_t{1} << 20;  // gRPC takes 4 MiB
    size_t at = 0;
    api::ReturnedFrames message;
    size_t bytes = 0;
    for (const uint32_t size : frames.sizes) {
      message.add_frame(frames.bytes.substr(at, size));
      at += size;
      bytes += size;
      if (bytes < kMessage) continue;
      out->Write(message);
      message.Clear();
      bytes = 0;
    }
    if (message.frame_size() > 0) out->Write(message);
  }));
}

grpc::Status PeerService::ServePages(grpc::ServerContext* context,
                                     const api::ServePagesRequest* request, api::Empty*) {
  const absl::Status recovered = node_.wait_recovered(Deadline::in(kRecoveredWait));
  if (!recovered.ok()) return api::to_grpc(recovered);
  return api::to_grpc(node_.post_copy().serve(*request, api::node_of(*context)));
}

grpc::Status PeerService::PutLog(grpc::ServerContext*, grpc::ServerReader<api::LogPart>* parts,
                                 api::Empty*) {
  return api::to_grpc(receive_log(node_.services(), *parts));
}

grpc::Status PeerService::Probe(grpc::ServerContext*, const api::ProbeRequest*, api::Empty*) {
  return grpc::Status::OK;
}

grpc::Status PeerService::Ping(grpc::ServerContext*, const api::Empty*, api::Node* reply) {
  *reply = node_.describe_self();
  return grpc::Status::OK;
}

}  // namespace godwit::node
