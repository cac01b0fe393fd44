#ifndef GODWIT_RESOURCE_PIPE_PIPE_H_
#define GODWIT_RESOURCE_PIPE_PIPE_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& pipe_kind();
// FIFOs (fifo(7)).
const FileKind& named_pipe_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_PIPE_PIPE_H_
