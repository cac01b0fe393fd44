#include "process/source.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/proc/stat.h"
#include "kernel/syscalls.h"
#include "process/source_context.h"
#include "resource/registry.h"
#include "resource/shared_object/shared_object.h"
#include "resource/signal_owner/signal_owner.h"
#include "resource/tcp_socket/tcp_socket.h"
#include "resource/unix_socket/unix_socket.h"

namespace godwit::process {
Source::Source(SourceHost host)
    : host_(std::move(host)), context_(std::make_unique<Context>(*this)) {}

Source::~Source() {
  if (scanner_) scanner_->wait().IgnoreError();
  if (settler_) settler_->wait().IgnoreError();
  if (!frozen_.empty() || holding_) (void)thaw();
}

absl::StatusOr<std::unique_ptr<Source>> Source::create(SourceHost host) {
  std::unique_ptr<Source> source(new Source(std::move(host)));
  GW_ASSIGN_OR_RETURN(resource::PidTranslator translate,
                      resource::PidTranslator::of(source->host_.init));
  source->translate_ = std::make_unique<resource::PidTranslator>(std::move(translate));
  GW_RETURN_IF_ERROR(source->read_tree());
  return source;
}

absl::Status Source::read_tree() {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, host_.members());
  // Before the tree: what changes between the two differs in tree_stands().
  std::map<HostPid, std::pair<pid_t, pid_t>> groups;
  for (const HostPid pid : members) groups[pid] = {::getpgid(pid.value), ::getsid(pid.value)};
  GW_ASSIGN_OR_RETURN(tree_, resource::capture_process_tree(members, host_.init, *translate_));
  count_tree();
  std::set<int32_t> alive;
  for (const resource::TreeProcess& process : tree_.processes) {
    if (process.zombie) continue;
    alive.insert(process.pid.value);
    SourceProcess& known = processes_[process.pid.value];
    if (known.host_pid == process.host_pid) {
      std::tie(known.group, known.session) = groups[process.host_pid];
      continue;
    }
    known = SourceProcess{};  // new, or its number was used again
    known.pid = process.pid;
    known.host_pid = process.host_pid;
    known.comm = process.comm;
    known.program = ++programs_;
    std::tie(known.group, known.session) = groups[process.host_pid];
    auto pidfd = kernel::pidfd_open(process.host_pid);
    if (!pidfd.ok()) {
      // Ended since the tree was read; the next reading is without it.
      if (errno_of(pidfd.status()) != ESRCH) return pidfd.status();
      alive.erase(process.pid.value);
      continue;
    }
    known.pidfd = *std::move(pidfd);
  }
  std::erase_if(processes_, [&](const auto& entry) { return !alive.contains(entry.first); });
  return absl::OkStatus();
}

// In the freeze, beside the scan: what was stopped is what is in the tree, and stays as it is.
absl::Status Source::read_frozen_tree() {
  GW_ASSIGN_OR_RETURN(const std::vector<HostPid> members, host_.members());
  GW_ASSIGN_OR_RETURN(tree_, resource::capture_process_tree(members, host_.init, *translate_));
  count_tree();
  size_t alive = 0;
  for (const resource::TreeProcess& process : tree_.processes) {
    if (process.zombie) continue;
    ++alive;
    const auto known = processes_.find(process.pid.value);
    if (known == processes_.end() || known->second.host_pid != process.host_pid)
      return make_error(absl::StatusCode::kUnavailable, "process {} ({}) is ending or beginning",
                        process.pid.value, process.comm);
  }
  if (alive != processes_.size())
    return absl::UnavailableError("a process has ended in the freeze");
  return absl::OkStatus();
}

// Is tree_ still true of what was stopped? Zombies apart: only their parents know of new ones.
bool Source::tree_stands() const {
  if (tree_.processes.size() != frozen_.size()) return false;
  for (const FrozenProcess& frozen : frozen_) {
    const SourceProcess& process = *frozen.process;
    const auto known =
        std::find_if(tree_.processes.begin(), tree_.processes.end(),
                     [&](const resource::TreeProcess& p) { return p.pid == process.pid; });
    if (known == tree_.processes.end() || known->zombie || known->host_pid != process.host_pid ||
        !std::equal(known->tasks.begin(), known->tasks.end(), frozen.stopped.tasks.begin(),
                    frozen.stopped.tasks.end(),
                    [](const resource::TreeTask& a, const tracee::StoppedTask& b) {
                      return a.host_tid == b.tid();
                    }) ||
        ::getpgid(process.host_pid.value) != process.group ||
        ::getsid(process.host_pid.value) != process.session)
      return false;
  }
  return true;
}

