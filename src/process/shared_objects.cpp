#include "process/shared_objects.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::process {
namespace {

constexpr std::string_view kMemfd = "/memfd:";
constexpr uint64_t kMaxObject = uint64_t{1} << 46;

absl::StatusOr<UniqueFd> open_own_mapping(void* memory, uint64_t size) {
  const auto start = reinterpret_cast<uint64_t>(memory);
  return kernel::open(fmt::format("/proc/self/map_files/{:x}-{:x}", start, start + size),
                      O_RDWR | O_CLOEXEC);
}

}  // namespace

SharedObjects::~SharedObjects() { clear(); }

void SharedObjects::clear() {
  for (auto& [id, object] : objects_)
    if (object.memory != nullptr) ::munmap(object.memory, object.size);
  objects_.clear();
}

absl::Status SharedObjects::map(Object& object, uint64_t size) {
  if (object.memory != nullptr) ::munmap(object.memory, object.size);
  object.memory = nullptr;
  object.size = size;
  if (size == 0) return absl::OkStatus();
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, object.fd.get(), 0);
  if (memory == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap(shared object, {} bytes)", size));
  object.memory = memory;
  return absl::OkStatus();
}

absl::Status SharedObjects::ensure(const resource::SharedObjectState& state, int existing) {
  if (state.size() > kMaxObject)
    return make_error(absl::StatusCode::kDataLoss, "shared object {}: {} bytes cannot be right",
                      state.id(), state.size());
  const uint64_t size = (state.size() + 4095) & ~uint64_t{4095};
  Object& object = objects_[state.id()];
  if (object.fd && object.size == size) return absl::OkStatus();
  if (!object.fd) {
    if (existing >= 0) {
      // The program's own description may be read-only.
      GW_ASSIGN_OR_RETURN(
          object.fd, kernel::open(fmt::format("/proc/self/fd/{}", existing), O_RDWR | O_CLOEXEC));
    } else if (state.path().starts_with(kMemfd)) {
      GW_ASSIGN_OR_RETURN(object.fd,
                          kernel::memfd_create(state.path().substr(kMemfd.size()), MFD_CLOEXEC));
    } else {
      void* memory =
          ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED)
        return errno_status(errno, fmt::format("mmap(shared anonymous, {} bytes)", size));
      object.memory = memory;
      object.size = size;
      object.anonymous = true;
      GW_ASSIGN_OR_RETURN(object.fd, open_own_mapping(memory, size));
      return absl::OkStatus();
    }
  }
  if (existing < 0 && !object.anonymous &&
      ::ftruncate(object.fd.get(), static_cast<off_t>(state.size())) != 0)
    return errno_status(errno, fmt::format("ftruncate({}, {})", state.path(), state.size()));
  return map(object, size);
}

int SharedObjects::descriptor(uint64_t id) const {
  const auto found = objects_.find(id);
  return found == objects_.end() ? -1 : found->second.fd.get();
}

absl::StatusOr<std::span<std::byte>> SharedObjects::at(uint64_t id, uint64_t offset,
                                                       uint64_t bytes) {
  const auto found = objects_.find(id);
  if (found == objects_.end() || offset > found->second.size || bytes > found->second.size - offset)
    return make_error(absl::StatusCode::kDataLoss,
                      "pages of shared object {} at {} lie outside of it", id, offset);
  return std::span<std::byte>(static_cast<std::byte*>(found->second.memory) + offset, bytes);
}

}  // namespace godwit::process
