// Pending signals: read by PTRACE_PEEKSIGINFO, put back by the husk itself. rt_sigqueueinfo(2) and
// rt_tgsigqueueinfo(2) let a task give itself any si_code, those of the kernel too (>= 0, SI_TKILL)
// that it may not give to others (kernel/signal.c, do_rt_sigqueueinfo).
#include <sys/syscall.h>

#include <cstring>
#include <string>
#include <utility>

#include "kernel/proc/status.h"
#include "resource/signals/actions.h"
#include "resource/signals/signals.h"
#include "resource/signals/signals.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

static_assert(sizeof(siginfo_t) == 128);

uint64_t set_of(const std::vector<siginfo_t>& infos) {
  uint64_t set = 0;
  for (const siginfo_t& info : infos)
    if (info.si_signo >= 1 && info.si_signo <= kSignals) set |= bit_of(info.si_signo);
  return set;
}

// Signals whose bit is set and that have no entry in the queue: past RLIMIT_SIGPENDING the kernel
// keeps the bit alone, and delivers it as from SI_USER by nobody (collect_signal).
absl::Status add_bare(const TaskView& view, bool of_process, std::vector<siginfo_t>& infos) {
  GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(view.host_tid));
  const uint64_t bare =
      (of_process ? status.pending_process : status.pending_task) & ~set_of(infos);
  for (int signal = 1; signal <= kSignals; ++signal) {
    if ((bare & bit_of(signal)) == 0 || !changeable(signal)) continue;
    siginfo_t info{};
    info.si_signo = signal;
    info.si_code = SI_USER;
    infos.push_back(info);
  }
  return absl::OkStatus();
}

bool of_timer(const siginfo_t& info) {
  return info.si_code == SI_TIMER ||
         (info.si_code == SI_KERNEL &&
          (info.si_signo == SIGALRM || info.si_signo == SIGVTALRM || info.si_signo == SIGPROF));
}

absl::StatusOr<TaskResource::Collect> capture_pending(const TaskView& view, bool of_process,
                                                      tracee::Batch& batch) {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "pending signals of running task {}",
                      view.host_tid.value);
  // In a batch every signal is blocked, so that this names all that is pending for the task or its
  // process: 0.3 us, and only if the queues do not explain it the slow /proc is asked.
  tracee::Batch::Data set{};
  std::optional<size_t> call;
  if (view.seen == nullptr) {
    set = batch.reserve(sizeof(uint64_t));
    call = batch.call(SYS_rt_sigpending, {set, kKernelSigsetSize});
  }
  const uint64_t seen_before = view.seen == nullptr ? 0 : view.seen->pending;
  return TaskResource::Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    if (call) GW_RETURN_IF_ERROR(done.check(*call));
    GW_ASSIGN_OR_RETURN(std::vector<siginfo_t> infos, view.task->pending_signals(of_process));
    GW_ASSIGN_OR_RETURN(const std::vector<siginfo_t> others,
                        view.task->pending_signals(!of_process));
    const auto seen = call ? value_in<uint64_t>(done, set) : seen_before;
    const uint64_t explained = set_of(infos) | set_of(others) | bit_of(SIGKILL) | bit_of(SIGSTOP);
    if ((seen & ~explained) != 0) GW_RETURN_IF_ERROR(add_bare(view, of_process, infos));
    PendingSignalsState state;
    for (const siginfo_t& info : infos) {
      // The timers were read in the leader's batch, before `seen`: what fired after that is still
      // to fire in their states.
      if (view.leader && of_timer(info) && (seen & bit_of(info.si_signo)) == 0) continue;
      if (!changeable(info.si_signo))
        return make_error(absl::StatusCode::kUnavailable,
                          "task {} is about to get {}: try again when it has", view.host_tid.value,
                          info.si_signo == SIGSTOP ? "SIGSTOP" : "SIGKILL");
      state.add_infos(&info, sizeof info);
    }
    return state.SerializeAsString();
  });
}

absl::StatusOr<TaskResource::Check> restore_pending(std::string_view bytes, const TaskView& husk,
                                                    bool of_process, std::string_view name,
                                                    tracee::Batch& batch) {
  GW_ASSIGN_OR_RETURN(const PendingSignalsState state,
                      parse_state<PendingSignalsState>(bytes, name));
  std::vector<std::pair<size_t, siginfo_t>> calls;
  for (const std::string& raw : state.infos()) {
    siginfo_t info;
    if (raw.size() != sizeof info)
      return make_error(absl::StatusCode::kDataLoss, "state of {} has a siginfo of {} bytes", name,
                        raw.size());
    std::memcpy(&info, raw.data(), sizeof info);
    if (info.si_signo < 1 || info.si_signo > kSignals || !changeable(info.si_signo))
      return make_error(absl::StatusCode::kDataLoss, "state of {} names signal {}", name,
                        info.si_signo);
    const tracee::Batch::Data data = batch.data(bytes_of(info));
    const size_t call =
        of_process ? batch.call(SYS_rt_sigqueueinfo, {husk.tgid.value, info.si_signo, data})
                   : batch.call(SYS_rt_tgsigqueueinfo,
                                {husk.tgid.value, husk.tid.value, info.si_signo, data});
    calls.emplace_back(call, info);
  }
  if (calls.empty()) return TaskResource::Check{};
  return TaskResource::Check([calls, husk](const tracee::Batch& done) {
    for (const auto& [call, info] : calls) {
      if (error_in(done.result(call)) == EAGAIN)
        return make_error(absl::StatusCode::kResourceExhausted,
                          "task {}: no room to queue signal {} again: RLIMIT_SIGPENDING of its "
                          "user is reached here",
                          husk.tid.value, info.si_signo);
      GW_RETURN_IF_ERROR(done.check(call));
    }
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<TaskResource::Collect> ProcessPendingSignalsResource::capture(
    const TaskView& view, tracee::Batch& batch) const {
  return capture_pending(view, true, batch);
}
absl::StatusOr<TaskResource::Check> ProcessPendingSignalsResource::restore(
    std::string_view state, const TaskView& husk, tracee::Batch& batch) const {
  return restore_pending(state, husk, true, name(), batch);
}
absl::Status ProcessPendingSignalsResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

absl::StatusOr<TaskResource::Collect> TaskPendingSignalsResource::capture(
    const TaskView& view, tracee::Batch& batch) const {
  return capture_pending(view, false, batch);
}
absl::StatusOr<TaskResource::Check> TaskPendingSignalsResource::restore(
    std::string_view state, const TaskView& husk, tracee::Batch& batch) const {
  return restore_pending(state, husk, false, name(), batch);
}
absl::Status TaskPendingSignalsResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& process_pending_signals_resource() {
  static const ProcessPendingSignalsResource resource;
  return resource;
}
const TaskResource& task_pending_signals_resource() {
  static const TaskPendingSignalsResource resource;
  return resource;
}

}  // namespace godwit::resource
