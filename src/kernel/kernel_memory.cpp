#include "kernel/kernel_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/status.h"
#include "kernel/bpf.h"
#include "kernel/bpf_instructions.h"

namespace godwit::kernel {
namespace {

constexpr uint32_t kMost = 16384;  // bytes of one run

}  // namespace

// What we write, the program reads, and back.
struct KernelMemory::Shared {
  uint64_t from;
  uint32_t bytes;
  int32_t result;
  uint64_t task;  // struct task_struct of who runs it
  std::byte copy[kMost];
};

absl::StatusOr<std::unique_ptr<KernelMemory>> KernelMemory::open() {
  using namespace bpf;
  constexpr int kShared = 6;
  GW_ASSIGN_OR_RETURN(std::shared_ptr<const Btf> btf, Btf::of_kernel());
  std::unique_ptr<KernelMemory> memory(new KernelMemory(std::move(btf)));
  GW_ASSIGN_OR_RETURN(const UniqueFd map, create_mmapable_value("gw_kernel", sizeof(Shared)));
  std::vector<bpf_insn> code;
  load_value(code, kShared, map.get());
  code.push_back(call(BPF_FUNC_get_current_task));
  code.push_back(store(BPF_DW, kShared, 0, offsetof(Shared, task)));
  code.push_back(load32(2, kShared, offsetof(Shared, bytes)));
  code.push_back(jump_if(BPF_JGT, 2, kMost, 5));
  code.push_back(move(1, kShared));
  code.push_back(insn(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, offsetof(Shared, copy)));
  code.push_back(load64(3, kShared, offsetof(Shared, from)));
  code.push_back(call(BPF_FUNC_probe_read_kernel));
  code.push_back(store32(kShared, 0, offsetof(Shared, result)));
  code.push_back(set(0, 0));
  code.push_back(leave());
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
  GW_ASSIGN_OR_RETURN(memory->program_, load_program(attr, "gw_kernel", "GPL", code));
  void* at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(BPF array of kernel memory)");
  memory->shared_ = static_cast<Shared*>(at);
  return memory;
}

KernelMemory::~KernelMemory() {
  if (shared_ != nullptr) ::munmap(shared_, sizeof(Shared));
}

// The lock is held.
absl::Status KernelMemory::run(uint64_t from, uint32_t bytes) const {
  shared_->from = from;
  shared_->bytes = bytes;
  shared_->result = -EFAULT;
  bpf_attr attr{};
  attr.test.prog_fd = static_cast<uint32_t>(program_.get());
  if (bpf::command(BPF_PROG_TEST_RUN, attr) < 0)
    return errno_status(errno, "bpf(BPF_PROG_TEST_RUN, gw_kernel)");
  return absl::OkStatus();
}

// The lock is held.
absl::Status KernelMemory::read_some(uint64_t from, std::span<std::byte> to) const {
  GW_RETURN_IF_ERROR(run(from, static_cast<uint32_t>(to.size())));
  if (shared_->result != 0)
    return errno_status(-shared_->result,
                        fmt::format("bpf_probe_read_kernel({:#x}, {} bytes)", from, to.size()));
  std::memcpy(to.data(), shared_->copy, to.size());
  return absl::OkStatus();
}

absl::Status KernelMemory::read(KernelAddress from, std::span<std::byte> to) const {
  std::lock_guard lock(mutex_);
  for (size_t at = 0; at < to.size(); at += kMost)
    GW_RETURN_IF_ERROR(
        read_some(from.value + at, to.subspan(at, std::min<size_t>(kMost, to.size() - at))));
  return absl::OkStatus();
}

absl::StatusOr<KernelAddress> KernelMemory::member(KernelAddress at, std::string_view structure,
                                                   std::string_view path) const {
  GW_ASSIGN_OR_RETURN(const Btf::Field field, btf_->field(structure, path));
  return at + field.offset;
}

absl::StatusOr<uint64_t> KernelMemory::number(KernelAddress at, std::string_view structure,
                                              std::string_view path) const {
  GW_ASSIGN_OR_RETURN(const Btf::Field field, btf_->field(structure, path));
  uint64_t value = 0;  // little endian
  if (field.size > sizeof value)
    return make_error(absl::StatusCode::kUnimplemented, "{} of struct {} has {} bytes", path,
                      structure, field.size);
  GW_RETURN_IF_ERROR(
      read(at + field.offset, std::as_writable_bytes(std::span(&value, 1)).first(field.size)));
  return value;
}

absl::StatusOr<KernelAddress> KernelMemory::pointer(KernelAddress at, std::string_view structure,
                                                    std::string_view path) const {
  GW_ASSIGN_OR_RETURN(const uint64_t value, number(at, structure, path));
  return KernelAddress{value};
}

absl::StatusOr<KernelAddress> KernelMemory::file(int fd) const {
  if (fd < 0) return make_error(absl::StatusCode::kInvalidArgument, "descriptor {}", fd);
  KernelAddress task;
  {
    std::lock_guard lock(mutex_);
    GW_RETURN_IF_ERROR(run(0, 0));  // for the task alone
    task.value = shared_->task;
  }
  GW_ASSIGN_OR_RETURN(const KernelAddress files, pointer(task, "task_struct", "files"));
  GW_ASSIGN_OR_RETURN(const KernelAddress table, pointer(files, "files_struct", "fdt"));
  GW_ASSIGN_OR_RETURN(const uint64_t most, number(table, "fdtable", "max_fds"));
  if (static_cast<uint64_t>(fd) >= most)
    return make_error(absl::StatusCode::kNotFound, "descriptor {} is not open", fd);
  GW_ASSIGN_OR_RETURN(const KernelAddress array, pointer(table, "fdtable", "fd"));
  KernelAddress found;
  GW_RETURN_IF_ERROR(read(array + 8 * static_cast<uint64_t>(fd),
                          std::as_writable_bytes(std::span(&found.value, 1))));
  if (!found) return make_error(absl::StatusCode::kNotFound, "descriptor {} is not open", fd);
  return found;
}

}  // namespace godwit::kernel
