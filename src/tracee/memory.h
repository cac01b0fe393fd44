// Memory of another process: process_vm_readv(2)/writev(2), and /proc/PID/mem for pages that those
// refuse (PROT_NONE, writes to read-only pages).
#ifndef GODWIT_TRACEE_MEMORY_H_
#define GODWIT_TRACEE_MEMORY_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "base/ids.h"

namespace godwit::tracee {

// Whole or error; a short transfer is an error that names the first address that failed.
absl::Status read_memory(HostPid pid, RemoteAddress from, std::span<std::byte> to);
absl::Status write_memory(HostPid pid, RemoteAddress to, std::span<const std::byte> from);

// Through /proc/PID/mem: protections do not matter (private read-only pages are copied first).
absl::Status read_memory_forced(HostPid pid, RemoteAddress from, std::span<std::byte> to);
absl::Status write_memory_forced(HostPid pid, RemoteAddress to, std::span<const std::byte> from);

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_MEMORY_H_
