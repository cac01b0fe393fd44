#ifndef GODWIT_RESOURCE_DEVICE_DEVICE_H_
#define GODWIT_RESOURCE_DEVICE_DEVICE_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& device_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_DEVICE_DEVICE_H_
