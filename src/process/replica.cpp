#include "process/replica.h"

#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/slice.h"
#include "kernel/syscalls.h"
#include "process/replica_context.h"
#include "resource/registry.h"
#include "resource/tcp_socket/tcp_socket.pb.h"
#include "tracee/remote_syscalls.h"

namespace godwit::process {
namespace {

// At which number husks keep the channel while they are built: below the usual soft limit of
// 1024 open files, above what programs use; moved when an image needs it.
constexpr int kChannelNumber = 1000;

}  // namespace

Replica::Replica(ReplicaHost host)
    : host_(std::move(host)), context_(std::make_unique<Context>(*this)) {}

Replica::~Replica() { discard(); }

absl::StatusOr<std::unique_ptr<Replica>> Replica::create(ReplicaHost host) {
  std::unique_ptr<Replica> replica(new Replica(std::move(host)));
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return errno_status(errno, "socketpair(AF_UNIX, SOCK_SEQPACKET)");
  replica->channel_.near.reset(ends[0]);
  replica->channel_far_.reset(ends[1]);
  replica->channel_.husk_number = kChannelNumber;
  // No such file: a kernel without them.
  const auto huge = kernel::read_file("/sys/kernel/mm/transparent_hugepage/enabled");
  replica->huge_pages_ = huge.ok() && huge->find("[never]") == std::string::npos;
  // One kernel, one image: what stands at an offset in our vDSO stands there in a husk's.
  GW_ASSIGN_OR_RETURN(const tracee::VdsoImage vdso, tracee::read_vdso(HostPid{::getpid()}));
  GW_ASSIGN_OR_RETURN(const RemoteAddress instruction, vdso.syscall_instruction());
  replica->vdso_syscall_offset_ = instruction.value - vdso.at.value;
  return replica;
}

const std::string* Replica::wanted(std::string_view kind, uint64_t id) const {
  const auto found = sections_.find(stream::SectionKey{std::string(kind), id});
  return found == sections_.end() ? nullptr : &found->second;
}

absl::Status Replica::apply(const stream::Frame& frame) {
  FAULT_POINT("replica.apply");
  if (!std::holds_alternative<stream::Pages>(frame)) GW_RETURN_IF_ERROR(pages_placed());
  if (const auto* begin = std::get_if<stream::EpochBegin>(&frame)) {
    in_epoch_ = true;
    final_ = begin->final;
    epoch_ = begin->number;
    sections_applied_ = false;
    changed_.clear();
    // The source begins it before its freeze.
    if (final_) hurry();
    return absl::OkStatus();
  }
  if (std::holds_alternative<stream::Preamble>(frame)) return absl::OkStatus();
  if (const auto* section = std::get_if<stream::Section>(&frame)) {
    if (sections_applied_)
      return make_error(absl::StatusCode::kDataLoss, "section {}/{} comes after pages",
                        section->key.kind, section->key.id);
    if (final_ && changed_.empty()) spans_.restart();
    std::string state = section->state;
    const resource::FileKind* kind =
        host_.clone.empty() ? nullptr : resource::find_file_kind(section->key.kind);
    if (kind != nullptr) {
      GW_ASSIGN_OR_RETURN(state, kind->for_clone(section->state, host_.clone));
    }
    sections_[section->key] = std::move(state);
    changed_.insert(section->key);
    return absl::OkStatus();
  }
  if (const auto* removed = std::get_if<stream::SectionRemoved>(&frame)) {
    sections_.erase(removed->key);
    return absl::OkStatus();
  }
  if (const auto* blocks = std::get_if<stream::FileBlocks>(&frame))
    return host_.apply_file_blocks(*blocks);
  if (!sections_applied_) GW_RETURN_IF_ERROR(apply_sections());
  if (std::holds_alternative<stream::StateEnd>(frame)) return absl::OkStatus();
  if (const auto* pages = std::get_if<stream::Pages>(&frame)) {
    // They were received in one long call, and are applied in another.
    if (!final_) kernel::let_others_run();
    GW_RETURN_IF_ERROR(apply_pages(*pages));
    if (!final_) kernel::let_others_run();
    return absl::OkStatus();
  }
  if (const auto* dropped = std::get_if<stream::PagesDropped>(&frame)) return drop_pages(*dropped);
  if (const auto* missing = std::get_if<stream::PagesMissing>(&frame)) return miss_pages(*missing);
  if (const auto* hashes = std::get_if<stream::PageHashes>(&frame)) return compare(*hashes);
  if (std::holds_alternative<stream::HashesEnd>(frame)) return end_comparison();
  GW_RETURN_IF_ERROR(run_drops());
  if (final_) GW_RETURN_IF_ERROR(arm_missing());
  in_epoch_ = false;
  if (!cpus_) cpus_ = std::make_unique<WakefulCpus>();
  if (final_) spans_.mark("pages");
  return absl::OkStatus();
}

absl::Status Replica::apply_sections() {
  FAULT_POINT("replica.apply_sections");
  sections_applied_ = true;
  if (final_) spans_.mark("receive state");
  GW_RETURN_IF_ERROR(read_clock());
  GW_RETURN_IF_ERROR(make_terminals());  // processes are born with them
  GW_RETURN_IF_ERROR(build_tree());
  if (final_) GW_RETURN_IF_ERROR(make_posix_queues());
  // First, because a memfd may be mapped too: one object under both.
  GW_RETURN_IF_ERROR(make_descriptions());
  if (final_) {
    spans_.mark("descriptions");
    start_completing();
  }
  GW_RETURN_IF_ERROR(map_memory());
  if (final_) spans_.mark("memory map");
  GW_RETURN_IF_ERROR(fill_tables());
  if (final_) spans_.mark("descriptor tables");
  GW_RETURN_IF_ERROR(build_threads());
  if (!final_) return learn_tasks();
  GW_RETURN_IF_ERROR(complete_terminals());
  GW_RETURN_IF_ERROR(make_ipc());
  GW_RETURN_IF_ERROR(make_aio());
  GW_RETURN_IF_ERROR(make_rings());
  GW_RETURN_IF_ERROR(restore_tasks());
  spans_.mark("tasks");
  GW_RETURN_IF_ERROR(complete_descriptions());
  spans_.mark("complete descriptions");
  return absl::OkStatus();
}

absl::Status Replica::read_clock() {
  source_clock_ns_ = monotonic_ns();
  const std::string* bytes = wanted("tcp_clock", 0);
  if (!final_ || bytes == nullptr) return absl::OkStatus();
  resource::TcpClockState clock;
  if (!clock.ParseFromString(*bytes) || clock.monotonic_ns() < 0)
    return make_error(absl::StatusCode::kDataLoss, "section tcp_clock is not valid");
  source_clock_ns_ = clock.monotonic_ns();
  return absl::OkStatus();
}

absl::Status Replica::make_ready() {
  FAULT_POINT("replica.make_ready");
  if (!final_ || in_epoch_)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "the replica has no complete final epoch");
  // A duplicate kept here would keep sockets open after the program closes them.
  context_->drop_stash();
  objects_.clear();
  const auto close_duplicates = [this] {
    descriptions_.clear();
    terminals_.clear();
    return absl::OkStatus();
  };
  if (completer_)
    completer_->start(close_duplicates);
  else
    GW_RETURN_IF_ERROR(close_duplicates());
  GW_RETURN_IF_ERROR(restore_last());
  spans_.mark("registers");
  if (completer_) GW_RETURN_IF_ERROR(completer_->wait());
  spans_.mark("close duplicates");
  return absl::OkStatus();
}

