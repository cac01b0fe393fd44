// Bodies of the templates of messages.h.
#ifndef GODWIT_CAPSULE_MESSAGES_INL_H_
#define GODWIT_CAPSULE_MESSAGES_INL_H_

#include <string>

#include "base/status.h"
#include "capsule/messages.h"

namespace godwit::capsule {

// Builds a status again from its three fields: errno_of() works on it.
absl::Status status_from(int code, int error, const std::string& text);

template <typename Reply>
void put_status(Reply& reply, const absl::Status& status) {
  reply.set_code(static_cast<int>(status.code()));
  reply.set_error_errno(errno_of(status));
  reply.set_error(std::string(message_of(status)));
}

template <typename Reply>
absl::Status get_status(const Reply& reply) {
  return status_from(reply.code(), reply.error_errno(), reply.error());
}

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_MESSAGES_INL_H_
