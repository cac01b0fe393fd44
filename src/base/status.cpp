#include "base/status.h"

#include <charconv>
#include <cstring>
#include <string>

#include "absl/strings/cord.h"

namespace godwit {
namespace {

constexpr char kErrnoPayload[] = "godwit/errno";

absl::StatusCode code_of(int error) {
  // absl maps ESRCH and ENOENT alike to kNotFound, which is what callers want.
  return error == ESRCH ? absl::StatusCode::kNotFound : absl::ErrnoToStatusCode(error);
}

}  // namespace

absl::Status errno_status(int error, std::string_view call) {
  char text[128];
  // GNU strerror_r: may return a static string instead of filling `text`.
  const char* why = ::strerror_r(error, text, sizeof text);
  absl::Status status(code_of(error), fmt::format("{}: {}", call, why));
  status.SetPayload(kErrnoPayload, absl::Cord(std::to_string(error)));
  return status;
}

int errno_of(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrnoPayload);
  if (!payload) return 0;
  const std::string text(*payload);
  int error = 0;
  std::from_chars(text.data(), text.data() + text.size(), error);
  return error;
}

absl::Status annotate(const absl::Status& status, std::string_view outer) {
  if (status.ok()) return status;
  absl::Status result(status.code(), fmt::format("{}: {}", outer, message_of(status)));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

}  // namespace godwit
