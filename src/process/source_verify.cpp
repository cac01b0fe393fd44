// The source's half of verifying: hashes of what it has, and a second look at its mappings.
#include <fcntl.h>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/source.h"
#include "process/verify.h"
#include "resource/registry.h"

namespace godwit::process {

using resource::MappingState;

absl::Status Source::send_all_hashes(stream::Writer& writer) {
  FAULT_POINT("source.send_hashes");
  std::map<uint64_t, std::string> objects;  // and a mapping's link to each
  for (const FrozenProcess& frozen : frozen_) {
    const SourceProcess& process = *frozen.process;
    GW_RETURN_IF_ERROR(annotate(send_hashes_of(frozen, writer), describe(frozen)));
    for (const MappingState& mapping : process.memory_map.mappings())
      if (mapping.object() != 0)
        objects.try_emplace(mapping.object(),
                            fmt::format("/proc/{}/map_files/{:x}-{:x}", process.host_pid.value,
                                        mapping.start(), mapping.end()));
  }
  for (const resource::SharedObjectState& segment : segments_)
    objects.try_emplace(segment.id(),
                        fmt::format("/proc/self/fd/{}", objects_.at(segment.id())->fd()));
  for (const auto& [id, link] : objects) {
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(link, O_RDONLY | O_CLOEXEC));
    const std::unique_ptr<Space> object = object_of(fd.get(), link);
    GW_RETURN_IF_ERROR(send_hashes(stream::kSharedSpace | id, *object, control_, writer));
  }
  GW_RETURN_IF_ERROR(writer.end_hashes());
  return writer.flush();
}

absl::Status Source::send_hashes_of(const FrozenProcess& frozen, stream::Writer& writer) {
  const SourceProcess& process = *frozen.process;
  const uint64_t area = process.area->address().value;
  // The freeze takes flags from an earlier look at smaps; here they are as they are now.
  GW_ASSIGN_OR_RETURN(resource::MemoryMapState shown,
                      read_memory_map(process.host_pid, {area, area + process.area->size()}));
  const std::string differs = difference(process.memory_map, std::move(shown));
  if (!differs.empty())
    return make_error(absl::StatusCode::kDataLoss, "what was sent is not what it has: {}", differs);
  std::vector<resource::AddressRange> left_out;
  for (const ImagePid tid : frozen.tids) {
    for (const resource::TaskResource* resource : resource::task_resources()) {
      const auto sent =
          sent_.find({std::string(resource->name()), static_cast<uint64_t>(tid.value)});
      if (sent == sent_.end()) continue;
      for (const resource::AddressRange& range : resource->written_by_kernel(sent->second.state))
        left_out.push_back(range);
    }
  }
  GW_ASSIGN_OR_RETURN(const std::unique_ptr<Space> memory,
                      memory_of(process.host_pid, process.memory_map, std::move(left_out)));
  return send_hashes(static_cast<uint64_t>(process.pid.value), *memory, control_, writer);
}

}  // namespace godwit::process
