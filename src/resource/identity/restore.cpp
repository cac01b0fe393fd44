#include <sys/syscall.h>

#include <string>

#include "kernel/syscalls.h"
#include "resource/identity/identity.h"
#include "resource/identity/identity.pb.h"
#include "resource/identity/settings.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// PR_SPEC_ENABLE, _DISABLE, _FORCE_DISABLE, _DISABLE_NOEXEC.
constexpr uint32_t kSpeculationModes =
    PR_SPEC_ENABLE | PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC;

// What a task has that never asked: speculation on, the flush of L1D off.
bool asked_for(int which, uint32_t value) {
  if ((value & PR_SPEC_PRCTL) == 0) return false;  // was not the task's to choose
  const uint32_t normal = which == PR_SPEC_L1D_FLUSH ? PR_SPEC_DISABLE : PR_SPEC_ENABLE;
  return (value & kSpeculationModes) != normal;
}

absl::Status check_speculation(const tracee::Batch& done, size_t call, int which, uint32_t wanted,
                               ImagePid tid) {
  const int64_t now = done.result(call);
  const uint32_t mode = error_in(now) != 0 ? 0 : static_cast<uint32_t>(now) & kSpeculationModes;
  if (mode == (wanted & kSpeculationModes) || !asked_for(which, wanted)) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "task {} asked for speculation control {} (mode {:#x}), which this machine "
                    "cannot give (it says {})",
                    tid.value, which, wanted, now);
}

}  // namespace

absl::StatusOr<TaskResource::Check> TaskIdentityResource::restore(std::string_view bytes,
                                                                  const TaskView& husk,
                                                                  tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const TaskIdentityState state, parse_state<TaskIdentityState>(bytes, name()));
  std::array<char, kNameSize> comm{};
  if (state.name().size() >= comm.size() || state.speculation_size() > int{kSpeculation.size()})
    return make_error(absl::StatusCode::kDataLoss, "state of {} is not one", name());
  std::copy(state.name().begin(), state.name().end(), comm.begin());

  std::vector<size_t> calls;
  calls.push_back(batch.call(SYS_prctl, {PR_SET_NAME, batch.data(bytes_of(comm)), 0, 0, 0}));
  calls.push_back(batch.call(SYS_prctl, {PR_SET_PDEATHSIG, state.parent_death_signal(), 0, 0, 0}));
  calls.push_back(batch.call(SYS_prctl, {PR_SET_TSC, state.tsc_mode(), 0, 0, 0}));
  const size_t personality = batch.call(SYS_personality, {state.personality()});
  calls.push_back(
      batch.call(SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_SET, state.mce_kill_policy(), 0, 0}));
  if (state.cpuid_faults()) calls.push_back(batch.call(SYS_arch_prctl, {kArchSetCpuid, 0}));
  std::vector<size_t> speculation;
  for (int i = 0; i < state.speculation_size(); ++i) {
    const int which = kSpeculation[static_cast<size_t>(i)];
    const uint32_t value = state.speculation(i);
    if ((value & PR_SPEC_PRCTL) != 0)
      batch.call(SYS_prctl, {PR_SET_SPECULATION_CTRL, which, value & kSpeculationModes, 0, 0});
    speculation.push_back(batch.call(SYS_prctl, {PR_GET_SPECULATION_CTRL, which, 0, 0, 0}));
  }
  return Check([=, tid = husk.tid](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    GW_RETURN_IF_ERROR(done.check(personality));
    for (size_t i = 0; i < speculation.size(); ++i)
      GW_RETURN_IF_ERROR(check_speculation(done, speculation[i], kSpeculation[i],
                                           state.speculation(static_cast<int>(i)), tid));
    return absl::OkStatus();
  });
}

absl::StatusOr<TaskResource::Check> ProcessIdentityResource::restore(std::string_view bytes,
                                                                     const TaskView& husk,
                                                                     tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const ProcessIdentityState state,
                      parse_state<ProcessIdentityState>(bytes, name()));
  batch.meanwhile([filter = state.coredump_filter(), tgid = husk.host_tgid] {
    return kernel::write_file(fmt::format("/proc/{}/coredump_filter", tgid.value),
                              fmt::format("{:#x}", filter));
  });
  std::vector<size_t> calls;
  calls.push_back(batch.call(SYS_umask, {state.umask()}));
  calls.push_back(
      batch.call(SYS_prctl, {PR_SET_CHILD_SUBREAPER, state.child_subreaper() ? 1 : 0, 0, 0, 0}));
  // Without flags 1 means "off everywhere"; the flags (6.18) stand above bit 0.
  const uint32_t thp = state.thp_disable();
  calls.push_back(batch.call(SYS_prctl, {PR_SET_THP_DISABLE, thp & 1U, thp & ~1U, 0, 0}));
  if (state.memory_merge()) calls.push_back(batch.call(SYS_prctl, {kPrSetMemoryMerge, 1, 0, 0, 0}));
  // It cannot be taken back, and then no mapping becomes executable any more.
  if (const uint32_t mdwe = state.memory_deny_write_execute(); mdwe != 0)
    calls.push_back(batch.call(SYS_prctl, {kPrSetMdwe, mdwe, 0, 0, 0}));
  return Check([calls](const tracee::Batch& done) {
    for (const size_t call : calls) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
