#include <sys/syscall.h>

#include <charconv>
#include <memory>
#include <string>

#include "kernel/syscalls.h"
#include "resource/identity/identity.h"
#include "resource/identity/identity.pb.h"
#include "resource/identity/settings.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

absl::Status must_be_stopped(const TaskView& view, std::string_view what) {
  if (view.task != nullptr) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", what,
                    view.host_tid.value);
}

// The result of a call that older kernels or other CPUs lack: then the default.
uint32_t or_default(const tracee::Batch& done, size_t call, uint32_t value) {
  return error_in(done.result(call)) != 0 ? value : static_cast<uint32_t>(done.result(call));
}

absl::StatusOr<uint32_t> coredump_filter_of(HostPid process) {
  const std::string path = fmt::format("/proc/{}/coredump_filter", process.value);
  GW_ASSIGN_OR_RETURN(const std::string text, kernel::read_file(path, 64));
  uint32_t filter = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), filter, 16);
  if (error != std::errc())
    return make_error(absl::StatusCode::kDataLoss, "{} says \"{}\"", path, text);
  return filter;
}

}  // namespace

absl::StatusOr<TaskResource::Collect> TaskIdentityResource::capture(const TaskView& view,
                                                                    tracee::Batch& batch) const {
  GW_RETURN_IF_ERROR(must_be_stopped(view, name()));
  const tracee::Batch::Data comm = batch.reserve(kNameSize);
  const tracee::Batch::Data death_signal = batch.reserve(sizeof(int));
  const tracee::Batch::Data tsc_mode = batch.reserve(sizeof(int));
  const size_t get_name = batch.call(SYS_prctl, {PR_GET_NAME, comm, 0, 0, 0});
  const size_t get_death = batch.call(SYS_prctl, {PR_GET_PDEATHSIG, death_signal, 0, 0, 0});
  const size_t get_tsc = batch.call(SYS_prctl, {PR_GET_TSC, tsc_mode, 0, 0, 0});
  const size_t personality = batch.call(SYS_personality, {kPersonalityQuery});
  const size_t mce_kill = batch.call(SYS_prctl, {PR_MCE_KILL_GET, 0, 0, 0, 0});
  const size_t cpuid = batch.call(SYS_arch_prctl, {kArchGetCpuid, 0});
  std::vector<size_t> speculation;
  for (const int which : kSpeculation)
    speculation.push_back(batch.call(SYS_prctl, {PR_GET_SPECULATION_CTRL, which, 0, 0, 0}));

  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    for (const size_t call : {get_name, get_death, get_tsc, personality, mce_kill})
      GW_RETURN_IF_ERROR(done.check(call));
    TaskIdentityState state;
    const auto chars = value_in<std::array<char, kNameSize>>(done, comm);
    state.set_name(chars.data(), ::strnlen(chars.data(), chars.size()));
    state.set_parent_death_signal(static_cast<uint32_t>(value_in<int>(done, death_signal)));
    state.set_personality(static_cast<uint32_t>(done.result(personality)));
    state.set_tsc_mode(static_cast<uint32_t>(value_in<int>(done, tsc_mode)));
    state.set_mce_kill_policy(static_cast<uint32_t>(done.result(mce_kill)));
    state.set_cpuid_faults(or_default(done, cpuid, 1) == 0);
    for (const size_t call : speculation) state.add_speculation(or_default(done, call, 0));
    return state.SerializeAsString();
  });
}

// Which bits are the policy for machine checks, speculation and the modes of rdtsc and cpuid
// differs between kernels: all of them are compared.
std::optional<std::string> TaskIdentityResource::decided_by(const SeenTask& task) const {
  std::string key = fmt::format("{} {} {} {} {} ", task.flags, task.atomic_flags, task.thread_flags,
                                task.personality, task.pdeath_signal);
  const auto name = bytes_of(task.comm);
  return key.append(reinterpret_cast<const char*>(name.data()), name.size());
}

absl::Status TaskIdentityResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

absl::StatusOr<TaskResource::Collect> ProcessIdentityResource::capture(const TaskView& view,
                                                                       tracee::Batch& batch) const {
  GW_RETURN_IF_ERROR(must_be_stopped(view, name()));
  const auto coredump_filter = std::make_shared<uint32_t>(0);
  batch.meanwhile([coredump_filter, tgid = view.host_tgid]() -> absl::Status {
    GW_ASSIGN_OR_RETURN(*coredump_filter, coredump_filter_of(tgid));
    return absl::OkStatus();
  });
  const tracee::Batch::Data subreaper = batch.reserve(sizeof(int));
  // umask(2) cannot be asked without being set; the next call puts it back, whatever becomes of us.
  const size_t umask = batch.call(SYS_umask, {0077});
  batch.call(SYS_umask, {tracee::Batch::ResultOf{umask}});
  const size_t get_subreaper = batch.call(SYS_prctl, {PR_GET_CHILD_SUBREAPER, subreaper, 0, 0, 0});
  const size_t thp = batch.call(SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0});
  const size_t merge = batch.call(SYS_prctl, {kPrGetMemoryMerge, 0, 0, 0, 0});
  const size_t mdwe = batch.call(SYS_prctl, {kPrGetMdwe, 0, 0, 0, 0});

  return Collect([=](const tracee::Batch& done) -> absl::StatusOr<std::string> {
    GW_RETURN_IF_ERROR(done.check(umask));
    GW_RETURN_IF_ERROR(done.check(get_subreaper));
    ProcessIdentityState state;
    state.set_umask(static_cast<uint32_t>(done.result(umask)));
    state.set_child_subreaper(value_in<int>(done, subreaper) != 0);
    state.set_thp_disable(or_default(done, thp, 0));
    state.set_memory_merge(or_default(done, merge, 0) != 0);
    state.set_memory_deny_write_execute(or_default(done, mdwe, 0));
    state.set_coredump_filter(*coredump_filter);
    return state.SerializeAsString();
  });
}

absl::Status ProcessIdentityResource::precheck(const TaskView&, std::vector<Refusal>&) const {
  return absl::OkStatus();
}

const TaskResource& task_identity_resource() {
  static const TaskIdentityResource resource;
  return resource;
}
const TaskResource& process_identity_resource() {
  static const ProcessIdentityResource resource;
  return resource;
}

}  // namespace godwit::resource
