// All by the husk itself, in an order in which each step is still allowed. The husk is root with
// every capability that the destination gives; the picture of what needs what:
//
//   groups, gids         CAP_SETGID
//   uids                 CAP_SETUID; SECBIT_NO_SETUID_FIXUP first, else leaving uid 0 drops the
//   sets inheritable          within the bounding set (cap_capset), so before the bounding set
//   shrinks bounding             CAP_SETPCAP ambient              within permitted and inheritable;
//   SECBIT_NO_CAP_AMBIENT_RAISE not yet set securebits           CAP_SETPCAP permitted, effective
//   drop what the steps above needed dumpable             every change of users clears it
//   (commit_creds, kernel/cred.c): the last
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <string>

#include "kernel/syscalls.h"
#include "resource/credentials/capabilities.h"
#include "resource/credentials/credentials.h"
#include "resource/credentials/credentials.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// prctl(PR_GET_DUMPABLE): 0 no, 1 yes, 2 for root only. 2 cannot be asked for: it is what
// fs.suid_dumpable = 2 makes of a program that changed its users.
constexpr uint32_t kDumpableForRoot = 2;

bool dumpable_for_root_here() {
  const absl::StatusOr<std::string> text = kernel::read_file("/proc/sys/fs/suid_dumpable", 16);
  return text.ok() && !text->empty() && text->front() == '2';
}

tracee::Batch::Data capabilities_data(tracee::Batch& batch, const CapabilitySets& sets) {
  KernelCapabilities kernel;
  set_capabilities(kernel, sets);
  return batch.data(bytes_of(kernel));
}

// Header and data lie behind one another.
size_t add_capset(tracee::Batch& batch, const CapabilitySets& sets) {
  const tracee::Batch::Data both = capabilities_data(batch, sets);
  constexpr size_t kHeader = sizeof(__user_cap_header_struct);
  return batch.call(SYS_capset,
                    {slice(both, 0, kHeader), slice(both, offsetof(KernelCapabilities, data),
                                                    sizeof(KernelCapabilities::data))});
}

// Calls that must give 0, and capabilities that must still be in the bounding set.
struct Added {
  std::vector<size_t> zero;
  std::vector<std::pair<int, size_t>> bounding;
  size_t fsuid = 0;
  size_t fsgid = 0;
  size_t dumpable = 0;
};

void add_users(const CredentialsState& state, tracee::Batch& batch, Added& added) {
  const std::vector<gid_t> groups(state.groups().begin(), state.groups().end());
  const tracee::Batch::Data list = batch.data(std::as_bytes(std::span(groups)));
  added.zero.push_back(batch.call(SYS_setgroups, {groups.size(), list}));
  added.zero.push_back(
      batch.call(SYS_setresgid, {state.real_gid(), state.effective_gid(), state.saved_gid()}));
  batch.call(SYS_setfsgid, {state.fs_gid()});
  added.fsgid = batch.call(SYS_setfsgid, {-1});
  added.zero.push_back(
      batch.call(SYS_setresuid, {state.real_uid(), state.effective_uid(), state.saved_uid()}));
  if (state.dumpable() == kDumpableForRoot) {
    // There and back: a change of users makes dumpable what fs.suid_dumpable says.
    batch.call(SYS_setfsuid, {state.fs_uid() ^ 1U});
  }
  batch.call(SYS_setfsuid, {state.fs_uid()});
  added.fsuid = batch.call(SYS_setfsuid, {-1});
}

void add_capabilities(const CredentialsState& state, const CapabilitySets& husk,
                      tracee::Batch& batch, Added& added) {
  added.zero.push_back(add_capset(batch, {.effective = husk.permitted,
                                          .permitted = husk.permitted,
                                          .inheritable = state.inheritable()}));
  for (int cap = 0; cap < kCapabilities; ++cap) {
    if ((state.bounding() & capability_bit(cap)) != 0)
      added.bounding.emplace_back(cap, batch.call(SYS_prctl, {PR_CAPBSET_READ, cap, 0, 0, 0}));
    else
      batch.call(SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0});  // EINVAL: not of this kernel
  }
  batch.call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0});
  for (int cap = 0; cap < kCapabilities; ++cap)
    if ((state.ambient() & capability_bit(cap)) != 0)
      added.zero.push_back(
          batch.call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0}));
  added.zero.push_back(batch.call(SYS_prctl, {PR_SET_SECUREBITS, state.securebits(), 0, 0, 0}));
  added.zero.push_back(add_capset(batch, {.effective = state.effective(),
                                          .permitted = state.permitted(),
                                          .inheritable = state.inheritable()}));
}

absl::Status check(const CredentialsState& state, const TaskView& husk, const Added& added,
                   const tracee::Batch& done) {
  for (const size_t call : added.zero)
    if (const absl::Status status = done.check(call); !status.ok())
      return annotate(status, fmt::format("credentials of task {}", husk.tid.value));
  if (static_cast<uid_t>(done.result(added.fsuid)) != state.fs_uid() ||
      static_cast<gid_t>(done.result(added.fsgid)) != state.fs_gid())
    return make_error(absl::StatusCode::kInternal,
                      "task {}: setfsuid({}), setfsgid({}) gave {} and {}", husk.tid.value,
                      state.fs_uid(), state.fs_gid(), done.result(added.fsuid),
                      done.result(added.fsgid));
  for (const auto& [cap, call] : added.bounding)
    if (done.result(call) != 1)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "task {}: capability {} is in its bounding set, but not to be had here",
                        husk.tid.value, cap);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TaskResource::Check> CredentialsResource::restore(std::string_view bytes,
                                                                 const TaskView& husk,
                                                                 tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const CredentialsState state, parse_state<CredentialsState>(bytes, name()));
  GW_ASSIGN_OR_RETURN(const CapabilitySets sets, capabilities_of(husk.host_tid));
  if (const uint64_t missing = state.permitted() & ~sets.permitted; missing != 0)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "task {} has capabilities {:#x} that cannot be had here", husk.tid.value,
                      missing);
  Added added;
  constexpr unsigned kKeep = SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS;
  added.zero.push_back(batch.call(SYS_prctl, {PR_SET_SECUREBITS, kKeep, 0, 0, 0}));
  add_users(state, batch, added);
  add_capabilities(state, sets, batch, added);
  if (state.no_new_privs())
    added.zero.push_back(batch.call(SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0}));
  if (state.dumpable() < kDumpableForRoot)
    added.zero.push_back(batch.call(SYS_prctl, {PR_SET_DUMPABLE, state.dumpable(), 0, 0, 0}));
  else if (!dumpable_for_root_here())
    // The stricter of the two that can be asked for.
    added.zero.push_back(batch.call(SYS_prctl, {PR_SET_DUMPABLE, 0, 0, 0, 0}));
  return Check(
      [state, husk, added](const tracee::Batch& done) { return check(state, husk, added, done); });
}

}  // namespace godwit::resource
