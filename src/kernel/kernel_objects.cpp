// Of the kernel's memory what has no fixed place: tasks by number, data of each CPU.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/status.h"
#include "kernel/bpf.h"
#include "kernel/bpf_instructions.h"
#include "kernel/kernel_memory.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

constexpr uint32_t kMostCpus = 8192;  // NR_CPUS of x86-64 at most

struct CpuAsked {
  uint32_t cpu;
  uint32_t unused;
  uint64_t address;  // of its value
};

}  // namespace

// By the inode of /proc/PID: it knows the struct pid, whose first list is of the task.
absl::StatusOr<KernelAddress> KernelMemory::task(HostPid pid) const {
  GW_ASSIGN_OR_RETURN(const UniqueFd folder, kernel::open(fmt::format("/proc/{}", pid.value),
                                                          O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  GW_ASSIGN_OR_RETURN(const KernelAddress file, this->file(folder.get()));
  GW_ASSIGN_OR_RETURN(const KernelAddress inode, pointer(file, "file", "f_inode"));
  GW_ASSIGN_OR_RETURN(const Btf::Field inside, btf_->field("proc_inode", "vfs_inode"));
  GW_ASSIGN_OR_RETURN(const KernelAddress number,
                      pointer({inode.value - inside.offset}, "proc_inode", "pid"));
  // An array of struct hlist_head, of which PIDTYPE_PID is the first.
  GW_ASSIGN_OR_RETURN(const KernelAddress lists, member(number, "pid", "tasks"));
  GW_ASSIGN_OR_RETURN(const KernelAddress link, pointer(lists, "hlist_head", "first"));
  if (!link) return errno_status(ESRCH, fmt::format("process {}", pid.value));
  GW_ASSIGN_OR_RETURN(const Btf::Field links, btf_->field("task_struct", "pid_links"));
  return KernelAddress{link.value - links.offset};
}

// Of an array of ours we ask where each CPU's value is (bpf_map_lookup_percpu_elem(), Linux 5.19),
// and of the kernel's memory what pointer it has to all of them (struct bpf_array): every pointer
// of the kind is as far away from each CPU's data. No symbol tells (CONFIG_KALLSYMS_ALL).
absl::StatusOr<std::vector<uint64_t>> KernelMemory::find_cpus() const {
  using namespace bpf;
  constexpr int kAsked = 6;
  constexpr int kKey = -4;
  constexpr int kStack = BPF_REG_10;
  constexpr int kLookupOfCpu = 195;  // BPF_FUNC_map_lookup_percpu_elem, <linux/bpf.h>
  GW_ASSIGN_OR_RETURN(const UniqueFd values, create_value_of_cpus("gw_cpus"));
  GW_ASSIGN_OR_RETURN(const UniqueFd shared, create_mmapable_value("gw_cpu", sizeof(CpuAsked)));
  std::vector<bpf_insn> code;
  load_value(code, kAsked, shared.get());
  code.push_back(set(0, 0));
  code.push_back(store32(kStack, 0, kKey));
  load_map(code, 1, values.get());
  code.push_back(move(2, kStack));
  code.push_back(insn(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, kKey));
  code.push_back(load32(3, kAsked, offsetof(CpuAsked, cpu)));
  code.push_back(call(kLookupOfCpu));
  code.push_back(store(BPF_DW, kAsked, 0, offsetof(CpuAsked, address)));
  code.push_back(set(0, 0));
  code.push_back(leave());
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
  GW_ASSIGN_OR_RETURN(const UniqueFd program, load_program(attr, "gw_cpus", "GPL", code));
  GW_ASSIGN_OR_RETURN(const KernelAddress file, this->file(values.get()));
  GW_ASSIGN_OR_RETURN(const KernelAddress map, pointer(file, "file", "private_data"));
  GW_ASSIGN_OR_RETURN(const KernelAddress pointers, member(map, "bpf_array", "pptrs"));
  uint64_t per_cpu = 0;
  GW_RETURN_IF_ERROR(read(pointers, std::as_writable_bytes(std::span(&per_cpu, 1))));
  void* at = ::mmap(nullptr, sizeof(CpuAsked), PROT_READ | PROT_WRITE, MAP_SHARED, shared.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(BPF array of a CPU)");
  auto* asked = static_cast<CpuAsked*>(at);
  std::vector<uint64_t> cpus;
  absl::Status status;
  for (uint32_t cpu = 0; cpu < kMostCpus; ++cpu) {
    asked->cpu = cpu;
    asked->address = 0;
    bpf_attr run{};
    run.test.prog_fd = static_cast<uint32_t>(program.get());
    if (bpf::command(BPF_PROG_TEST_RUN, run) < 0) {
      status = errno_status(errno, "bpf(BPF_PROG_TEST_RUN, gw_cpus)");
      break;
    }
    if (asked->address == 0) break;  // there is none of that number, nor a higher one
    cpus.push_back(asked->address - per_cpu);
  }
  ::munmap(at, sizeof(CpuAsked));
  GW_RETURN_IF_ERROR(status);
  if (cpus.empty()) return absl::UnimplementedError("the kernel does not say where CPUs' data is");
  return cpus;
}

absl::StatusOr<std::vector<KernelAddress>> KernelMemory::of_cpus(KernelAddress per_cpu) const {
  std::lock_guard lock(cpus_mutex_);
  if (cpus_.empty()) {
    GW_ASSIGN_OR_RETURN(cpus_, find_cpus());
  }
  std::vector<KernelAddress> all;
  all.reserve(cpus_.size());
  for (const uint64_t offset : cpus_) all.push_back({per_cpu.value + offset});
  return all;
}

// <linux/percpu-refcount.h>: the two lowest bits of the pointer say that it counts in one place now
// (atomic), or is at its end (dead).
absl::StatusOr<int64_t> KernelMemory::references(KernelAddress ref) const {
  constexpr uint64_t kFlags = 3;
  GW_ASSIGN_OR_RETURN(const uint64_t place, number(ref, "percpu_ref", "percpu_count_ptr"));
  if ((place & kFlags) != 0) {
    GW_ASSIGN_OR_RETURN(const KernelAddress data, pointer(ref, "percpu_ref", "data"));
    GW_ASSIGN_OR_RETURN(const uint64_t count, number(data, "percpu_ref_data", "count.counter"));
    return static_cast<int64_t>(count) - 1;
  }
  GW_ASSIGN_OR_RETURN(const std::vector<KernelAddress> cpus, of_cpus({place}));
  int64_t sum = 0;
  for (const KernelAddress at : cpus) {
    int64_t count = 0;
    GW_RETURN_IF_ERROR(read(at, std::as_writable_bytes(std::span(&count, 1))));
    sum += count;
  }
  return sum;
}

}  // namespace godwit::kernel
