#include "process/shared_objects.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/status.h"
#include "kernel/huge_pages.h"
#include "kernel/syscalls.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::process {
namespace {

constexpr std::string_view kMemfd = "/memfd:";
constexpr uint64_t kMaxObject = uint64_t{1} << 46;

uint64_t whole_pages(const resource::SharedObjectState& state) {
  const uint64_t page = state.huge_page_bytes() != 0 ? state.huge_page_bytes() : 4096;
  return (state.size() + page - 1) / page * page;
}

absl::Status check(const resource::SharedObjectState& state) {
  if (state.size() > kMaxObject)
    return make_error(absl::StatusCode::kDataLoss, "shared object {}: {} bytes cannot be right",
                      state.id(), state.size());
  if (state.huge_page_bytes() != 0 && !kernel::has_huge_pages_of(state.huge_page_bytes()))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "shared memory has huge pages of {} KiB, which this machine has not",
                      state.huge_page_bytes() >> 10);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> open_own_mapping(void* memory, uint64_t size, int flags) {
  const auto start = reinterpret_cast<uint64_t>(memory);
  return kernel::open(fmt::format("/proc/self/map_files/{:x}-{:x}", start, start + size),
                      flags | O_CLOEXEC);
}

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
  const int flags = MAP_SHARED | (object.huge_page_bytes != 0 ? MAP_NORESERVE : 0);
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, object.fd.get(), 0);
  if (memory == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap(shared object, {} bytes)", size));
  object.memory = memory;
  return absl::OkStatus();
}

absl::Status SharedObjects::make_anonymous(Object& object, uint64_t size) {
  int flags = MAP_SHARED | MAP_ANONYMOUS;
  if (object.huge_page_bytes != 0)
    flags |= MAP_HUGETLB | MAP_NORESERVE |
             static_cast<int>(kernel::huge_size_flag(object.huge_page_bytes));
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED)
    return errno_status(errno, fmt::format("mmap(shared anonymous, {} bytes)", size));
  object.memory = memory;
  object.size = size;
  object.anonymous = true;
  GW_ASSIGN_OR_RETURN(object.fd, open_own_mapping(memory, size, O_RDWR));
  return absl::OkStatus();
}

absl::Status SharedObjects::ensure(const resource::SharedObjectState& state, int existing) {
  GW_RETURN_IF_ERROR(check(state));
  const uint64_t size = whole_pages(state);
  Object& object = objects_[state.id()];
  if (!object.fd) object.huge_page_bytes = state.huge_page_bytes();
  if (object.fd && object.size == size) return absl::OkStatus();
  if (!object.fd) {
    if (existing >= 0) {
      // The program's own description may be read-only.
      GW_ASSIGN_OR_RETURN(
          object.fd, kernel::open(fmt::format("/proc/self/fd/{}", existing), O_RDWR | O_CLOEXEC));
    } else if (state.path().starts_with(kMemfd)) {
      unsigned flags = MFD_CLOEXEC;
      if (object.huge_page_bytes != 0)
        flags |= MFD_HUGETLB | kernel::huge_size_flag(object.huge_page_bytes);
      GW_ASSIGN_OR_RETURN(object.fd,
                          kernel::memfd_create(state.path().substr(kMemfd.size()), flags));
    } else {
      return make_anonymous(object, size);
    }
  }
  if (existing < 0 && !object.anonymous &&
      ::ftruncate(object.fd.get(), static_cast<off_t>(state.size())) != 0)
    return errno_status(errno, fmt::format("ftruncate({}, {})", state.path(), state.size()));
  return map(object, size);
}

