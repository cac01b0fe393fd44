#ifndef GODWIT_RESOURCE_EVENTFD_EVENTFD_H_
#define GODWIT_RESOURCE_EVENTFD_EVENTFD_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& eventfd_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_EVENTFD_EVENTFD_H_
