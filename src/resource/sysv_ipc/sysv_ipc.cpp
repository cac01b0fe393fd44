#include "resource/sysv_ipc/sysv_ipc.h"

#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "base/status.h"
#include "kernel/huge_pages.h"
#include "resource/sysv_ipc/permissions.h"

namespace godwit::resource {
namespace {

// <linux/shm.h>: where the C library has them, it needs _GNU_SOURCE.
constexpr int kShmInfo = 14;
constexpr int kShmStatAny = 15;
constexpr uint32_t kShmDest = 01000;
constexpr uint32_t kShmLocked = 02000;

constexpr std::string_view kPrefix = "/SYSV";

std::string name_of(int key) {
  return fmt::format("{}{:08x}", kPrefix, static_cast<unsigned>(key));
}

absl::StatusOr<int> key_of(std::string_view path) {
  const std::string digits(path.substr(std::min(path.size(), kPrefix.size())));
  unsigned key = 0;
  int used = 0;
  if (!path.starts_with(kPrefix) || std::sscanf(digits.c_str(), "%8x%n", &key, &used) != 1 ||
      static_cast<size_t>(used) != digits.size())
    return make_error(absl::StatusCode::kDataLoss, "\"{}\" is no name of a segment", path);
  return static_cast<int>(key);
}

SharedObjectState state_of(int shmid, const shmid_ds& ds) {
  SharedObjectState state;
  state.set_id(object_of_segment(static_cast<uint64_t>(shmid)));
  state.set_size(ds.shm_segsz);
  state.set_path(name_of(ds.shm_perm.__key));
  SharedObjectState::Segment& segment = *state.mutable_segment();
  segment.set_shmid(shmid);
  segment.set_key(ds.shm_perm.__key);
  segment.set_mode(ds.shm_perm.mode & 0777U);
  segment.set_uid(ds.shm_perm.uid);
  segment.set_gid(ds.shm_perm.gid);
  segment.set_creator_uid(ds.shm_perm.cuid);
  segment.set_creator_gid(ds.shm_perm.cgid);
  segment.set_removed((ds.shm_perm.mode & kShmDest) != 0);
  segment.set_locked((ds.shm_perm.mode & kShmLocked) != 0);
  return state;
}

}  // namespace

bool is_segment_name(std::string_view path) { return path.starts_with(kPrefix); }

absl::StatusOr<std::vector<SharedObjectState>> read_segments() {
  std::vector<SharedObjectState> all;
  shm_info info{};
  const int last = ::shmctl(0, kShmInfo, reinterpret_cast<shmid_ds*>(&info));
  if (last < 0) return errno_status(errno, "shmctl(SHM_INFO)");
  if (info.used_ids == 0) return all;
  for (int index = 0; index <= last; ++index) {
    shmid_ds ds{};
    const int shmid = ::shmctl(index, kShmStatAny, &ds);
    if (shmid < 0 && (errno == EINVAL || errno == EIDRM)) continue;  // not used, or just removed
    if (shmid < 0) return errno_status(errno, fmt::format("shmctl({}, SHM_STAT_ANY)", index));
    all.push_back(state_of(shmid, ds));
  }
  return all;
}

absl::StatusOr<void*> attach_segment(int shmid, bool read_only) {
  void* memory = ::shmat(shmid, nullptr, attach_flags(!read_only, false));
  // shmat(2): (void*)-1
  if (reinterpret_cast<intptr_t>(memory) == -1)
    return errno_status(errno, fmt::format("shmat({})", shmid));
  return memory;
}

int attach_flags(bool write, bool execute) {
  return (write ? 0 : SHM_RDONLY) | (execute ? SHM_EXEC : 0);
}

absl::Status make_segment(const SharedObjectState& state) {
  const SharedObjectState::Segment& segment = state.segment();
  // One that is marked for removal has the name of the key that it had.
  GW_ASSIGN_OR_RETURN(const int key, key_of(state.path()));
  // SHM_HUGE_SHIFT (<linux/shm.h>) is that of mmap(2).
  const int huge =
      state.huge_page_bytes() == 0
          ? 0
          : SHM_HUGETLB | static_cast<int>(kernel::huge_size_flag(state.huge_page_bytes()));
  GW_ASSIGN_OR_RETURN(
      const int made,
      make_numbered(
          "shm_next_id", segment.shmid(), segment.creator_uid(), segment.creator_gid(), [&] {
            return ::shmget(key, state.size(),
                            IPC_CREAT | IPC_EXCL | huge | static_cast<int>(segment.mode() & 0777U) |
                                (segment.no_reserve() ? SHM_NORESERVE : 0));
          }));
  if (made == segment.shmid()) return absl::OkStatus();
  ::shmctl(made, IPC_RMID, nullptr);
  return make_error(absl::StatusCode::kInternal, "segment {} became number {}", segment.shmid(),
                    made);
}

absl::Status set_segment(const SharedObjectState& state) {
  const SharedObjectState::Segment& segment = state.segment();
  const int shmid = segment.shmid();
  shmid_ds ds{};
  if (::shmctl(shmid, IPC_STAT, &ds) != 0)
    return errno_status(errno, fmt::format("shmctl({}, IPC_STAT)", shmid));
  const SharedObjectState now = state_of(shmid, ds);
  const auto control = [&](int command, const char* name) -> absl::Status {
    if (::shmctl(shmid, command, &ds) == 0) return absl::OkStatus();
    return errno_status(errno, fmt::format("shmctl({}, {})", shmid, name));
  };
  if (now.segment().uid() != segment.uid() || now.segment().gid() != segment.gid() ||
      now.segment().mode() != segment.mode()) {
    ds.shm_perm.uid = segment.uid();
    ds.shm_perm.gid = segment.gid();
    ds.shm_perm.mode = static_cast<decltype(ds.shm_perm.mode)>(segment.mode() & 0777U);
    GW_RETURN_IF_ERROR(control(IPC_SET, "IPC_SET"));
  }
  if (now.segment().locked() != segment.locked())
    GW_RETURN_IF_ERROR(segment.locked() ? control(SHM_LOCK, "SHM_LOCK")
                                        : control(SHM_UNLOCK, "SHM_UNLOCK"));
  if (segment.removed() && !now.segment().removed())
    GW_RETURN_IF_ERROR(control(IPC_RMID, "IPC_RMID"));
  return absl::OkStatus();
}

absl::Status remove_segment(int shmid) {
  if (::shmctl(shmid, IPC_RMID, nullptr) != 0 && errno != EINVAL && errno != EIDRM)
    return errno_status(errno, fmt::format("shmctl({}, IPC_RMID)", shmid));
  return absl::OkStatus();
}

}  // namespace godwit::resource
