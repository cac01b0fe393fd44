// By batch, from the task itself: /proc/PID/status has most of it, but takes longer than all the
// calls together, and neither securebits nor dumpable.
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>
#include <string>

#include "kernel/proc/status.h"
#include "kernel/syscalls.h"
#include "resource/credentials/capabilities.h"
#include "resource/credentials/credentials.h"
#include "resource/credentials/credentials.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// 65536 are possible: then /proc/PID/status is read.
constexpr size_t kFewGroups = 64;
constexpr int kNobody = -1;  // setfsuid(2): an id that is not valid changes nothing

// The security module's label, empty where there is no module (EINVAL) or no such file.
std::string label_of(const std::string& process) {
  absl::StatusOr<std::string> text =
      kernel::read_file(fmt::format("/proc/{}/attr/current", process), 4096);
  if (!text.ok()) return {};
  while (!text->empty() && (text->back() == '\n' || text->back() == '\0')) text->pop_back();
  return *text;
}

}  // namespace

absl::StatusOr<TaskResource::Collect> CredentialsResource::capture(const TaskView& view,
                                                                   tracee::Batch& batch) const {
  if (view.task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "{} of running task {}", name(),
                      view.host_tid.value);
  GW_ASSIGN_OR_RETURN(const CapabilitySets sets, capabilities_of(view.host_tid));

  const tracee::Batch::Data users = batch.reserve(3 * sizeof(uid_t));
  const tracee::Batch::Data groups = batch.reserve(3 * sizeof(gid_t));
  const size_t resuid =
      batch.call(SYS_getresuid, {slice(users, 0, 4), slice(users, 4, 4), slice(users, 8, 4)});
  const size_t resgid =
      batch.call(SYS_getresgid, {slice(groups, 0, 4), slice(groups, 4, 4), slice(groups, 8, 4)});
  const size_t fsuid = batch.call(SYS_setfsuid, {kNobody});
  const size_t fsgid = batch.call(SYS_setfsgid, {kNobody});
  const tracee::Batch::Data supplementary = batch.reserve(kFewGroups * sizeof(gid_t));
  const size_t getgroups = batch.call(SYS_getgroups, {kFewGroups, supplementary});
  const size_t securebits = batch.call(SYS_prctl, {PR_GET_SECUREBITS, 0, 0, 0, 0});
  const size_t no_new_privs = batch.call(SYS_prctl, {PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0});
  const size_t dumpable = batch.call(SYS_prctl, {PR_GET_DUMPABLE, 0, 0, 0, 0});
  std::vector<size_t> bounding;
  std::vector<std::pair<int, size_t>> ambient;
  for (int cap = 0; cap < kCapabilities; ++cap) {
    bounding.push_back(batch.call(SYS_prctl, {PR_CAPBSET_READ, cap, 0, 0, 0}));
    // An ambient capability is permitted and inheritable too (capabilities(7)).
    if ((sets.permitted & sets.inheritable & capability_bit(cap)) != 0)
      ambient.emplace_back(
          cap, batch.call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0}));
  }
  return Collect(
      [=, host_tid = view.host_tid](const tracee::Batch& done) -> absl::StatusOr<std::string> {
        for (const size_t call : {resuid, resgid, fsuid, fsgid, securebits, no_new_privs, dumpable})
          GW_RETURN_IF_ERROR(done.check(call));
        CredentialsState state;
        state.set_real_uid(value_in<uid_t>(done, users, 0));
        state.set_effective_uid(value_in<uid_t>(done, users, 1));
        state.set_saved_uid(value_in<uid_t>(done, users, 2));
        state.set_fs_uid(static_cast<uid_t>(done.result(fsuid)));
        state.set_real_gid(value_in<gid_t>(done, groups, 0));
        state.set_effective_gid(value_in<gid_t>(done, groups, 1));
        state.set_saved_gid(value_in<gid_t>(done, groups, 2));
        state.set_fs_gid(static_cast<gid_t>(done.result(fsgid)));
        if (error_in(done.result(getgroups)) == EINVAL) {  // more than there was room for
          GW_ASSIGN_OR_RETURN(const kernel::TaskStatus status, kernel::read_task_status(host_tid));
          for (const uint32_t group : status.groups) state.add_groups(group);
        } else {
          GW_RETURN_IF_ERROR(done.check(getgroups));
          for (size_t i = 0; i < static_cast<size_t>(done.result(getgroups)); ++i)
            state.add_groups(value_in<gid_t>(done, supplementary, i));
        }
        state.set_inheritable(sets.inheritable);
        state.set_permitted(sets.permitted);
        state.set_effective(sets.effective);
        uint64_t bounding_set = 0;
        for (int cap = 0; cap < kCapabilities; ++cap)  // EINVAL: not of this kernel
          if (done.result(bounding[static_cast<size_t>(cap)]) == 1)
            bounding_set |= capability_bit(cap);
        state.set_bounding(bounding_set);
        uint64_t ambient_set = 0;
        for (const auto& [cap, call] : ambient)
          if (done.result(call) == 1) ambient_set |= capability_bit(cap);
        state.set_ambient(ambient_set);
        state.set_securebits(static_cast<uint32_t>(done.result(securebits)));
        state.set_no_new_privs(done.result(no_new_privs) == 1);
        state.set_dumpable(static_cast<uint32_t>(done.result(dumpable)));
        return state.SerializeAsString();
      });
}

// Users, groups, capabilities and securebits are in what `cred` points to; dumpable is the
// memory's.
std::optional<std::string> CredentialsResource::decided_by(const SeenTask& task) const {
  return fmt::format("{} {}", task.cred, task.atomic_flags);
}

absl::Status CredentialsResource::precheck(const TaskView& view,
                                           std::vector<Refusal>& refusals) const {
  struct stat theirs {};
  struct stat ours {};
  const std::string path = fmt::format("/proc/{}/ns/user", view.host_tid.value);
  if (::stat(path.c_str(), &theirs) != 0)
    return errno_status(errno, fmt::format("stat(\"{}\")", path));
  if (::stat("/proc/self/ns/user", &ours) != 0)
    return errno_status(errno, "stat(\"/proc/self/ns/user\")");
  const std::string object = fmt::format("process {}, task {}", view.tgid.value, view.tid.value);
  if (theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino)
    refusals.push_back({.code = "credentials.user_namespace",
                        .object = object,
                        .reason = "it is in a user namespace of its own",
                        .way_out = "run it without a user namespace (unshare -U, bwrap, rootless "
                                   "containers make one)"});
  const std::string label = label_of(std::to_string(view.host_tid.value));
  const std::string own = label_of("self");
  if (label != own)
    refusals.push_back(
        {.code = "credentials.lsm_label",
         .object = object,
         .reason = fmt::format("the security module's label is \"{}\", ours \"{}\"", label, own),
         .way_out = "run it unconfined, or godwit under the same profile"});
  return absl::OkStatus();
}

const TaskResource& credentials_resource() {
  static const CredentialsResource resource;
  return resource;
}

}  // namespace godwit::resource
