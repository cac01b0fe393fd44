#include "base/fault_point.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>

#include "base/status.h"

namespace godwit {
namespace {

const char* armed_spec() {
  const char* spec = std::getenv("GODWIT_FAULT");
  return spec != nullptr && *spec != '\0' ? spec : nullptr;
}

}  // namespace

bool fault_points_armed = armed_spec() != nullptr;

absl::Status hit_fault_point(std::string_view name) {
  const char* spec = armed_spec();
  if (spec == nullptr) return absl::OkStatus();
  const std::string_view text(spec);
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || text.substr(0, equals) != name) return absl::OkStatus();
  const std::string_view action = text.substr(equals + 1);
  if (action == "kill") {
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
  }
  if (action == "hang") {
    for (;;) ::pause();
  }
  return make_error(absl::StatusCode::kAborted, "fault point {}: failed on purpose", name);
}

}  // namespace godwit
