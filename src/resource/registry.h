// The one ordered list of resources. Order is restore order; a test proves that what a resource
// needs stands before it.
#ifndef GODWIT_RESOURCE_REGISTRY_H_
#define GODWIT_RESOURCE_REGISTRY_H_

#include <span>
#include <string_view>

#include "resource/resource.h"

namespace godwit::resource {

std::span<const TaskResource* const> task_resources();
std::span<const FileKind* const> file_kinds();

const TaskResource* find_task_resource(std::string_view name);
const FileKind* find_file_kind(std::string_view name);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_REGISTRY_H_
