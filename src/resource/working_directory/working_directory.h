#ifndef GODWIT_RESOURCE_WORKING_DIRECTORY_WORKING_DIRECTORY_H_
#define GODWIT_RESOURCE_WORKING_DIRECTORY_WORKING_DIRECTORY_H_

#include "resource/resource.h"

namespace godwit::resource {

const TaskResource& working_directory_resource();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_WORKING_DIRECTORY_WORKING_DIRECTORY_H_
