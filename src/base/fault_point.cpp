#include "base/fault_point.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <ctime>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit {
namespace {

constexpr absl::Duration kLongestWait = absl::Seconds(30);

const char* armed_spec() {
  const char* spec = std::getenv("GODWIT_FAULT");
  return spec != nullptr && *spec != '\0' ? spec : nullptr;
}

std::string first_line_of(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 256> text{};
  const ssize_t size = fd ? ::read(fd.get(), text.data(), text.size()) : 0;
  const std::string_view all(text.data(), size > 0 ? static_cast<size_t>(size) : 0);
  return std::string(all.substr(0, all.find('\n')));
}

void wait_for_file(const std::string& path) {
  const Deadline deadline = Deadline::in(kLongestWait);
  const timespec pause{0, 1'000'000};
  while (::access(path.c_str(), F_OK) != 0 && !deadline.passed()) ::nanosleep(&pause, nullptr);
}

}  // namespace

bool fault_points_armed = armed_spec() != nullptr;

absl::Status hit_fault_point(std::string_view name) {
  const char* spec = armed_spec();
  if (spec == nullptr) return absl::OkStatus();
  const std::string path = *spec == '@' ? std::string(spec + 1) : std::string();
  const std::string text = path.empty() ? std::string(spec) : first_line_of(path);
  const size_t equals = text.find('=');
  if (equals == std::string::npos || text.substr(0, equals) != name) return absl::OkStatus();
  // Whoever removes the file has it: threads and processes may be here at the same time.
  if (!path.empty() && ::unlink(path.c_str()) != 0) return absl::OkStatus();
  const std::string action = text.substr(equals + 1);
  if (action == "wait") {
    if (!path.empty()) wait_for_file(path + ".go");
    return absl::OkStatus();
  }
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
