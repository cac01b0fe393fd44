#include <linux/rseq.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "base/status.h"
#include "resource/rseq/rseq.h"
#include "tracee/memory.h"

namespace godwit::resource {
namespace {

// A field of the target that it may have unmapped or filled with nonsense: the kernel ends the
// program for that (SIGSEGV) when it goes on, which is not ours to do.
template <typename T>
bool read_value(HostPid pid, uint64_t address, T& value) {
  return tracee::read_memory(pid, {address}, std::as_writable_bytes(std::span(&value, 1))).ok();
}

}  // namespace

absl::StatusOr<bool> leave_critical_section(tracee::StoppedTask& task) {
  GW_ASSIGN_OR_RETURN(const ptrace_rseq_configuration area, task.rseq());
  if (area.rseq_abi_pointer == 0) return false;
  const uint64_t pointer_at = area.rseq_abi_pointer + offsetof(struct rseq, rseq_cs);
  uint64_t descriptor_at = 0;
  if (!read_value(task.tid(), pointer_at, descriptor_at) || descriptor_at == 0) return false;

  // As rseq_ip_fixup (kernel/rseq.c): inside, of a known version, with a signed abort handler
  // outside.
  struct rseq_cs section {};
  if (!read_value(task.tid(), descriptor_at, section) || section.version != 0) return false;
  GW_ASSIGN_OR_RETURN(tracee::Registers registers, task.registers());
  if (registers.rip - section.start_ip >= section.post_commit_offset) return false;
  if (section.abort_ip - section.start_ip < section.post_commit_offset) return false;
  uint32_t signature = 0;
  if (!read_value(task.tid(), section.abort_ip - sizeof signature, signature) ||
      signature != area.signature)
    return false;

  constexpr uint64_t kNone = 0;
  GW_RETURN_IF_ERROR(
      tracee::write_memory(task.tid(), {pointer_at}, std::as_bytes(std::span(&kNone, 1))));
  registers.rip = section.abort_ip;
  GW_RETURN_IF_ERROR(task.set_registers(registers));
  return true;
}

}  // namespace godwit::resource
