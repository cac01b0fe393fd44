// The commands of bpf(2) that several parts need, spoken directly: no libbpf, no compiler at run
// time. Programs are written out with bpf_instructions.h.
#ifndef GODWIT_KERNEL_BPF_H_
#define GODWIT_KERNEL_BPF_H_

#include <linux/bpf.h>

#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace godwit::kernel::bpf {

// The raw call: -1 and errno.
long command(int command, bpf_attr& attr);

// One value of `value_size` bytes that can be mmapped (BPF_F_MMAPABLE, 5.5).
absl::StatusOr<UniqueFd> create_mmapable_value(const char* name, uint32_t value_size);

// One value of 8 bytes for each CPU.
absl::StatusOr<UniqueFd> create_value_of_cpus(const char* name);

// `attr` names the program's type and what goes with it. On refusal the error has the verifier's
// words.
absl::StatusOr<UniqueFd> load_program(bpf_attr attr, const char* name, const char* license,
                                      std::span<const bpf_insn> program);

// A program that the kernel calls for each object of a process (Documentation/bpf/bpf_iterators; a
// process's number: Linux 6.1). `function`: in the kernel's BTF, the id of bpf_iter_task_file or of
// another that iterates over what tasks have.
absl::StatusOr<UniqueFd> load_iterator(uint32_t function, const char* name,
                                       std::span<const bpf_insn> program);
// Runs it for every object of `process` now; one that writes nothing by itself.
absl::Status run_iterator(int program, HostPid process);

}  // namespace godwit::kernel::bpf

#endif  // GODWIT_KERNEL_BPF_H_
