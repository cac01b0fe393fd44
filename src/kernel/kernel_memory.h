// The running kernel's own memory, read only: for state that no call tells. A BPF program copies it
// out (bpf_probe_read_kernel(), which fails where nothing is mapped), BTF says where members are.
// Needs CAP_BPF and CAP_PERFMON, CONFIG_DEBUG_INFO_BTF, and no lockdown=confidentiality.
//
// What is read may change under the reader: whoever reads makes sure that it stands still, or looks
// twice.
#ifndef GODWIT_KERNEL_KERNEL_MEMORY_H_
#define GODWIT_KERNEL_KERNEL_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/btf.h"

namespace godwit::kernel {

// A place in the kernel's memory.
struct KernelAddress {
  uint64_t value = 0;
  KernelAddress operator+(uint64_t bytes) const { return {value + bytes}; }
  bool operator==(const KernelAddress&) const = default;
  explicit operator bool() const { return value != 0; }
};

// Any thread; one at a time goes on.
class KernelMemory {
 public:
  // Some ten milliseconds: in the rounds, not in a freeze.
  static absl::StatusOr<std::unique_ptr<KernelMemory>> open();
  ~KernelMemory();

  const Btf& btf() const { return *btf_; }
  absl::Status read(KernelAddress from, std::span<std::byte> to) const;
  // A member of the structure at `at`: pointers are followed by calls of their own.
  absl::StatusOr<KernelAddress> pointer(KernelAddress at, std::string_view structure,
                                        std::string_view path) const;
  // Of 1, 2, 4 or 8 bytes, without a sign.
  absl::StatusOr<uint64_t> number(KernelAddress at, std::string_view structure,
                                  std::string_view path) const;
  // Where the member itself stands.
  absl::StatusOr<KernelAddress> member(KernelAddress at, std::string_view structure,
                                       std::string_view path) const;
  // The struct file behind descriptor `fd` of this process.
  absl::StatusOr<KernelAddress> file(int fd) const;
  // The struct task_struct of a task. ESRCH: it has ended.
  absl::StatusOr<KernelAddress> task(HostPid pid) const;

  // What a pointer to data of each CPU (alloc_percpu()) stands for: where it is of each possible
  // one. Some milliseconds at the first call: in the rounds.
  absl::StatusOr<std::vector<KernelAddress>> of_cpus(KernelAddress per_cpu) const;
  // References that a struct percpu_ref counts, without the one that it is born with. While none
  // can come, 0 is sure: what is counted only falls while the CPUs are looked at one by one.
  absl::StatusOr<int64_t> references(KernelAddress percpu_ref) const;

 private:
  struct Shared;
  explicit KernelMemory(std::shared_ptr<const Btf> btf) : btf_(std::move(btf)) {}
  absl::Status run(uint64_t from, uint32_t bytes) const;
  absl::Status read_some(uint64_t from, std::span<std::byte> to) const;
  absl::StatusOr<std::vector<uint64_t>> find_cpus() const;

  std::shared_ptr<const Btf> btf_;
  UniqueFd program_;
  Shared* shared_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::mutex cpus_mutex_;
  mutable std::vector<uint64_t> cpus_;  // where each CPU's data is, beside what pointers say
};

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_KERNEL_MEMORY_H_
