#include "resource/sysv_ipc/semaphores.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/state_codec.h"
#include "resource/sysv_ipc/permissions.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;

constexpr int kSemStatAny = 20;  // <linux/sem.h>, Linux 4.17
constexpr int kSemInfo = 19;
constexpr uint32_t kMostValue = 32767;  // SEMVMX
constexpr int kMostSemaphores = 32000;  // SEMMSL
constexpr int kMostUndo = 1 << 20;

union Argument {
  int value;
  semid_ds* stat;
  unsigned short* values;
  seminfo* info;
};

absl::Status read_undo_list(const kernel::KernelMemory& memory, KernelAddress list, ImagePid pid,
                            std::map<int32_t, SemaphoreSetState*>& sets) {
  GW_ASSIGN_OR_RETURN(const KernelAddress head, memory.member(list, "sem_undo_list", "list_proc"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field inside, memory.btf().field("sem_undo", "list_proc"));
  KernelAddress at = head;
  for (int i = 0; i < kMostUndo; ++i) {
    GW_ASSIGN_OR_RETURN(at, memory.pointer(at, "list_head", "next"));
    if (at == head || !at) return absl::OkStatus();
    const KernelAddress undo{at.value - inside.offset};
    GW_ASSIGN_OR_RETURN(const uint64_t number, memory.number(undo, "sem_undo", "semid"));
    const auto found = sets.find(static_cast<int32_t>(number));
    if (found == sets.end()) continue;  // of a set that was removed: -1
    SemaphoreSetState& set = *found->second;
    std::vector<int16_t> changes(static_cast<size_t>(set.values_size()));
    GW_ASSIGN_OR_RETURN(const KernelAddress array, memory.member(undo, "sem_undo", "semadj"));
    GW_RETURN_IF_ERROR(memory.read(array, std::as_writable_bytes(std::span(changes))));
    for (size_t index = 0; index < changes.size(); ++index) {
      if (changes[index] == 0) continue;
      SemaphoreSetState::Undo& one = *set.add_undo();
      one.set_pid(pid.value);
      one.set_index(static_cast<uint32_t>(index));
      one.set_change(changes[index]);
    }
  }
  return absl::UnavailableError("a list of undo values has no end");
}

}  // namespace

absl::StatusOr<std::vector<SemaphoreSetState>> read_semaphores() {
  std::vector<SemaphoreSetState> sets;
  seminfo info{};
  Argument argument{};
  argument.info = &info;
  const int last = ::semctl(0, 0, kSemInfo, argument);
  if (last < 0) return errno_status(errno, "semctl(SEM_INFO)");
  if (info.semusz == 0) return sets;
  for (int index = 0; index <= last; ++index) {
    semid_ds ds{};
    argument.stat = &ds;
    const int number = ::semctl(index, 0, kSemStatAny, argument);
    if (number < 0 && (errno == EINVAL || errno == EIDRM)) continue;  // not used, or just removed
    if (number < 0) return errno_status(errno, fmt::format("semctl({}, SEM_STAT_ANY)", index));
    std::vector<unsigned short> values(ds.sem_nsems);
    argument.values = values.data();
    if (::semctl(number, 0, GETALL, argument) != 0) {
      if (errno == EINVAL || errno == EIDRM) continue;
      return errno_status(errno, fmt::format("semctl({}, GETALL)", number));
    }
    SemaphoreSetState& set = sets.emplace_back();
    set.set_number(number);
    set_permissions(ds.sem_perm, *set.mutable_permissions());
    for (const unsigned short value : values) set.add_values(value);
  }
  return sets;
}

