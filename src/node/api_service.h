// The calls of api/godwit.proto as a node answers them. A call about a service that runs on another
// node is passed on to there, once: a call that has been passed on and does not find its service
// either says so.
#ifndef GODWIT_NODE_API_SERVICE_H_
#define GODWIT_NODE_API_SERVICE_H_

#include <functional>
#include <memory>
#include <string>

#include "api/godwit.grpc.pb.h"
#include "api/store_service.h"
#include "node/node.h"
#include "node/session_input.h"

namespace godwit::node {

class SourceMigration;

// How often a call follows a service that moves on before it comes to it.
constexpr int kMostMoves = 5;
absl::Status keeps_moving(const std::string& service);

class ApiService final : public api::Godwit::Service {
 public:
  explicit ApiService(Node& node) : node_(node) {}

  grpc::Status Run(grpc::ServerContext*, const api::RunRequest*, api::RunReply*) override;
  grpc::Status List(grpc::ServerContext*, const api::ListRequest*, api::ListReply*) override;
  grpc::Status Inspect(grpc::ServerContext*, const api::InspectRequest*, api::Service*) override;
  grpc::Status Logs(grpc::ServerContext*, const api::LogsRequest*,
                    grpc::ServerWriter<api::LogsChunk>*) override;
  using Session = grpc::ServerReaderWriter<api::ExecOutput, api::ExecInput>;
  grpc::Status Exec(grpc::ServerContext*, Session*) override;
  grpc::Status Attach(grpc::ServerContext*, Session*) override;
  grpc::Status Signal(grpc::ServerContext*, const api::SignalRequest*, api::Empty*) override;
  grpc::Status Stop(grpc::ServerContext*, const api::StopRequest*, api::StopReply*) override;
  grpc::Status Remove(grpc::ServerContext*, const api::RemoveRequest*, api::Empty*) override;
  grpc::Status Wait(grpc::ServerContext*, const api::WaitRequest*, api::WaitReply*) override;
  using Moves = grpc::ServerWriter<api::MigrateEvent>;
  grpc::Status Migrate(grpc::ServerContext*, const api::MigrateRequest*, Moves*) override;
  grpc::Status CancelMigration(grpc::ServerContext*, const api::InspectRequest*,
                               api::Empty*) override;
  grpc::Status ResumeMigration(grpc::ServerContext*, const api::ResumeRequest*, Moves*) override;
  grpc::Status Checkpoint(grpc::ServerContext*, const api::CheckpointRequest*, Moves*) override;
  grpc::Status Restore(grpc::ServerContext*, const api::RestoreRequest*, Moves*) override;
  grpc::Status Clone(grpc::ServerContext*, const api::CloneRequest*, Moves*) override;
  grpc::Status AddVm(grpc::ServerContext*, const api::AddVmRequest*, api::Service*) override;
  grpc::Status StartVm(grpc::ServerContext*, const api::InspectRequest*, api::Service*) override;
  grpc::Status Nodes(grpc::ServerContext*, const api::Empty*, api::NodesReply*) override;

 private:
  // What a call is for.
  enum Workloads { kServicesOnly, kAlsoVms };
  // The node that has the service, null: this one, which has recovered.
  absl::StatusOr<std::shared_ptr<Peer>> locate(const grpc::ServerContext& context,
                                               const std::string& service,
                                               Workloads workloads = kServicesOnly);
  // The named node, null: this one, which has recovered.
  absl::StatusOr<std::shared_ptr<Peer>> other_node(const std::string& name);

  // Does `here` while nobody else changes the service, or passes the call on. A move that is under
  // way is waited for, and followed.
  absl::Status on_service(grpc::ServerContext& context, const std::string& service,
                          const std::string& doing, Workloads workloads,
                          const std::function<absl::Status()>& here,
                          const std::function<absl::Status(Peer&, grpc::ClientContext&)>& there);
  // The same of calls that move the service themselves: one that has just moved on is followed.
  using MovesThere = grpc::ClientReader<api::MigrateEvent>;
  grpc::Status at_its_node(
      grpc::ServerContext& context, const std::string& service, Workloads workloads, Moves& out,
      const std::function<absl::StatusOr<api::MigrateResult>(SourceMigration&)>& here,
      const std::function<std::unique_ptr<MovesThere>(Peer&, grpc::ClientContext*)>& there);
  absl::Status run_here(const api::RunRequest& request, api::RunReply& reply);
  absl::Status stop_here(const api::StopRequest& request, api::StopReply& reply);
  absl::Status remove_here(const api::RemoveRequest& request);
  absl::Status logs_here(grpc::ServerContext& context, api::LogsRequest& request,
                         grpc::ServerWriter<api::LogsChunk>& out, bool& goes_on_elsewhere);
  // The exit code. Until the program has ended.
  absl::StatusOr<int> exec_here(grpc::ServerContext& context, const api::ExecStart& start,
                                Session& session, SessionInput& input);
  // kAborted: the service has moved.
  absl::StatusOr<int> attach_here(grpc::ServerContext& context, const api::ExecStart& start,
                                  Session& session, SessionInput& input);
  // The same of a virtual machine's serial console.
  absl::StatusOr<int> console_here(grpc::ServerContext& context, const std::string& name,
                                   Session& session, SessionInput& input);

  Node& node_;
};

class PeerService final : public api::StoreService {
 public:
  explicit PeerService(Node& node) : StoreService(node.local_store()), node_(node) {}
  grpc::Status PrepareReplica(grpc::ServerContext*, const api::PrepareReplicaRequest*,
                              api::PrepareReplicaReply*) override;
  grpc::Status AbortReplica(grpc::ServerContext*, const api::AbortReplicaRequest*,
                            grpc::ServerWriter<api::ReturnedFrames>*) override;
  grpc::Status ServePages(grpc::ServerContext*, const api::ServePagesRequest*,
                          api::Empty*) override;
  grpc::Status PutLog(grpc::ServerContext*, grpc::ServerReader<api::LogPart>*,
                      api::Empty*) override;
  grpc::Status Probe(grpc::ServerContext*, const api::ProbeRequest*, api::Empty*) override;
  grpc::Status Ping(grpc::ServerContext*, const api::Empty*, api::Node*) override;
  grpc::Status PrepareVm(grpc::ServerContext*, const api::PrepareVmRequest*,
                         api::PrepareVmReply*) override;
  grpc::Status SwitchVmOver(grpc::ServerContext*, const api::SwitchVmOverRequest*,
                            api::SwitchVmOverReply*) override;
  grpc::Status GiveVmFrames(grpc::ServerContext*, const api::SwitchVmOverRequest*,
                            api::Empty*) override;
  grpc::Status AbortVm(grpc::ServerContext*, const api::AbortReplicaRequest*, api::Empty*) override;

 private:
  Node& node_;
};

// A call of ours on behalf of one that we got: its deadline and cancellation, marked as passed on.
std::unique_ptr<grpc::ClientContext> pass_on(const grpc::ServerContext& context);
// By another node.
bool was_passed_on(const grpc::ServerContext& context);
absl::Status unreachable(const absl::Status& status, const Peer& peer);

}  // namespace godwit::node

#endif  // GODWIT_NODE_API_SERVICE_H_
