#ifndef GODWIT_RESOURCE_SIGNALFD_SIGNALFD_H_
#define GODWIT_RESOURCE_SIGNALFD_SIGNALFD_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& signalfd_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_SIGNALFD_SIGNALFD_H_
