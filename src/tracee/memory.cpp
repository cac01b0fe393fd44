// process_vm_readv(2) stops at the first page it may not access and then gives a short count;
// /proc/PID/mem uses FOLL_FORCE, for which protections do not matter.
#include "tracee/memory.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit::tracee {
namespace {

absl::StatusOr<UniqueFd> open_memory(HostPid pid, int flags) {
  UniqueFd fd(::open(fmt::format("/proc/{}/mem", pid.value).c_str(), flags | O_CLOEXEC));
  if (!fd) {
    const int error = errno == ENOENT ? ESRCH : errno;
    return errno_status(error, fmt::format("open(\"/proc/{}/mem\")", pid.value));
  }
  return fd;
}

// `transfer(address, bytes done so far)` moves what it can and gives read(2)'s result.
template <typename Transfer>
absl::Status whole(std::string_view name, HostPid pid, RemoteAddress address, size_t size,
                   Transfer transfer) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = transfer(address.value + done, done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return errno_status(errno, fmt::format("{}({}, {:#x}, {})", name, pid.value,
                                             address.value + done, size - done));
    }
    // /proc/PID/mem gives 0 when the address space is gone.
    if (got == 0) {
      return errno_status(ESRCH, fmt::format("{}({}, {:#x}, {})", name, pid.value,
                                             address.value + done, size - done));
    }
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status read_memory(HostPid pid, RemoteAddress from, std::span<std::byte> to) {
  return whole("process_vm_readv", pid, from, to.size(), [&](uint64_t address, size_t done) {
    const iovec local{.iov_base = to.data() + done, .iov_len = to.size() - done};
    const iovec remote{.iov_base = reinterpret_cast<void*>(address), .iov_len = local.iov_len};
    return ::process_vm_readv(pid.value, &local, 1, &remote, 1, 0);
  });
}

absl::Status write_memory(HostPid pid, RemoteAddress to, std::span<const std::byte> from) {
  return whole("process_vm_writev", pid, to, from.size(), [&](uint64_t address, size_t done) {
    const iovec local{.iov_base = const_cast<std::byte*>(from.data()) + done,
                      .iov_len = from.size() - done};
    const iovec remote{.iov_base = reinterpret_cast<void*>(address), .iov_len = local.iov_len};
    return ::process_vm_writev(pid.value, &local, 1, &remote, 1, 0);
  });
}

absl::Status read_memory_forced(HostPid pid, RemoteAddress from, std::span<std::byte> to) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_memory(pid, O_RDONLY));
  return whole("pread(mem)", pid, from, to.size(), [&](uint64_t address, size_t done) {
    return ::pread(fd.get(), to.data() + done, to.size() - done, static_cast<off_t>(address));
  });
}

absl::Status write_memory_forced(HostPid pid, RemoteAddress to, std::span<const std::byte> from) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, open_memory(pid, O_RDWR));
  return whole("pwrite(mem)", pid, to, from.size(), [&](uint64_t address, size_t done) {
    return ::pwrite(fd.get(), from.data() + done, from.size() - done, static_cast<off_t>(address));
  });
}

}  // namespace godwit::tracee
