#include "resource/registry.h"

#include <array>

namespace godwit::resource {
// One declaration and one line below per resource; its own folder defines the function.
// (Each is `const TaskResource& x_resource();` or `const FileKind& x_kind();`.)

std::span<const TaskResource* const> task_resources() {
  static const std::vector<const TaskResource*> list = {};
  return list;
}

std::span<const FileKind* const> file_kinds() {
  static const std::vector<const FileKind*> list = {};
  return list;
}

const TaskResource* find_task_resource(std::string_view name) {
  for (const TaskResource* resource : task_resources())
    if (resource->name() == name) return resource;
  return nullptr;
}

const FileKind* find_file_kind(std::string_view name) {
  for (const FileKind* kind : file_kinds())
    if (kind->name() == name) return kind;
  return nullptr;
}

}  // namespace godwit::resource
