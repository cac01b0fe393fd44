// pidfd_open(2), clone(2) with CLONE_PIDFD, SO_PEERPIDFD and SCM_PIDFD of unix(7): what refers to a
// process, that runs, has ended, or was waited for.
#ifndef GODWIT_RESOURCE_PIDFD_PIDFD_H_
#define GODWIT_RESOURCE_PIDFD_PIDFD_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& pidfd_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_PIDFD_PIDFD_H_
