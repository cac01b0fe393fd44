// Reading the kernel's structures by a BPF program of the kind "iterator", which the kernel calls
// for each object of a process (Documentation/bpf/bpf_iterators.rst; for one process from Linux 6.1
// on). The program writes a record of ours about each, in memory that is shared with it. Where a
// member stands is known from the kernel's BTF, by name.
#ifndef GODWIT_KERNEL_BPF_VIEWS_H_
#define GODWIT_KERNEL_BPF_VIEWS_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/bpf_instructions.h"
#include "kernel/btf.h"

namespace godwit::kernel::bpf {

// Collects instructions; a member that is not there is remembered, and looked at once at the end.
class ViewProgram {
 public:
  // Registers: the iterator's context; a structure of the kernel's, at first the object; our
  // record. Others are free between two calls.
  static constexpr int kContext = 6, kFrom = 7, kView = 9;

  explicit ViewProgram(const Btf& btf) : btf_(btf) {}

  const Btf& btf() const { return btf_; }
  void add(bpf_insn instruction) { code_.push_back(instruction); }
  // dst = src->path, a pointer or a number.
  void follow(int dst, int src, std::string_view structure, std::string_view path);
  // The record's member at `to` = kFrom->path, in pieces of four bytes where it is an array or a
  // structure.
  template <typename T>
  void copy(size_t to, std::string_view structure, std::string_view path) {
    copy(to, sizeof(T), std::is_integral_v<T> ? sizeof(T) : 4, structure, path);
  }
  void leave_if(int condition, int reg, uint32_t number);
  std::vector<bpf_insn>& code() { return code_; }
  absl::StatusOr<std::vector<bpf_insn>> finish();

 private:
  void copy(size_t to, size_t bytes, size_t piece, std::string_view structure,
            std::string_view path);
  Btf::Field find(std::string_view structure, std::string_view path);

  const Btf& btf_;
  std::vector<bpf_insn> code_;
  std::vector<size_t> leaving_;
  absl::Status status_;
};

class Views {
 public:
  struct Kind {
    const char* name;           // of the program, for bpftool(8)
    std::string_view function;  // "bpf_iter_task_file"
    std::string_view context;   // "bpf_iter__task_file"
    std::string_view member;    // of the context: the object
    size_t record_bytes;        // a multiple of 8
  };
  // Records of at most `capacity` objects. `build` writes each. kNotFound, kUnimplemented, EPERM
  // and others: this kernel has none.
  static absl::StatusOr<Views> open(const Kind& kind, uint32_t capacity,
                                    absl::FunctionRef<void(ViewProgram&)> build);
  Views(Views&& other) noexcept;
  Views& operator=(Views&&) = delete;
  ~Views();

  // How many there are; kOutOfRange: more than open() was told.
  absl::StatusOr<size_t> read(HostPid process);
  const void* records() const;
  uint32_t capacity() const { return capacity_; }

 private:
  struct Shared;
  Views() = default;
  UniqueFd program_;
  Shared* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  uint32_t capacity_ = 0;
};

}  // namespace godwit::kernel::bpf

#endif  // GODWIT_KERNEL_BPF_VIEWS_H_
