// What the kinds of files have in common: status flags, the fdinfo text, who is in the service.
#ifndef GODWIT_RESOURCE_FILE_DESCRIPTION_H_
#define GODWIT_RESOURCE_FILE_DESCRIPTION_H_

#include <fcntl.h>
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/syscalls.h"
#include "resource/resource.h"

namespace godwit::resource {

// "process 12, descriptor 7 -> /dev/kvm"
inline std::string object_of(const OpenFile& file) {
  return fmt::format("process {}, descriptor {} -> {}", file.tgid.value, file.remote_fd, file.link);
}

inline void refuse(const OpenFile& file, std::string code, std::string reason, std::string way_out,
                   std::vector<Refusal>& refusals) {
  refusals.push_back({std::move(code), object_of(file), std::move(reason), std::move(way_out)});
}

// For capture(): the refusal as an error, when what the precheck looks for came up after it.
inline absl::Status refused_now(const std::vector<Refusal>& refusals) {
  if (refusals.empty()) return absl::OkStatus();
  return make_error(absl::StatusCode::kFailedPrecondition, "{}: {}: {}", refusals[0].object,
                    refusals[0].code, refusals[0].reason);
}

// The text that the engine has read, or read now through our own duplicate: all lines but those of
// locks, which belong to a process, are the description's.
inline absl::StatusOr<kernel::FdInfo> fdinfo_of(const OpenFile& file) {
  if (!file.fdinfo.empty()) return kernel::parse_fdinfo(file.fdinfo);
  GW_ASSIGN_OR_RETURN(const std::string text,
                      kernel::read_file(fmt::format("/proc/self/fdinfo/{}", file.fd)));
  return kernel::parse_fdinfo(text);
}

// A process, or the leader of a group, that runs or is a zombie in the service's pid namespace.
inline absl::StatusOr<bool> in_service(HostPid pid, const CaptureContext& context) {
  const auto of = [](HostPid one) {
    return kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/ns/pid", one.value));
  };
  const auto theirs = of(pid);
  if (errno_of(theirs.status()) == ENOENT || errno_of(theirs.status()) == ESRCH) return false;
  GW_RETURN_IF_ERROR(theirs.status());
  GW_ASSIGN_OR_RETURN(const std::string ours, of(context.init_pid()));
  return *theirs == ours;
}

// The flags that fcntl(F_SETFL) can change but O_ASYNC (signal_owner/).
inline constexpr int kSettableFlags = O_APPEND | O_DIRECT | O_NOATIME | O_NONBLOCK;

inline absl::Status set_status_flags(int fd, int flags) {
  const int now = ::fcntl(fd, F_GETFL);
  if (now < 0) return errno_status(errno, fmt::format("fcntl({}, F_GETFL)", fd));
  if (((now ^ flags) & kSettableFlags) == 0) return absl::OkStatus();
  // O_NOATIME needs the owner of the file or CAP_FOWNER.
  if (::fcntl(fd, F_SETFL, flags & kSettableFlags) != 0) {
    return errno_status(errno, fmt::format("fcntl({}, F_SETFL, {:#o})", fd, flags));
  }
  return absl::OkStatus();
}

// Another description of the same inode: opening the link of /proc goes to the file itself, which
// O_NOFOLLOW would refuse.
inline absl::StatusOr<UniqueFd> reopen(int fd, int flags) {
  return kernel::open(fmt::format("/proc/self/fd/{}", fd), flags & ~O_NOFOLLOW);
}

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FILE_DESCRIPTION_H_
