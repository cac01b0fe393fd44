// The replica's half of verifying: what it holds against the source's hashes.
#include <fcntl.h>
#include <unistd.h>

#include "absl/strings/str_join.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/proc/stat.h"
#include "kernel/syscalls.h"
#include "process/replica.h"
#include "process/verify.h"
#include "resource/registry.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::process {
namespace {

using resource::MappingState;

// In an error; the count says how many there are in all.
constexpr size_t kMostTold = 8;

std::string name_of(const Husk& husk) {
  // The name is restored with the tasks, before pages.
  const auto stat = kernel::read_task_stat(husk.host_pid());
  return fmt::format("process {} ({})", husk.pid().value, stat.ok() ? stat->comm : "?");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Space>> Replica::space_of(uint64_t space, std::string& name) {
  if ((space & stream::kSharedSpace) != 0) {
    const uint64_t id = space & ~stream::kSharedSpace;
    const int fd = objects_.descriptor(id);
    if (fd < 0)
      return make_error(absl::StatusCode::kDataLoss,
                        "hashes of shared object {}, which is not mapped", id);
    name = fmt::format("shared object {}", id);
    return object_of(fd, "its memory");
  }
  GW_ASSIGN_OR_RETURN(const Husk* husk, husk_of(space));
  name = name_of(*husk);
  std::vector<resource::AddressRange> left_out;
  for (const HuskTask& task : husk->tasks()) {
    for (const resource::TaskResource* resource : resource::task_resources()) {
      const std::string* state = wanted(resource->name(), static_cast<uint64_t>(task.tid.value));
      if (state == nullptr) continue;
      for (const resource::AddressRange& range : resource->written_by_kernel(*state))
        left_out.push_back(range);
    }
  }
  return memory_of(husk->host_pid(), husk->memory_map, std::move(left_out));
}

absl::Status Replica::compare(const stream::PageHashes& hashes) {
  if (!final_)
    return make_error(absl::StatusCode::kDataLoss, "hashes in an epoch that is not the final one");
  GW_RETURN_IF_ERROR(run_drops());
  auto known = compared_.find(hashes.space);
  if (known == compared_.end()) {
    std::string name;
    GW_ASSIGN_OR_RETURN(std::unique_ptr<Space> space, space_of(hashes.space, name));
    GW_ASSIGN_OR_RETURN(Comparison comparison, Comparison::begin(std::move(space)));
    known = compared_.emplace(hashes.space, Compared{std::move(name), std::move(comparison)}).first;
  }
  return annotate(known->second.comparison.see(hashes), known->second.name);
}

absl::Status Replica::end_comparison() {
  FAULT_POINT("replica.end_comparison");
  GW_RETURN_IF_ERROR(run_drops());
  // A space without any hash has to be empty as well.
  std::vector<uint64_t> spaces;
  for (const auto& [pid, husk] : husks_) spaces.push_back(static_cast<uint64_t>(pid));
  for (const auto& [key, state] : sections_)
    if (key.kind == "shared_object") spaces.push_back(stream::kSharedSpace | key.id);
  for (const uint64_t space : spaces)
    GW_RETURN_IF_ERROR(compare(stream::PageHashes{.space = space, .runs = {}, .hashes = {}}));
  std::vector<std::string> texts;
  for (auto& [space, one] : compared_) {
    GW_RETURN_IF_ERROR(annotate(one.comparison.end(), one.name));
    for (const std::string& text : one.comparison.differences())
      texts.push_back(fmt::format("{}, {}", one.name, text));
  }
  compared_.clear();
  spans_.mark("compare pages");
  if (!texts.empty()) {
    const size_t count = texts.size();
    texts.resize(std::min(count, kMostTold));
    return make_error(absl::StatusCode::kDataLoss, "verify: {}{}", absl::StrJoin(texts, "; "),
                      count > kMostTold ? fmt::format("; and {} more", count - kMostTold) : "");
  }
  for (auto& [pid, husk] : husks_)
    GW_RETURN_IF_ERROR(annotate(compare_maps(husk), fmt::format("verify: {}", name_of(husk))));
  spans_.mark("compare maps");
  return absl::OkStatus();
}

absl::Status Replica::compare_maps(Husk& husk) {
  const uint64_t area = husk.area().address().value;
  GW_ASSIGN_OR_RETURN(resource::MemoryMapState shown,
                      read_memory_map(husk.host_pid(), {area, area + husk.area().size()}));
  // Objects are numbered as at the source, and a removed file may have had to take another name.
  std::map<uint64_t, const MappingState*> wanted;  // by the number here
  for (const MappingState& mapping : husk.memory_map.mappings()) {
    if (mapping.object() == 0 || resource::is_segment(mapping.object())) continue;
    const int fd = objects_.descriptor(mapping.object());
    GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, kernel::read_fdinfo({::getpid()}, fd));
    GW_ASSIGN_OR_RETURN(const std::string link,
                        kernel::readlinkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd)));
    wanted[mapping.kind() == MappingState::KIND_SHARED_OBJECT
               ? resource::object_of_memory(info.ino, mapping.huge_page_bytes())
               : resource::object_of_file(link, info.ino)] = &mapping;
  }
  for (MappingState& mapping : *shown.mutable_mappings())
    if (const auto known = wanted.find(mapping.object()); known != wanted.end()) {
      mapping.set_object(known->second->object());
      mapping.set_path(known->second->path());
    }
  // It is sealed when there is nothing left to do in it.
  resource::MemoryMapState unsealed = husk.memory_map;
  for (MappingState& mapping : *unsealed.mutable_mappings()) {
    mapping.set_flags(mapping.flags() & ~uint32_t{resource::kMapSealed});
    mapping.clear_ring();
  }
  for (MappingState& mapping : *shown.mutable_mappings()) mapping.clear_ring();
  const std::string differs = difference(unsealed, std::move(shown));
  if (differs.empty()) return absl::OkStatus();
  return make_error(absl::StatusCode::kDataLoss, "{}", differs);
}

}  // namespace godwit::process
