#include <sys/syscall.h>

#include <string>

#include "resource/signals/actions.h"
#include "resource/signals/signals.h"
#include "resource/signals/signals.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

absl::Status must_be_stopped(const TaskView& view, std::string_view what) {
  if (view.task != nullptr) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", what,
                    view.host_tid.value);
}

constexpr uint32_t kAutoDisarm = uint32_t{1} << 31;  // SS_AUTODISARM, linux/signal.h

// A task on an SS_AUTODISARM stack reads as disabled: the frame of its handler holds the settings,
// and sigreturn brings them back there as here.
std::string stack_state(uint64_t address, uint64_t size, uint32_t flags) {
  if (size == 0 && flags == SS_DISABLE && address == 0) return std::string();
  SignalStackState state;
  state.set_address(address);
  state.set_flags(flags);
  state.set_size(size);
  return state.SerializeAsString();
}

}  // namespace

absl::StatusOr<TaskResource::Collect> SignalActionsResource::capture(const TaskView& view,
                                                                     tracee::Batch& batch) const {
  GW_RETURN_IF_ERROR(must_be_stopped(view, name()));
  const tracee::Batch::Data all = batch.reserve(kSignals * sizeof(KernelSigaction));
  std::vector<size_t> calls;
  calls.reserve(kSignals);
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (!changeable(signal)) continue;
    const size_t at = static_cast<size_t>(signal - 1) * sizeof(KernelSigaction);
    calls.push_back(batch.call(
        SYS_rt_sigaction, {signal, 0, slice(all, at, sizeof(KernelSigaction)), kKernelSigsetSize}));
  }
  return Collect([all, calls](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    SignalActionsState state;
    for (int signal = 1; signal <= kSignals; ++signal) {
      const auto kernel = value_in<KernelSigaction>(done, all, static_cast<size_t>(signal - 1));
      if ((kernel.handler | kernel.flags | kernel.restorer | kernel.mask) == 0) continue;
      SignalAction& action = *state.add_actions();
      action.set_signal(static_cast<uint32_t>(signal));
      action.set_handler(kernel.handler);
      action.set_flags(kernel.flags);
      action.set_restorer(kernel.restorer);
      action.set_mask(kernel.mask);
    }
    return state.SerializeAsString();
  });
}

absl::Status SignalActionsResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

absl::StatusOr<TaskResource::Collect> SignalStackResource::capture(const TaskView& view,
                                                                   tracee::Batch& batch) const {
  GW_RETURN_IF_ERROR(must_be_stopped(view, name()));
  if (view.seen != nullptr) {
    // As do_sigaltstack() says it, kernel/signal.c.
    const SeenTask& seen = *view.seen;
    const uint32_t disabled = seen.sas_ss_size == 0 ? uint32_t{SS_DISABLE} : 0;
    return Collect([bytes = stack_state(seen.sas_ss_sp, seen.sas_ss_size,
                                        disabled | (seen.sas_ss_flags & kAutoDisarm))](
                       const tracee::Batch&) -> absl::StatusOr<std::string> { return bytes; });
  }
  const tracee::Batch::Data old = batch.reserve(sizeof(stack_t));
  const size_t call = batch.call(SYS_sigaltstack, {0, old});
  return Collect([old, call](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    GW_RETURN_IF_ERROR(done.check(call));
    const auto stack = value_in<stack_t>(done, old);
    return stack_state(reinterpret_cast<uint64_t>(stack.ss_sp), stack.ss_size,
                       static_cast<uint32_t>(stack.ss_flags) & ~uint32_t{SS_ONSTACK});
  });
}

absl::Status SignalStackResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

// What a husk has to lose depends on the husk; every source wants the same.
absl::StatusOr<TaskResource::Collect> SignalFlushResource::capture(const TaskView&,
                                                                   tracee::Batch&) const {
  return Collect([](const tracee::Batch&) -> absl::StatusOr<std::string> { return "flush"; });
}

absl::Status SignalFlushResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& signal_actions_resource() {
  static const SignalActionsResource resource;
  return resource;
}
const TaskResource& signal_stack_resource() {
  static const SignalStackResource resource;
  return resource;
}
const TaskResource& signal_flush_resource() {
  static const SignalFlushResource resource;
  return resource;
}

}  // namespace godwit::resource
