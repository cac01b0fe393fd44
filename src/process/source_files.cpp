// Which files mappings, executables and descriptors refer to by name.
#include <sys/stat.h>

#include <unordered_set>

#include "base/status.h"
#include "process/source.h"
#include "resource/memory_map/memory_map.h"
#include "resource/shared_object/shared_object.h"

namespace godwit::process {

using resource::MappingState;

void Source::note_open_files() {
  open_files_.clear();
  for (const auto& description : descriptors_->descriptions()) {
    const resource::OpenFile& file = description.file;
    // Without a name: its content travels with the descriptor.
    if (description.kind == nullptr || description.kind->name() != "regular_file" ||
        !S_ISREG(file.stat.st_mode) || file.stat.st_nlink == 0)
      continue;
    FileInUse& one = open_files_.emplace_back();
    one.path = file.link;
    one.device = file.stat.st_dev;
    one.inode = file.stat.st_ino;
  }
}

std::vector<FileInUse> Source::files_in_use() const {
  std::vector<FileInUse> files;
  std::unordered_set<std::string_view> seen;  // of what the processes' maps hold
  const auto add = [&](std::string_view path, auto object) {
    if (!path.starts_with('/') || !seen.insert(path).second) return;
    FileInUse& one = files.emplace_back();
    one.path = path;
    one.mapped = true;
    one.object = object();
  };
  for (const auto& [pid, process] : processes_) {
    const int32_t host = process.host_pid.value;
    const auto object_at = [host](uint64_t start, uint64_t end) {
      return fmt::format("/proc/{}/map_files/{:x}-{:x}", host, start, end);
    };
    // Before the first sections.
    if (process.memory_map.mappings().empty())
      for (const kernel::Mapping& mapping : process.maps)
        if (!mapping.anonymous() && !mapping.of_kernel() &&
            !mapping.path.ends_with(resource::kDeletedMark))
          add(mapping.path, [&] { return object_at(mapping.start, mapping.end); });
    for (const MappingState& mapping : process.memory_map.mappings()) {
      if ((mapping.kind() != MappingState::KIND_PRIVATE_FILE &&
           mapping.kind() != MappingState::KIND_SHARED_FILE) ||
          mapping.object() != 0)  // travels itself
        continue;
      add(mapping.path(), [&] { return object_at(mapping.start(), mapping.end()); });
    }
    add(process.memory_map.exe(), [&] { return fmt::format("/proc/{}/exe", host); });
  }
  for (const FileInUse& open : open_files_)
    if (seen.insert(open.path).second) files.push_back(open);
  return files;
}

}  // namespace godwit::process
