#include "resource/sysv_ipc/permissions.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "absl/cleanup/cleanup.h"
#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::resource {

void set_permissions(const ipc_perm& from, IpcPermissions& to) {
  to.set_key(from.__key);
  to.set_mode(from.mode & 0777U);
  to.set_uid(from.uid);
  to.set_gid(from.gid);
  to.set_creator_uid(from.cuid);
  to.set_creator_gid(from.cgid);
}

void set_permissions(const IpcPermissions& from, ipc_perm& to) {
  to.uid = from.uid();
  to.gid = from.gid();
  to.mode = static_cast<decltype(to.mode)>(from.mode() & 0777U);
}

absl::Status check_permissions(const IpcPermissions& permissions) {
  if (permissions.mode() <= 0777U) return absl::OkStatus();
  return make_error(absl::StatusCode::kDataLoss, "System V object of mode {:#o}",
                    permissions.mode());
}

absl::StatusOr<int> make_numbered(const char* next_id, int number, uint32_t creator_uid,
                                  uint32_t creator_gid, absl::FunctionRef<int()> make) {
  const std::string path = fmt::format("/proc/sys/kernel/{}", next_id);
  GW_ASSIGN_OR_RETURN(const UniqueFd next, kernel::open(path, O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(number);
  if (::write(next.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return errno_status(errno, fmt::format("write({}) to {}", text, next_id));
  // The C library's calls would change every thread's.
  if (::syscall(SYS_setresgid, -1, creator_gid, -1) != 0)
    return errno_status(errno, fmt::format("setresgid({})", creator_gid));
  absl::Cleanup group = [] { ::syscall(SYS_setresgid, -1, ::getgid(), -1); };
  if (::syscall(SYS_setresuid, -1, creator_uid, -1) != 0)
    return errno_status(errno, fmt::format("setresuid({})", creator_uid));
  absl::Cleanup user = [] { ::syscall(SYS_setresuid, -1, ::getuid(), -1); };
  const int made = make();
  if (made < 0) return errno_status(errno, fmt::format("making System V object {}", number));
  return made;
}

}  // namespace godwit::resource
