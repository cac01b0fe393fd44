#include <sys/syscall.h>

#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "resource/signals/actions.h"
#include "resource/signals/signals.h"
#include "resource/signals/signals.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

TaskResource::Check all_succeeded(std::vector<size_t> calls) {
  return [calls = std::move(calls)](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  };
}

using Actions = std::array<KernelSigaction, kSignals>;

absl::StatusOr<Actions> actions_of(std::string_view bytes, std::string_view name) {
  GW_ASSIGN_OR_RETURN(const SignalActionsState state, parse_state<SignalActionsState>(bytes, name));
  Actions actions{};
  for (const SignalAction& action : state.actions()) {
    if (action.signal() < 1 || action.signal() > kSignals ||
        !changeable(static_cast<int>(action.signal())))
      return make_error(absl::StatusCode::kDataLoss, "state of {} names signal {}", name,
                        action.signal());
    actions[action.signal() - 1] = {action.handler(), action.flags(), action.restorer(),
                                    action.mask()};
  }
  return actions;
}

}  // namespace

absl::StatusOr<TaskResource::Check> SignalActionsResource::restore(std::string_view bytes,
                                                                   const TaskView& husk,
                                                                   tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const Actions actions, actions_of(bytes, name()));
  // Unless it is known what the husk has, all of them: its parent may have set others.
  std::optional<Actions> known;
  if (husk.known) {
    GW_ASSIGN_OR_RETURN(known, actions_of(*husk.known, name()));
  }
  const tracee::Batch::Data data = batch.data(std::as_bytes(std::span(actions)));
  std::vector<size_t> calls;
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (!changeable(signal)) continue;
    const auto index = static_cast<size_t>(signal - 1);
    if (known && std::memcmp(&(*known)[index], &actions[index], sizeof actions[index]) == 0)
      continue;
    const size_t at = index * sizeof(KernelSigaction);
    calls.push_back(batch.call(SYS_rt_sigaction, {signal, slice(data, at, sizeof(KernelSigaction)),
                                                  0, kKernelSigsetSize}));
  }
  return all_succeeded(std::move(calls));
}

absl::StatusOr<TaskResource::Check> SignalStackResource::restore(std::string_view bytes,
                                                                 const TaskView&,
                                                                 tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const SignalStackState state, parse_state<SignalStackState>(bytes, name()));
  stack_t stack{};
  stack.ss_sp = reinterpret_cast<void*>(state.address());
  stack.ss_flags = static_cast<int>(bytes.empty() ? uint32_t{SS_DISABLE} : state.flags());
  stack.ss_size = state.size();
  return all_succeeded({batch.call(SYS_sigaltstack, {batch.data(bytes_of(stack)), 0})});
}

absl::StatusOr<TaskResource::Check> SignalFlushResource::restore(std::string_view,
                                                                 const TaskView& husk,
                                                                 tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const std::vector<siginfo_t> own, husk.task->pending_signals(false));
  size_t count = own.size();
  if (husk.leader) {
    GW_ASSIGN_OR_RETURN(const std::vector<siginfo_t> shared, husk.task->pending_signals(true));
    count += shared.size();
  }
  if (count == 0) return Check{};
  // rt_sigtimedwait(2) takes blocked signals, the task's own before the process's: exactly as many
  // calls as there are signals, so that a thread takes none of those that its leader's batch, run
  // beside this one, puts there.
  const tracee::Batch::Data set = batch.data(bytes_of(~uint64_t{0}));
  const tracee::Batch::Data now = batch.data(bytes_of(timespec{}));
  std::vector<size_t> calls;
  for (size_t i = 0; i < count; ++i)
    calls.push_back(batch.call(SYS_rt_sigtimedwait, {set, 0, now, kKernelSigsetSize}));
  return Check([calls](const tracee::Batch& done) {
    for (const size_t call : calls)
      // EAGAIN: gone already, a SIGCONT that a stop took away for one.
      if (error_in(done.result(call)) != EAGAIN) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
