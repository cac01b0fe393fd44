// A virtual machine in a checkpoint file: the stream of services (stream/stream.h), in which what
// QEMU writes of memory and devices is one space of pages, and each disk's file another, their
// addresses the offsets. Pages that are not there read as zero, and are holes in a disk's file.
//
//   epoch 0         section "vm"        pages of space 1: memory and devices
//   epoch 1, final  sections "vm_space" pages of the spaces from 2 on: disks
#ifndef GODWIT_NODE_VM_IMAGE_H_
#define GODWIT_NODE_VM_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "node/vm_image.pb.h"
#include "pages/compression.h"
#include "stream/stream.h"
#include "vm/hypervisor.h"

namespace godwit::node {

inline constexpr char kVmSection[] = "vm";
inline constexpr char kVmSpaceSection[] = "vm_space";
inline constexpr uint64_t kVmMemory = 1;
inline constexpr uint64_t kFirstVmDisk = 2;

// One space, written in order.
class SpaceWriter {
 public:
  SpaceWriter(stream::Writer& writer, pages::PageCompression& compression, uint64_t space)
      : writer_(writer), compression_(compression), space_(space) {}
  // `offset` is not before what was added.
  absl::Status add(uint64_t offset, std::span<const std::byte> bytes);
  // Its last page is filled up with zeros.
  absl::Status finish();
  uint64_t end() const { return end_; }

 private:
  absl::Status write_batch();
  stream::Writer& writer_;
  pages::PageCompression& compression_;
  const uint64_t space_;
  uint64_t at_ = 0;  // of the batch: a multiple of the page size
  uint64_t end_ = 0;
  std::vector<std::byte> batch_;
};

// One pass over a file, every frame checked. kDataLoss with the offset.
struct VmImageReader {
  std::function<absl::Status(const VmImage& image)> on_image;
  std::function<absl::Status(uint64_t space, const VmSpace& told)> on_space;
  // Of a space in ascending order.
  std::function<absl::Status(uint64_t space, uint64_t offset, std::span<const std::byte> bytes)>
      on_bytes;
  // After each frame; false: the rest is not of interest.
  std::function<absl::StatusOr<bool>(uint64_t bytes_read)> on_frame;

  absl::Status read(stream::Feed& feed);
};

// XXH3-128 (capsule::Hasher) of a file as libvirt sees it.
absl::StatusOr<std::string> hash_file(vm::Hypervisor& hypervisor, const std::string& path);

// Whether a checkpoint's first section says so. An error of what is no checkpoint is left to
// whoever reads it.
bool is_vm_image(const std::string& file, const std::string& key_file);

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_IMAGE_H_
