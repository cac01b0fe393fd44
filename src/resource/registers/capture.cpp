// Read after the batch: the batch gives a task its registers and mask back.
#include <elf.h>

#include <array>
#include <cstring>

#include "kernel/syscalls.h"
#include "resource/registers/registers.h"
#include "resource/registers/registers.pb.h"
#include "resource/state_codec.h"
#include "tracee/syscall_restart.h"

namespace godwit::resource {
namespace {

constexpr uint64_t kUserCs64 = 0x33;  // __USER_CS, arch/x86/include/asm/segment.h

}  // namespace

absl::StatusOr<TaskResource::Collect> RegistersResource::capture(const TaskView& view,
                                                                 tracee::Batch&) const {
  const tracee::StoppedTask* task = view.task;
  if (task == nullptr)
    return make_error(absl::StatusCode::kFailedPrecondition, "registers of running task {}",
                      view.host_tid.value);
  return Collect([task](const tracee::Batch&) -> absl::StatusOr<std::string> {
    GW_ASSIGN_OR_RETURN(tracee::Registers registers, task->registers());
    if (registers.cs != kUserCs64)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "task {} runs 32-bit code (cs {:#x}), which cannot move", task->tid().value,
                        uint64_t{registers.cs});
    GW_ASSIGN_OR_RETURN(const std::vector<std::byte> xstate, task->xstate());
    GW_ASSIGN_OR_RETURN(const uint64_t mask, task->signal_mask());
    // A call that was interrupted is still in them, as a restart code that the destination's
    // kernel acts on when the task first goes on there.
    GW_ASSIGN_OR_RETURN(registers, tracee::registers_for_elsewhere(task->tid(), registers));

    RegistersState state;
    std::array<uint64_t, sizeof(tracee::Registers) / sizeof(uint64_t)> general;
    static_assert(sizeof general == sizeof(tracee::Registers));
    std::memcpy(general.data(), &registers, sizeof general);
    for (const uint64_t value : general) state.add_general(value);
    state.set_xstate(xstate.data(), xstate.size());
    state.set_signal_mask(mask);
    return state.SerializeAsString();
  });
}

absl::Status RegistersResource::precheck(const TaskView& view,
                                         std::vector<Refusal>& refusals) const {
  if (!view.leader) return absl::OkStatus();
  const std::string path = fmt::format("/proc/{}/exe", view.host_tgid.value);
  // The program's file, not what it maps: a 64-bit one that jumps to 32-bit code is found by its
  // code segment at the capture.
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(path, O_RDONLY | O_CLOEXEC));
  std::array<unsigned char, EI_NIDENT> ident{};
  const ssize_t got = ::pread(fd.get(), ident.data(), ident.size(), 0);
  if (got < 0) return errno_status(errno, fmt::format("pread(\"{}\")", path));
  if (got > EI_CLASS && ident[EI_CLASS] != ELFCLASS64)
    refusals.push_back({.code = "registers.not_64_bit",
                        .object = fmt::format("process {}", view.tgid.value),
                        .reason = "it runs 32-bit code",
                        .way_out = "use a 64-bit build of the program"});
  return absl::OkStatus();
}

const TaskResource& registers_resource() {
  static const RegistersResource resource;
  return resource;
}

}  // namespace godwit::resource
