#ifndef GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_H_
#define GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& regular_file_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_H_
