#ifndef GODWIT_RESOURCE_EPOLL_EPOLL_H_
#define GODWIT_RESOURCE_EPOLL_EPOLL_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& epoll_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_EPOLL_EPOLL_H_
