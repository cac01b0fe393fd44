// Is what a replica holds what its source holds? (`migrate --verify`, `checkpoint --verify`)
//
// When all of the last epoch has been sent, the source walks what is populated of each private
// mapping and each shared object, and sends the hash of each page that does not read as nothing:
// as zero, or in a private file mapping as the file. The replica hashes the same pages, and then
// looks at what else is populated there, which has to read as nothing too. Both ends read their own
// list of mappings anew and compare it with the one that was sent.
//
// Pages that are not populated are not read: that would populate them. Left out: the stub's area,
// the kernel's own mappings, memory that the kernel writes while a task runs
// (resource::TaskResource::written_by_kernel), and what files hold.
#ifndef GODWIT_PROCESS_VERIFY_H_
#define GODWIT_PROCESS_VERIFY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "pages/page_set.h"
#include "pages/sender.h"
#include "resource/memory_map/memory_map.h"
#include "stream/stream.h"

namespace godwit::process {

// A mapping, or a shared object.
struct Part {
  std::string name;  // for people
  pages::PageRange range;
  pages::PageSet populated;
  // A page of zeros is as good as none.
  bool zero_is_nothing = true;
};

// An address space that stands still, or a shared object in it. Not thread-safe.
class Space {
 public:
  virtual ~Space() = default;
  // Ascending.
  virtual absl::StatusOr<std::vector<Part>> parts() = 0;
  // Calls `each` for every page of `ranges` in their order, without those that cannot be read.
  using Each =
      absl::FunctionRef<absl::Status(uint64_t address, std::span<const std::byte> contents)>;
  virtual absl::Status read(std::span<const pages::PageRange> ranges, Each each) = 0;
};

// `left_out`: bytes that are taken for zeros.
absl::StatusOr<std::unique_ptr<Space>> memory_of(HostPid pid, const resource::MemoryMapState& map,
                                                 std::vector<resource::AddressRange> left_out);
// `fd` is open for reading, and stays the caller's.
std::unique_ptr<Space> object_of(int fd, std::string name);

// The source's half. kCancelled when `control` says so.
absl::Status send_hashes(uint64_t id, Space& space, const pages::SendControl& control,
                         stream::Writer& writer);

// The replica's half, of one space.
class Comparison {
 public:
  static absl::StatusOr<Comparison> begin(std::unique_ptr<Space> space);
  // A frame of this space.
  absl::Status see(const stream::PageHashes& frame);
  // After the last frame: looks at what is populated and was not named.
  absl::Status end();
  // A text for each part that differs: how many pages, and the first.
  std::vector<std::string> differences() const;

 private:
  Comparison() = default;
  std::unique_ptr<Space> space_;
  std::vector<Part> parts_;
  pages::PageSet mapped_;
  pages::PageSet named_;
  pages::PageSet differ_;
};

// What /proc shows of a process, in the form that was sent; its mappings without `own`.
absl::StatusOr<resource::MemoryMapState> read_memory_map(HostPid pid, resource::AddressRange own);
// Where `shown` differs from `sent`, mappings that go on in their neighbours apart; empty: nowhere.
std::string difference(const resource::MemoryMapState& sent, resource::MemoryMapState shown);

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_VERIFY_H_