void Source::count_tree() {
  counts_.processes = static_cast<uint32_t>(tree_.processes.size());
  counts_.threads = 0;
  for (const auto& process : tree_.processes)
    counts_.threads += static_cast<uint32_t>(process.tasks.size());
}

std::vector<resource::FdHolder> Source::holders() const {
  std::vector<resource::FdHolder> list;
  for (const auto& [pid, process] : processes_)
    list.push_back({process.pid, process.host_pid, process.pidfd.get()});
  return list;
}

absl::Status Source::precheck(std::vector<resource::Refusal>& refusals) {
  GW_RETURN_IF_ERROR(read_tree());
  GW_RETURN_IF_ERROR(read_descriptors());
  for (const resource::TreeProcess& process : tree_.processes) {
    if (process.zombie) continue;
    const absl::Status checked = precheck_process(process, refusals);
    // It may have ended since the tree was read.
    if (errno_of(checked) == ENOENT || errno_of(checked) == ESRCH) continue;
    GW_RETURN_IF_ERROR(checked);
  }
  const auto& all = descriptors_->descriptions();
  // What seems to have its other end outside may have it in a message: the freeze finds out.
  const bool perhaps_under_way = std::any_of(all.begin(), all.end(), [](const auto& one) {
    return one.kind == &resource::unix_socket_kind() && resource::unix_has_unread(one.file);
  });
  for (const auto& description : all) {
    const resource::OpenFile& file = description.file;
    const size_t before = refusals.size();
    if (description.kind == nullptr)
      refusals.push_back({"fd.unknown",
                          fmt::format("process {}, descriptor {} -> {}", file.tgid.value,
                                      file.remote_fd, file.link),
                          "this kind of descriptor is not known and could not be restored exactly",
                          "let the program close it before the move"});
    else
      GW_RETURN_IF_ERROR(description.kind->precheck(file, *context_, refusals));
    if (perhaps_under_way)
      refusals.erase(
          std::remove_if(refusals.begin() + static_cast<std::ptrdiff_t>(before), refusals.end(),
                         [](const resource::Refusal& one) {
                           return one.code == "pipe.outside" || one.code == "unix.outside";
                         }),
          refusals.end());
    if ((file.status_flags & O_PATH) == 0)
      GW_RETURN_IF_ERROR(resource::refuse_signal_owner(file, *context_, refusals));
  }
  GW_RETURN_IF_ERROR(precheck_ipc(refusals));
  GW_RETURN_IF_ERROR(precheck_terminals(refusals));
  count_descriptors();
  note_open_files();
  descriptors_.reset();
  return absl::OkStatus();
}

// As the state of the tables will have them.
void Source::count_descriptors() {
  counts_.descriptors = 0;
  counts_.connections = 0;
  for (const auto& [tgid, table] : descriptors_->tables())
    counts_.descriptors += static_cast<uint32_t>(table.entries_size());
  by_kind_.clear();
  for (const auto& description : descriptors_->descriptions())
    ++by_kind_[description.kind == nullptr ? "unknown" : std::string(description.kind->name())];
  if (const auto tcp = by_kind_.find("tcp_socket"); tcp != by_kind_.end())
    counts_.connections = tcp->second;
}

