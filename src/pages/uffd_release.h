// Letting go of a userfaultfd whose tracker is dead. close(2) of its last copy would walk all that
// is registered under the lock that the program's own mmap calls wait for (30-66 ms per GiB); this
// goes in small pieces first. From any process that has a copy of the descriptor.
#ifndef GODWIT_PAGES_UFFD_RELEASE_H_
#define GODWIT_PAGES_UFFD_RELEASE_H_

#include "absl/status/status.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace godwit::pages {

// `uffd` is for the memory of `pid`, which runs. A process that has died is no error.
absl::Status release_uffd(UniqueFd uffd, HostPid pid);

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_UFFD_RELEASE_H_
