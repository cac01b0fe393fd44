// What QEMU at a source has to hear from its destination to leave "postcopy-paused": its recovery
// (migrate, "resume": true) asks for the pages of each block of memory that have arrived, and goes
// on when it has been answered.
#ifndef GODWIT_VM_RESUME_ANSWERS_H_
#define GODWIT_VM_RESUME_ANSWERS_H_

#include "absl/status/status.h"
#include "base/clock.h"

namespace godwit::vm {

// Answers in the place of a destination that does not exist any more and will never get a page: so
// it names none. `fd`: a stream socket whose other end QEMU has. Returns when QEMU resumes: it is
// in state postcopy-active then. kOutOfRange: QEMU has closed it; kInvalidArgument: it says
// something else than QEMU 7.2 does.
absl::Status answer_resume(int fd, Deadline deadline);

}  // namespace godwit::vm

#endif  // GODWIT_VM_RESUME_ANSWERS_H_