absl::Status Source::precheck_process(const resource::TreeProcess& process,
                                      std::vector<resource::Refusal>& refusals) {
  const std::string name = fmt::format("process {} ({})", process.pid.value, process.comm);
  GW_ASSIGN_OR_RETURN(const kernel::TaskStat stat, kernel::read_task_stat(process.host_pid));
  // Its last thread has ended, too, since the tree was read.
  if (stat.state == 'Z' && stat.num_threads <= 1) return errno_status(ESRCH, name + ": ended");
  if (stat.state == 'Z') {
    refusals.push_back({"process.leader_ended", name,
                        "its first thread has ended while others run; a thread group without its "
                        "leader cannot be made anew",
                        "let the program keep its main thread (pthread_join instead of "
                        "pthread_exit)"});
    return absl::OkStatus();
  }
  const auto known = processes_.find(process.pid.value);
  if (known == processes_.end()) return errno_status(ESRCH, fmt::format("{}: ended", name));
  GW_RETURN_IF_ERROR(read_flags_of(known->second));
  for (const kernel::Mapping& mapping : known->second.maps)
    GW_RETURN_IF_ERROR(resource::precheck_mapping(process.host_pid, mapping, name, refusals));
  GW_RETURN_IF_ERROR(precheck_aio(known->second, name, refusals));
  GW_ASSIGN_OR_RETURN(
      const std::string exe,
      kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/exe", process.host_pid.value)));
  if (exe.ends_with(resource::kDeletedMark))
    refusals.push_back({"process.executable_deleted", fmt::format("{}, {}", name, exe),
                        "its executable has been deleted or replaced, and while a program runs "
                        "nobody can write that file",
                        "restart the program, so that it runs the new file"});
  for (const resource::TreeTask& task : process.tasks) {
    resource::TaskView view;
    view.tgid = process.pid;
    view.tid = task.tid;
    view.host_tgid = process.host_pid;
    view.host_tid = task.host_tid;
    view.leader = task.tid == process.pid;
    for (const resource::TaskResource* resource : resource::task_resources())
      if (resource->scope() == resource::Scope::kTask || view.leader)
        GW_RETURN_IF_ERROR(resource->precheck(view, refusals));
  }
  return absl::OkStatus();
}

absl::StatusOr<RoundResult> Source::round(stream::Writer& writer, const Extra& extra) {
  FAULT_POINT("source.round");
  const int64_t begin = monotonic_ns();
  GW_RETURN_IF_ERROR(read_tree());
  GW_RETURN_IF_ERROR(track_new_processes());
  prepare_to_see_tasks();
  GW_RETURN_IF_ERROR(writer.begin_epoch(false));
  begin_sections(false);
  GW_RETURN_IF_ERROR(tree_section(writer));
  GW_RETURN_IF_ERROR(memory_sections(writer));
  GW_RETURN_IF_ERROR(descriptor_sections(writer));
  GW_RETURN_IF_ERROR(end_sections(writer));
  GW_RETURN_IF_ERROR(extra());
  const int64_t lead_ns = monotonic_ns() - begin;
  GW_ASSIGN_OR_RETURN(RoundResult result, send_pages(writer, false));
  result.lead_ns += lead_ns;
  GW_RETURN_IF_ERROR(writer.end_epoch());
  GW_RETURN_IF_ERROR(writer.flush());
  result.total_ns = monotonic_ns() - begin;
  if (!cpus_) cpus_ = std::make_unique<WakefulCpus>();
  return result;
}

absl::Status Source::begin_last_epoch(stream::Writer& writer) {
  GW_RETURN_IF_ERROR(writer.begin_epoch(true));
  GW_RETURN_IF_ERROR(writer.flush());
  hurry();
  return absl::OkStatus();
}

absl::Status Source::final_state(stream::Writer& writer, const Extra& extra) {
  FAULT_POINT("source.final_state");
  begin_sections(true);
  GW_RETURN_IF_ERROR(has_looked_.get());
  spans_.mark("wait for maps");
  // Before the state, which may open what is new in it.
  note_open_files();
  GW_RETURN_IF_ERROR(extra());
  spans_.mark("files");
  GW_RETURN_IF_ERROR(tree_section(writer));
  GW_RETURN_IF_ERROR(memory_sections(writer));
  GW_RETURN_IF_ERROR(descriptor_sections(writer));
  spans_.mark("make state");
  GW_RETURN_IF_ERROR(task_sections(writer));
  GW_RETURN_IF_ERROR(end_sections(writer));
  GW_RETURN_IF_ERROR(writer.end_state());
  // So that the replica applies it while we scan. With the scan done it goes with the last pages:
  // woken twice, the replica's side would begin on our CPU, which we still need.
  if (scanner_->busy()) GW_RETURN_IF_ERROR(writer.flush());
  spans_.mark("send state");
  return absl::OkStatus();
}

absl::StatusOr<RoundResult> Source::final_pages(stream::Writer& writer) {
  FAULT_POINT("source.final_pages");
  GW_ASSIGN_OR_RETURN(RoundResult result, send_pages(writer, true));
  spans_.mark("last pages");
  if (verify_) {
    GW_RETURN_IF_ERROR(send_all_hashes(writer));
    spans_.mark("hashes");
  }
  return result;
}

void Source::finish() {
  // Else their ends would have the kernel look after them until it gives them up.
  if (descriptors_ && settler_ && settler_->wait().ok())
    descriptors_->for_untaken(resource::tcp_silence).IgnoreError();
  // The tasks stay frozen by their cgroup when our ptrace ends; whoever committed kills them.
  frozen_.clear();
  if (settler_) settler_->wait().IgnoreError();
  descriptors_.reset();
  holding_ = false;
  hurry_.reset();
}

}  // namespace godwit::process
