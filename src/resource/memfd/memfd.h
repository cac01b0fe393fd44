#ifndef GODWIT_RESOURCE_MEMFD_MEMFD_H_
#define GODWIT_RESOURCE_MEMFD_MEMFD_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& memfd_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_MEMFD_MEMFD_H_