absl::Status read_undo(std::span<const std::pair<ImagePid, HostPid>> processes,
                       const kernel::KernelMemory& memory, std::vector<SemaphoreSetState>& sets) {
  std::map<int32_t, SemaphoreSetState*> by_number;
  for (SemaphoreSetState& set : sets) {
    set.clear_undo();
    by_number[set.number()] = &set;
  }
  std::set<uint64_t> seen;
  for (const auto& [pid, host] : processes) {
    const auto task = memory.task(host);
    if (errno_of(task.status()) == ESRCH || errno_of(task.status()) == ENOENT) continue;
    GW_RETURN_IF_ERROR(task.status());
    GW_ASSIGN_OR_RETURN(const KernelAddress list,
                        memory.pointer(*task, "task_struct", "sysvsem.undo_list"));
    if (!list) continue;
    if (!seen.insert(list.value).second)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "process {} shares what its end gives back to semaphores with another one "
                        "(CLONE_SYSVSEM)",
                        pid.value);
    GW_RETURN_IF_ERROR(read_undo_list(memory, list, pid, by_number));
  }
  for (SemaphoreSetState& set : sets)
    std::sort(set.mutable_undo()->begin(), set.mutable_undo()->end(),
              [](const auto& a, const auto& b) {
                return std::pair(a.pid(), a.index()) < std::pair(b.pid(), b.index());
              });
  return absl::OkStatus();
}

absl::StatusOr<SemaphoreSetState> parse_semaphores(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<SemaphoreSetState>(bytes, "semaphores"));
  GW_RETURN_IF_ERROR(check_permissions(state.permissions()));
  bool right =
      state.number() >= 0 && state.values_size() > 0 && state.values_size() <= kMostSemaphores;
  for (const uint32_t value : state.values()) right = right && value <= kMostValue;
  for (const auto& undo : state.undo())
    right = right && undo.index() < static_cast<uint32_t>(state.values_size()) &&
            undo.change() != 0 && std::abs(int64_t{undo.change()}) <= kMostValue;
  if (!right) return make_error(absl::StatusCode::kDataLoss, "semaphores: values out of range");
  return state;
}

absl::Status make_semaphores(const SemaphoreSetState& state) {
  const IpcPermissions& permissions = state.permissions();
  GW_ASSIGN_OR_RETURN(
      const int made,
      make_numbered("sem_next_id", state.number(), permissions.creator_uid(),
                    permissions.creator_gid(), [&] {
                      return ::semget(permissions.key(), state.values_size(),
                                      IPC_CREAT | IPC_EXCL | static_cast<int>(permissions.mode()));
                    }));
  const auto set_up = [&]() -> absl::Status {
    if (made != state.number())
      return make_error(absl::StatusCode::kInternal, "semaphore set {} became number {}",
                        state.number(), made);
    semid_ds ds{};
    Argument argument{};
    argument.stat = &ds;
    if (::semctl(made, 0, IPC_STAT, argument) != 0)
      return errno_status(errno, fmt::format("semctl({}, IPC_STAT)", made));
    set_permissions(permissions, ds.sem_perm);
    if (::semctl(made, 0, IPC_SET, argument) != 0)
      return errno_status(errno, fmt::format("semctl({}, IPC_SET)", made));
    std::vector<int64_t> wanted(state.values().begin(), state.values().end());
    for (const auto& undo : state.undo()) wanted[undo.index()] += undo.change();
    std::vector<unsigned short> values;
    for (const int64_t value : wanted) {
      if (value < 0 || value > kMostValue)
        return make_error(absl::StatusCode::kUnimplemented,
                          "semaphore set {}: what processes would give back leads out of range",
                          made);
      values.push_back(static_cast<unsigned short>(value));
    }
    argument.values = values.data();
    if (::semctl(made, 0, SETALL, argument) != 0)
      return errno_status(errno, fmt::format("semctl({}, SETALL)", made));
    return absl::OkStatus();
  };
  const absl::Status status = set_up();
  if (!status.ok()) ::semctl(made, 0, IPC_RMID);
  return status;
}

void add_undo_calls(const SemaphoreSetState& state, ImagePid pid, tracee::Batch& batch) {
  for (const auto& undo : state.undo()) {
    if (undo.pid() != pid.value) continue;
    sembuf operation{};
    operation.sem_num = static_cast<unsigned short>(undo.index());
    operation.sem_op = static_cast<short>(-undo.change());
    operation.sem_flg = static_cast<short>(SEM_UNDO | IPC_NOWAIT);
    const auto data = batch.data(std::as_bytes(std::span(&operation, 1)));
    batch.call(SYS_semop, {state.number(), data, 1}, true);
  }
}

}  // namespace godwit::resource
