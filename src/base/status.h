// Errors are values. errno becomes a status only here and in kernel/.
#ifndef GODWIT_BASE_STATUS_H_
#define GODWIT_BASE_STATUS_H_

#include <fmt/core.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit {

// `call` is the call with its arguments ("openat(\"/x\", O_RDONLY)"); the message becomes
// "<call>: <what errno says>". ESRCH (the target is gone) maps to kNotFound and can be told from
// other errors with errno_of().
absl::Status errno_status(int error, std::string_view call);

// The errno that a status was made from, or 0.
int errno_of(const absl::Status& status);

// The same status with "<outer>: " before its message; payloads stay.
absl::Status annotate(const absl::Status& status, std::string_view outer);

// Debian's Abseil is built with its own string_view, which does not convert to or from std's: texts
// are made with fmt and cross the border here only.
template <typename... Args>
absl::Status make_error(absl::StatusCode code, fmt::format_string<Args...> f, Args&&... args) {
  return absl::Status(code, fmt::format(f, std::forward<Args>(args)...));
}
inline std::string_view message_of(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

}  // namespace godwit

#define GW_RETURN_IF_ERROR(expr)      \
  do {                                \
    absl::Status gw_status = (expr);  \
    if (!gw_status.ok()) [[unlikely]] \
      return gw_status;               \
  } while (false)

#define GW_CONCAT_INNER(a, b) a##b
#define GW_CONCAT(a, b) GW_CONCAT_INNER(a, b)

// GW_ASSIGN_OR_RETURN(auto x, f());
#define GW_ASSIGN_OR_RETURN(lhs, expr) \
  GW_ASSIGN_OR_RETURN_IMPL(GW_CONCAT(gw_or_, __LINE__), lhs, expr)
#define GW_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) [[unlikely]]                    \
    return std::move(tmp).status();              \
  lhs = *std::move(tmp)

#endif  // GODWIT_BASE_STATUS_H_