absl::Status Replica::release() {
  for (auto& [pid, husk] : husks_) GW_RETURN_IF_ERROR(husk.release_from_mover());
  return absl::OkStatus();
}

// SIGKILL takes all tasks of a process out of their stops: one of them tells.
absl::Status Replica::check_whole() {
  for (auto& [pid, husk] : husks_) GW_RETURN_IF_ERROR(husk.leader().set_options(0));
  return absl::OkStatus();
}

absl::Status Replica::activate() {
  absl::Status first;
  for (auto& [pid, husk] : husks_) first.Update(std::move(husk).detach());
  husks_.clear();
  return first;
}

void Replica::rest() {
  hurry_.reset();
  cpus_.reset();
}

// The program's own priority is set by the resource `scheduling`, which comes last.
void Replica::hurry() {
  hurry_ = std::make_unique<Hurry>(cpus_ != nullptr);
  if (completer_) completer_->keep_off(hurry_->cpu);
  for (auto& [pid, husk] : husks_)
    for (const HuskTask& task : husk.tasks()) go_first(task.task.tid().value);
}

void Replica::discard() {
  rest();
  // Children first would matter to nobody: all die by SIGKILL, and init reaps or dies as well.
  for (auto& [pid, husk] : husks_) (void)husk.kill();
  husks_.clear();
  if (completer_) completer_->wait().IgnoreError();
  compared_.clear();
  descriptions_.clear();
  terminals_.clear();
  objects_.clear();
}

ReplicaCounts Replica::counts() const {
  ReplicaCounts counts;
  counts.processes = static_cast<uint32_t>(husks_.size());
  for (const auto& [pid, husk] : husks_)
    counts.threads += static_cast<uint32_t>(husk.tasks().size());
  counts.descriptions = static_cast<uint32_t>(descriptions_.size());
  return counts;
}

}  // namespace godwit::process
