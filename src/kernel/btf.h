// What the running kernel's structures look like: BTF (Documentation/bpf/btf.rst, linux/btf.h) from
// /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF, as Debian's kernels have it).
#ifndef GODWIT_KERNEL_BTF_H_
#define GODWIT_KERNEL_BTF_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct btf_type;

namespace godwit::kernel {

class Btf {
 public:
  // The same one for all of this process: 5 MB of text, some 15 ms to read.
  static absl::StatusOr<std::shared_ptr<const Btf>> of_kernel();
  // `bytes` may be anything.
  static absl::StatusOr<Btf> parse(std::string bytes);

  // The id of a function, for bpf(2).
  absl::StatusOr<uint32_t> function(std::string_view name) const;

  struct Field {
    uint32_t offset = 0;  // bytes from the beginning of the outermost structure
    uint32_t size = 0;    // bytes of the whole member, an array included; 0: one without a length
  };
  // "sk_backlog.len" of "sock": through structures and unions inside, named or not, never through
  // pointers. kNotFound: this kernel has no such member. No bit fields.
  absl::StatusOr<Field> field(std::string_view structure, std::string_view path) const;
  // Bytes of the structure.
  absl::StatusOr<uint32_t> size(std::string_view structure) const;

 private:
  struct Member {
    uint32_t offset = 0;
    uint32_t type = 0;
  };
  const btf_type* type(uint32_t id) const;
  std::string_view text(uint32_t offset) const;
  // Without typedef, const and the like; 0 if that leads nowhere.
  uint32_t resolve(uint32_t id) const;
  uint32_t size_of(uint32_t id) const;
  // `depth`: structures without a name may be inside each other.
  bool find_member(uint32_t id, std::string_view name, int depth, Member& found) const;

  std::string bytes_;
  std::string_view texts_;
  std::vector<uint32_t> at_;  // in bytes_, by id
  absl::flat_hash_map<std::string_view, uint32_t> structures_;
  absl::flat_hash_map<std::string_view, uint32_t> functions_;
};

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_BTF_H_
