#ifndef GODWIT_RESOURCE_TIMERFD_TIMERFD_H_
#define GODWIT_RESOURCE_TIMERFD_TIMERFD_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& timerfd_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_TIMERFD_TIMERFD_H_
