#include "node/workload_source.h"

#include <algorithm>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "base/utf8.h"
#include "node/file_sections.h"
#include "node/lazy_image.h"
#include "node/neighbours.h"
#include "node/restore.h"
#include "node/services.h"
#include "pages/page_source.h"

namespace godwit::node {
namespace {

std::vector<capsule::FileUse> uses_of(std::vector<process::FileInUse> files) {
  std::vector<capsule::FileUse> uses;
  uses.reserve(files.size());
  for (process::FileInUse& file : files)
    uses.push_back(
        {std::move(file.path), file.mapped, std::move(file.object), file.device, file.inode});
  return uses;
}

migration::RoundFigures figures_of(const process::RoundResult& result) {
  return migration::RoundFigures{.pages = result.pages,
                                 .zero_pages = result.zero_pages,
                                 .bytes = result.bytes + result.saved,
                                 .duration_ns = result.total_ns,
                                 .lead_ns = result.lead_ns,
                                 .wire_bytes = result.bytes,
                                 .hot_pages = result.classes.hot,
                                 .warm_pages = result.classes.warm,
                                 .cold_pages = result.classes.cold,
                                 .written_pages = result.classes.written};
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServiceSource>> ServiceSource::open(
    const capsule::NodePaths& node, const std::string& service, uint64_t bytes_per_s,
    const std::string& bandwidth_file) {
  GW_ASSIGN_OR_RETURN(capsule::Capsule opened, capsule::Capsule::open(node, service));
  std::unique_ptr<ServiceSource> self(new ServiceSource(std::move(opened)));
  capsule::Capsule& capsule = self->capsule_;
  GW_ASSIGN_OR_RETURN(const capsule::CapsuleInfo info, capsule.info());
  if (info.state() != capsule::CAPSULE_RUNNING)
    return make_error(absl::StatusCode::kFailedPrecondition, "service {} is not running", service);
  self->limit_name_ = cpu_limit_name(node, service);
  const HostPid init{info.init_pid()};
  GW_ASSIGN_OR_RETURN(self->thread_, capsule::CapsuleThread::start(init));
  GW_ASSIGN_OR_RETURN(OpenedPort port, open_port(node.state_dir, capsule.spec(), init));
  self->port_.emplace(std::move(port));

  process::SourceHost host;
  host.init = init;
  host.members = [&capsule] { return capsule.work_pids(); };
  host.hold = [&capsule] { return capsule.request_freeze(); };
  host.release = [source = self.get()] { return source->release(); };
  host.look_at_files = [&layer = self->layer_] { return layer.look(); };
  host.in_capsule = [thread = self->thread_.get()](absl::FunctionRef<absl::Status()> action) {
    return thread->run(action);
  };
  host.options_changed = [source = self.get()](uint64_t netns, uint16_t local, uint16_t remote) {
    return source->options_changed(netns, local, remote);
  };
  for (int i = 0; i < 3 && i < info.stdio_inode_size(); ++i)
    host.stdio_inodes.at(static_cast<size_t>(i)) = info.stdio_inode(i);
  GW_ASSIGN_OR_RETURN(self->stdio_, capsule.stdio());
  host.terminal = self->stdio_.terminal.get();
  host.tracks = [source = self.get()](HostPid pid, int fd) { source->on_uffd_(pid, fd); };
  GW_ASSIGN_OR_RETURN(self->source_, process::Source::create(std::move(host)));
  GW_ASSIGN_OR_RETURN(
      capsule::CapsuleFiles files,
      capsule::CapsuleFiles::open(capsule.spec(), capsule.paths(), init, file_hashes(node)));
  self->files_.emplace(std::move(files));
  self->files_->files().hashes().stop_when(
      [control = &self->source_->control()] { return control->cancelled(); });
  self->source_->set_capsule_section(info.SerializeAsString());
  self->bytes_per_s_ = bytes_per_s;
  self->source_->control().set_bytes_per_second(bytes_per_s);
  self->bandwidth_file_ = bandwidth_file;
  if (!bandwidth_file.empty()) {
    GW_ASSIGN_OR_RETURN(auto share, pages::LinkShare::join(bandwidth_file));
    self->source_->control().share(std::move(share));
  }
  return self;
}

void ServiceSource::carry_spec() {
  capsule::CapsuleSpec spec = portable_spec(capsule_.spec());
  spec.set_name(std::string(capsule::service_of(spec.name())));
  source_->set_section(kCapsuleSection, spec.SerializeAsString());
}

absl::Status ServiceSource::precheck(std::vector<migration::Reason>& reasons) {
  std::vector<resource::Refusal> refusals;
  GW_RETURN_IF_ERROR(source_->precheck(refusals));
  for (resource::Refusal& refusal : refusals) {
    migration::Reason& reason = reasons.emplace_back();
    reason.set_code(std::move(refusal.code));
    reason.set_object(escape_non_utf8(refusal.object));
    reason.set_reason(escape_non_utf8(refusal.reason));
    reason.set_way_out(std::move(refusal.way_out));
  }
  return may_throttle_ ? find_cpu_limit(reasons) : absl::OkStatus();
}

absl::Status ServiceSource::find_cpu_limit(std::vector<migration::Reason>& reasons) {
  auto limit = capsule::CpuLimit::find(capsule_.work(), limit_name_);
  if (absl::IsFailedPrecondition(limit.status())) {
    migration::Reason& reason = reasons.emplace_back();
    reason.set_code("cpu.throttle");
    reason.set_object("the service's CPU time");
    reason.set_reason("cannot be limited: " + std::string(message_of(limit.status())));
    reason.set_way_out("mount that controller, or move it without --throttle");
    return absl::OkStatus();
  }
  GW_RETURN_IF_ERROR(limit.status());
  cpu_limit_ = *std::move(limit);
  return absl::OkStatus();
}

// Of what it used since the last round began, the first time; from then on it is limited.
absl::Status ServiceSource::throttle(uint32_t percent) {
  if (percent == 0) return lift_throttle();
  if (!cpu_limit_) return absl::FailedPreconditionError("throttling was not prepared");
  if (cpus_ == 0) {
    GW_ASSIGN_OR_RETURN(const int64_t used, cpu_limit_->used_ns());
    cpus_ = static_cast<double>(std::max<int64_t>(0, used - used_then_ns_)) /
            static_cast<double>(std::max<int64_t>(1, monotonic_ns() - round_began_ns_));
  }
  return annotate(cpu_limit_->set(cpus_ * percent / 100), "limiting its CPU time");
}

absl::Status ServiceSource::lift_throttle() {
  if (!cpu_limit_ || cpus_ == 0) return absl::OkStatus();
  GW_RETURN_IF_ERROR(annotate(cpu_limit_->lift(), "lifting the limit of its CPU time"));
  cpus_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ServiceSource::used_files() {
  std::vector<std::string> states;
  capsule::FileSink sink;
  sink.section = [&](uint64_t, std::string_view state) {
    states.emplace_back(state);
    return absl::OkStatus();
  };
  sink.removed = [](uint64_t) { return absl::OkStatus(); };
  GW_RETURN_IF_ERROR(files_->update(uses_of(source_->files_in_use()), false, sink).status());
  const absl::Status saved = files_->files().hashes().save();
  if (!saved.ok()) log_warning("hashes of files: {}", message_of(saved));
  return states;
}

absl::StatusOr<migration::Estimate> ServiceSource::estimate() {
  GW_ASSIGN_OR_RETURN(const process::MemoryEstimate estimate, source_->estimate());
  memory_bytes_ = estimate.resident_pages * pages::kPageSize;
  return migration::Estimate{estimate.resident_pages, estimate.zero_pages};
}

// Without it every option is read in the freeze.
absl::Status ServiceSource::watch_options() {
  UniqueFd socket;
  GW_RETURN_IF_ERROR(thread_->run([&]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(socket, network::OptionWatch::fresh_socket());
    return absl::OkStatus();
  }));
  GW_ASSIGN_OR_RETURN(options_, network::OptionWatch::begin(std::move(socket)));
  return absl::OkStatus();
}

// Once in a freeze it is asked whether sysctls are as they were: nothing runs that would write one.
// And once in a round, whose finding the freeze makes good.
bool ServiceSource::options_changed(uint64_t netns, uint16_t local_port, uint16_t remote_port) {
  if (!options_ || options_->netns_cookie() != netns) return true;
  if (defaults_ == Defaults::kUnknown)
    defaults_ = options_->defaults_changed() ? Defaults::kChanged : Defaults::kSame;
  return defaults_ == Defaults::kChanged || options_->changed(local_port, remote_port);
}

absl::Status ServiceSource::prepare() {
  const absl::Status watched = watch_options();
  if (!watched.ok())
    log_info("all socket options will be read in the freeze: {}", message_of(watched));
  network::Port& port = port_->port;
  GW_RETURN_IF_ERROR(port.prepare_hold());
  on_hold_(port.hold_fd());
  GW_RETURN_IF_ERROR(port.prepare_announce());
  announces_ = true;
  GW_RETURN_IF_ERROR(source_->start_tracking());
  return files_->warm(uses_of(source_->files_in_use()));
}

absl::Status ServiceSource::send_layer(stream::Writer& writer, bool frozen) {
  return layer_
      .send_changes(frozen,
                    [&](std::string_view state, std::span<const std::byte> data) {
                      return writer.file_blocks(state, data);
                    })
      .status();
}

absl::Status ServiceSource::send_files(stream::Writer& writer, bool frozen) {
  FAULT_POINT("source.send_files");
  capsule::FileSink sink;
  sink.section = [&](uint64_t id, std::string_view state) {
    return writer.section({kFileSection, id}, state);
  };
  sink.removed = [&](uint64_t id) { return writer.section_removed({kFileSection, id}); };
  sink.blocks = [&](std::string_view state, std::span<const std::byte> data) -> absl::Status {
    if (!frozen) GW_RETURN_IF_ERROR(source_->control().admit(data.size()));
    return writer.file_blocks(state, data);
  };
  const std::vector<capsule::FileUse> uses = uses_of(source_->files_in_use());
  GW_ASSIGN_OR_RETURN(const std::vector<uint64_t> told, files_->update(uses, frozen, sink));
  std::vector<capsule::WantedFile> wanted;
  if (all_files_) {
    for (const uint64_t id : told) wanted.push_back({id, false});
  } else if (answer_ && !told.empty()) {
    GW_RETURN_IF_ERROR(writer.section({kFileQuestion, 0}, ""));
    GW_RETURN_IF_ERROR(writer.flush());
    GW_ASSIGN_OR_RETURN(const migration::WantedFiles answer, answer_());
    for (const auto& file : answer.files()) wanted.push_back({file.id(), file.in_place()});
  }
  GW_RETURN_IF_ERROR(files_->carry(wanted, sink));
  if (frozen) return absl::OkStatus();
  const absl::Status saved = files_->files().hashes().save();
  if (!saved.ok()) log_warning("hashes of files: {}", message_of(saved));
  return absl::OkStatus();
}

// In rounds only: a cold move's freeze is long anyway.
absl::Status ServiceSource::send_neighbours(stream::Writer& writer) {
  if (!answer_) return absl::OkStatus();  // to a file
  GW_ASSIGN_OR_RETURN(std::string now, neighbours_of(port_->port));
  if (now == neighbours_) return absl::OkStatus();
  neighbours_ = std::move(now);
  return writer.section({kNeighbourSection, 0}, neighbours_);
}

absl::StatusOr<migration::RoundFigures> ServiceSource::round(stream::Writer& writer) {
  return one_round(writer, false);
}

absl::StatusOr<migration::RoundFigures> ServiceSource::leave_behind(stream::Writer& writer) {
  return one_round(writer, true);
}

absl::StatusOr<migration::RoundFigures> ServiceSource::one_round(stream::Writer& writer,
                                                                 bool leave_behind) {
  defaults_ = Defaults::kUnknown;
  if (cpu_limit_) {
    GW_ASSIGN_OR_RETURN(used_then_ns_, cpu_limit_->used_ns());
    round_began_ns_ = monotonic_ns();
  }
  const auto extra = [&]() -> absl::Status {
    GW_RETURN_IF_ERROR(send_neighbours(writer));
    GW_RETURN_IF_ERROR(send_layer(writer, false));
    return send_files(writer, false);
  };
  GW_ASSIGN_OR_RETURN(const process::RoundResult result, leave_behind
                                                             ? source_->leave_behind(writer, extra)
                                                             : source_->round(writer, extra));
  classes_ = result.classes;
  return figures_of(result);
}

absl::Status ServiceSource::freeze() {
  defaults_ = Defaults::kUnknown;
  // Its tasks have to run to say what they are. To move them takes milliseconds, and can wait.
  if (cpu_limit_ && cpus_ != 0) GW_RETURN_IF_ERROR(cpu_limit_->release());
  if (stdio_.terminal || stdio_.pipe[0]) {
    GW_RETURN_IF_ERROR(capsule_.hold_input(true));
    input_held_ = true;
  }
  GW_RETURN_IF_ERROR(source_->freeze());
  GW_RETURN_IF_ERROR(port_->port.set_phase(network::PortPhase::kSourceFrozen));
  source_->control().lift_limits(true);
  const absl::Status captured = source_->capture_descriptions();
  source_->spans().mark("descriptions");
  return captured;
}

absl::Status ServiceSource::final_state(stream::Writer& writer) {
  return source_->final_state(writer, [&]() -> absl::Status {
    GW_RETURN_IF_ERROR(send_layer(writer, true));
    source_->spans().mark("file layer");
    return send_files(writer, true);
  });
}

absl::StatusOr<migration::RoundFigures> ServiceSource::final_pages(stream::Writer& writer) {
  GW_ASSIGN_OR_RETURN(const process::RoundResult result, source_->final_pages(writer));
  return figures_of(result);
}

absl::StatusOr<std::vector<std::string>> ServiceSource::take_held_frames() {
  network::Frames held;
  GW_RETURN_IF_ERROR(port_->port.drain(held).status());
  std::vector<std::string> frames;
  const network::MacAddress own = port_->port.spec().mac;
  size_t at = 0;
  for (const uint32_t size : held.sizes) {
    std::string frame = held.bytes.substr(at, size);
    at += size;
    // The replica's own announcement, which goes to every port.
    if (network::sender_of(frame) == own) continue;
    taken_.append(frame);
    frames.push_back(std::move(frame));
  }
  return frames;
}

absl::Status ServiceSource::release() {
  absl::Status first;
  if (input_held_) first.Update(capsule_.hold_input(false));
  input_held_ = false;
  first.Update(capsule_.thaw());
  return first;
}

absl::Status ServiceSource::thaw() {
  // Before it runs: what it answers at once would be dropped, and sent again only after 200 ms.
  port_->port.gate().set_from(network::GateMode::kPass);
  absl::Status first = source_->thaw();
  if (input_held_) first.Update(release());  // the freeze has failed half-way
  first.Update(lift_throttle());
  source_->control().lift_limits(false);
  if (!taken_.empty()) {
    first.Update(port_->port.inject(taken_));
    taken_.clear();
  }
  // Announces itself and gives it what came meanwhile.
  if (announces_) first.Update(port_->port.set_phase(network::PortPhase::kRolledBack));
  return first;
}

absl::Status ServiceSource::withdraw() {
  options_.reset();
  absl::Status first = lift_throttle();
  first.Update(source_->withdraw());
  first.Update(port_->port.release_hold());
  return first;
}

absl::Status ServiceSource::commit() {
  GW_RETURN_IF_ERROR(port_->port.set_phase(network::PortPhase::kSourceCommitted));
  const absl::Status lifted = lift_throttle();
  if (!lifted.ok()) log_warning("{}", message_of(lifted));  // whoever removes it tries again
  return absl::OkStatus();
}

absl::Status ServiceSource::serve_pages(tls::Channel& faults, tls::Channel& push,
                                        const migration::PagesTold& told) {
  std::vector<pages::ProcessPages::Space> spaces;
  for (const auto& [pid, host] : source_->processes())
    spaces.push_back({static_cast<uint64_t>(pid.value), host});
  pages::Pacer pacer;
  pacer.set_limit(bytes_per_s_);
  if (!bandwidth_file_.empty()) {
    GW_ASSIGN_OR_RETURN(auto share, pages::LinkShare::join(bandwidth_file_));
    pacer.set_share(std::move(share));
  }
  pages::ProcessPages source(spaces);
  return node::serve_pages(source, std::move(pacer), faults, push, told);
}

void ServiceSource::describe(migration::Statistics& statistics) {
  const process::SourceCounts counts = source_->counts();
  statistics.set_processes(counts.processes);
  statistics.set_threads(counts.threads);
  statistics.set_descriptors(counts.descriptors);
  statistics.set_connections(counts.connections);
  const pages::PageCompression& compression = source_->control().compression();
  statistics.set_bytes_pages(compression.bytes());
  statistics.set_bytes_pages_wire(compression.wire_bytes());
  statistics.set_compression(compression.used());
  statistics.set_pages_sent(source_->control().pages_sent);
  statistics.set_pages_zero(source_->control().zero_pages);
  statistics.set_memory_bytes(memory_bytes_);
  statistics.set_pages_cold(classes_.cold);
  statistics.set_pages_warm(classes_.warm);
  statistics.set_pages_hot(classes_.hot);
  statistics.set_first_stop_ns(source_->longest_stop_ns());
  for (const process::Spans::Span& span : source_->spans().list()) {
    migration::Span* one = statistics.add_spans();
    one->set_name("source: " + span.name);
    one->set_ns(span.ns);
  }
}

}  // namespace godwit::node