absl::Status SharedObjects::ensure_file(const resource::SharedObjectState& state, int existing,
                                        InCapsule in_capsule) {
  if ((state.id() & resource::kFileObject) == 0 || state.size() > kMaxObject ||
      !state.path().starts_with('/') || state.path().find('\0') != std::string::npos)
    return make_error(absl::StatusCode::kDataLoss,
                      "removed file \"{}\" of {} bytes cannot be right", state.path(),
                      state.size());
  const uint64_t size = (state.size() + 4095) & ~uint64_t{4095};
  Object& object = objects_[state.id()];
  if (!object.fd && existing >= 0) {
    GW_ASSIGN_OR_RETURN(
        object.fd, kernel::open(fmt::format("/proc/self/fd/{}", existing), O_RDWR | O_CLOEXEC));
  } else if (!object.fd) {
    const absl::Status made = in_capsule([&]() -> absl::Status {
      GW_ASSIGN_OR_RETURN(
          resource::RemovedFile file,
          resource::make_removed_file(state.path(), state.file().mode(), state.file().uid(),
                                      state.file().gid(), O_RDWR | O_CLOEXEC));
      object.fd = std::move(file.file);
      return absl::OkStatus();
    });
    GW_RETURN_IF_ERROR(made);
  }
  // It may also have grown within its last page.
  struct stat stat {};
  if (::fstat(object.fd.get(), &stat) != 0)
    return errno_status(errno, fmt::format("fstat({})", state.path()));
  if (static_cast<uint64_t>(stat.st_size) != state.size() &&
      ::ftruncate(object.fd.get(), static_cast<off_t>(state.size())) != 0)
    return errno_status(errno, fmt::format("ftruncate({}, {})", state.path(), state.size()));
  return object.size == size ? absl::OkStatus() : map(object, size);
}

absl::Status SharedObjects::ensure_segment(const resource::SharedObjectState& state,
                                           InCapsule in_capsule) {
  const int shmid = state.segment().shmid();
  GW_RETURN_IF_ERROR(check(state));
  const uint64_t size = whole_pages(state);
  if (state.id() != resource::object_of_segment(static_cast<uint64_t>(shmid)))
    return make_error(absl::StatusCode::kDataLoss, "segment {} of {} bytes cannot be right", shmid,
                      state.size());
  Object& object = objects_[state.id()];
  if (object.fd && object.size != size)
    return make_error(absl::StatusCode::kUnavailable, "segment {} is another one now", shmid);
  if (!object.fd) {
    const absl::Status attached = in_capsule([&]() -> absl::Status {
      GW_RETURN_IF_ERROR(resource::make_segment(state));
      object.shmid = shmid;
      GW_ASSIGN_OR_RETURN(object.memory, resource::attach_segment(shmid, false));
      object.size = size;
      object.huge_page_bytes = state.huge_page_bytes();
      return absl::OkStatus();
    });
    GW_RETURN_IF_ERROR(attached);
    GW_ASSIGN_OR_RETURN(object.fd, open_own_mapping(object.memory, size, O_RDWR));
  }
  return in_capsule([&] { return resource::set_segment(state); });
}

absl::Status SharedObjects::keep(const std::set<uint64_t>& ids, InCapsule in_capsule) {
  for (auto at = objects_.begin(); at != objects_.end();) {
    const Object& object = at->second;
    if (ids.contains(at->first)) {
      ++at;
      continue;
    }
    // Whoever has it attached here detaches it when his memory is mapped.
    if (object.shmid >= 0)
      GW_RETURN_IF_ERROR(in_capsule([&] { return resource::remove_segment(object.shmid); }));
    if (object.memory != nullptr) ::munmap(object.memory, object.size);
    at = objects_.erase(at);
  }
  return absl::OkStatus();
}

uint64_t SharedObjects::size(uint64_t id) const {
  const auto found = objects_.find(id);
  return found == objects_.end() ? 0 : found->second.size;
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

absl::StatusOr<std::span<std::byte>> SharedObjects::writable(uint64_t id, uint64_t offset,
                                                             uint64_t bytes) {
  GW_ASSIGN_OR_RETURN(const std::span<std::byte> span, at(id, offset, bytes));
  const uint64_t page = objects_.at(id).huge_page_bytes;
  if (page != 0) GW_RETURN_IF_ERROR(kernel::populate_huge_pages(span.data(), bytes, page));
  return span;
}

}  // namespace godwit::process
