#include "node/workload_replica.h"

#include <ctime>

#include "base/log.h"
#include "base/status.h"
#include "node/file_sections.h"
#include "node/neighbours.h"

namespace godwit::node {
namespace {

network::Frames frames_of(const std::vector<std::string>& list) {
  network::Frames frames;
  for (const std::string& frame : list) frames.append(frame);
  return frames;
}

absl::Status say_killed(const absl::Status& status) {
  if (errno_of(status) != ESRCH) return status;
  return annotate(status,
                  "a process of the replica was killed, perhaps for want of memory on this node "
                  "(see its kernel's log)");
}

}  // namespace

ServiceReplica::~ServiceReplica() = default;

absl::StatusOr<std::unique_ptr<ServiceReplica>> ServiceReplica::open(
    const capsule::NodePaths& node, const std::string& service, resource::CloneAddresses clone) {
  GW_ASSIGN_OR_RETURN(capsule::Capsule opened, capsule::Capsule::open(node, service));
  std::unique_ptr<ServiceReplica> self(new ServiceReplica(std::move(opened)));
  capsule::Capsule& capsule = self->capsule_;
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  const HostPid init{info.init_pid()};
  GW_ASSIGN_OR_RETURN(self->stdio_, capsule.stdio());
  GW_ASSIGN_OR_RETURN(self->thread_, capsule::CapsuleThread::start(init));
  GW_ASSIGN_OR_RETURN(capsule::LayerTarget layer, capsule::LayerTarget::merged(init));
  self->layer_.emplace(std::move(layer));
  GW_ASSIGN_OR_RETURN(
      capsule::CapsuleFiles files,
      capsule::CapsuleFiles::open(capsule.spec(), capsule.paths(), init, file_hashes(node)));
  self->files_.emplace(std::move(files));
  GW_ASSIGN_OR_RETURN(OpenedPort port, open_port(node.state_dir, capsule.spec(), init));
  self->port_.emplace(std::move(port));
  GW_RETURN_IF_ERROR(self->port_->port.prepare_hold());
  GW_RETURN_IF_ERROR(self->port_->port.prepare_announce());
  GW_RETURN_IF_ERROR(self->port_->port.set_phase(network::PortPhase::kDestinationPrepared));

  process::ReplicaHost host;
  host.init = init;
  host.clone = std::move(clone);
  host.spawn_husk = [&capsule](ImagePid pid, int socket, int number) {
    return capsule.spawn_husk(pid, socket, number);
  };
  host.in_capsule = [thread = self->thread_.get()](absl::FunctionRef<absl::Status()> action) {
    return thread->run(action);
  };
  for (size_t i = 0; i < 3; ++i) host.stdio.at(i) = self->stdio_.pipe.at(i).get();
  host.take_terminal = [&capsule](int master) { return capsule.set_terminal(master); };
  host.apply_file_blocks = [&target = *self->layer_](const stream::FileBlocks& blocks) {
    return target.apply(blocks.state, blocks.data);
  };
  GW_ASSIGN_OR_RETURN(self->replica_, process::Replica::create(std::move(host)));
  return self;
}

absl::Status ServiceReplica::apply(const stream::Frame& frame) {
  GW_RETURN_IF_ERROR(files_->see(frame));
  if (const auto* section = std::get_if<stream::Section>(&frame);
      section != nullptr && section->key.kind == kNeighbourSection)
    GW_RETURN_IF_ERROR(give_neighbours(port_->port, section->state));
  return say_killed(replica_->apply(frame));
}

// Beside the commit: the frames go through the whole network of this node in one call.
absl::Status ServiceReplica::announce() {
  replica_->keep_off_our_cpu(announcer_);
  announcer_.start(
      [this] { return port_->port.set_phase(network::PortPhase::kDestinationFrozen); });
  return absl::OkStatus();
}

void ServiceReplica::expect_pages() {
  // Without it the freeze takes longer.
  const absl::Status told = capsule_.expect_pages();
  if (!told.ok()) log_warning("pages that follow: {}", message_of(told));
}

absl::StatusOr<std::vector<migration::ReplicaWorkload::Needed>> ServiceReplica::needed_first() {
  GW_ASSIGN_OR_RETURN(const auto all, replica_->needed_first());
  std::vector<Needed> needed;
  for (const auto& [space, pages] : all) needed.push_back({space, pages.runs()});
  return needed;
}

// By the shim, which is there as long as the service is.
absl::Status ServiceReplica::fetch_pages(migration::ChannelPtr faults, migration::ChannelPtr push,
                                         absl::Duration patience) {
  GW_RETURN_IF_ERROR(capsule_.post_copy(replica_->take_missing()));
  return capsule_.connect_pages(std::move(faults), std::move(push), patience);
}

absl::Status ServiceReplica::make_ready() {
  GW_RETURN_IF_ERROR(replica_->make_ready());
  // Held by the cgroup from here on: our death neither ends it nor lets it run.
  GW_RETURN_IF_ERROR(capsule_.request_freeze());
  GW_RETURN_IF_ERROR(replica_->release());
  replica_->spans().mark("hold");
  return absl::OkStatus();
}

absl::Status ServiceReplica::check_whole() { return say_killed(replica_->check_whole()); }

absl::Status ServiceReplica::activate() {
  replica_->spans().mark("commit");
  const absl::Status announced = announcer_.wait();
  if (!announced.ok()) log_warning("announcing the replica: {}", message_of(announced));
  GW_RETURN_IF_ERROR(port_->port.set_phase(network::PortPhase::kDestinationCommitted));
  // In this order each task wakes once: those in a ptrace stop do not notice the freezer.
  GW_RETURN_IF_ERROR(capsule_.thaw());
  replica_->spans().mark("thaw");
  GW_RETURN_IF_ERROR(replica_->activate());
  replica_->spans().mark("detach");
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> ServiceReplica::open(const std::vector<std::string>& from_source) {
  network::Port& port = port_->port;
  GW_RETURN_IF_ERROR(port.inject(frames_of(from_source)));
  GW_ASSIGN_OR_RETURN(const network::Replay replay, port.replay_and_open());
  replica_->spans().mark("replay and open");
  // It has what to do, and may be queued on this very CPU: a yield would only be to our own
  // session.
  replica_->rest();
  const timespec moment{.tv_sec = 0, .tv_nsec = 1'000};
  ::nanosleep(&moment, nullptr);
  return static_cast<uint32_t>(from_source.size() + replay.frames);
}

absl::Status ServiceReplica::settle() {
  capsule::CapsuleInfo source;
  const std::string* bytes = replica_->capsule_section();
  if (bytes != nullptr && !source.ParseFromString(*bytes))
    return make_error(absl::StatusCode::kDataLoss, "the capsule section is not valid");
  // 0 where the main process had ended before the move.
  GW_RETURN_IF_ERROR(capsule_.set_main_pid({source.main_pid() != 0 ? source.main_image_pid() : 0}));
  GW_RETURN_IF_ERROR(capsule_.adopt());
  // The gate is open: nothing needs it any more.
  return port_->port.release_hold();
}

absl::Status ServiceReplica::deliver(const std::vector<std::string>& frames) {
  return port_->port.inject(frames_of(frames));
}

void ServiceReplica::discard() {
  // Whatever its sockets' ends would say, neighbours look for it at the source from here on.
  announcer_.wait().IgnoreError();
  port_->port.gate().set_from(network::GateMode::kDrop);
  replica_->discard();
}

// Detached; the cgroup holds what has not been thawed.
void ServiceReplica::leave() { replica_->activate().IgnoreError(); }

void ServiceReplica::describe(migration::Statistics& statistics) {
  for (const process::Spans::Span& span : replica_->spans().list()) {
    migration::Span* one = statistics.add_spans();
    one->set_name("destination: " + span.name);
    one->set_ns(span.ns);
  }
}

}  // namespace godwit::node
