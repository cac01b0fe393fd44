// The code that the kernel maps into every program (vdso(7)). A program that has looked up a symbol
// calls it at that address for as long as it runs; moved to another kernel it meets that one's
// image at the old place.
#ifndef GODWIT_KERNEL_VDSO_H_
#define GODWIT_KERNEL_VDSO_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::kernel {

struct VdsoSymbol {
  std::string name;
  uint64_t offset = 0;
  auto operator<=>(const VdsoSymbol&) const = default;
};

struct Vdso {
  // The image with its notes (build id, version of the kernel) blanked: equal ones run alike.
  std::string code;
  std::vector<VdsoSymbol> symbols;  // that can be looked up, by name
};

// `image`: an ELF-64 shared object as the kernel maps it. Any bytes: kDataLoss.
absl::StatusOr<Vdso> parse_vdso(std::span<const std::byte> image);
// This process's, which is every 64-bit program's on this kernel.
absl::StatusOr<Vdso> read_vdso();

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_VDSO_H_
