#include "process/priority.h"

#include <charconv>
#include <string>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::process {
namespace {

constexpr char kSession[] = "/proc/self/autogroup";

// No such file: no such groups.
void set_session_nice(int nice) {
  kernel::write_file(kSession, std::to_string(nice)).IgnoreError();
}

}  // namespace

absl::StatusOr<int> parse_session_nice(std::string_view text) {
  constexpr std::string_view kBefore = " nice ";
  const size_t at = text.rfind(kBefore);
  int nice = 0;
  if (at != std::string_view::npos) {
    const char* number = text.data() + at + kBefore.size();
    if (std::from_chars(number, text.data() + text.size(), nice).ec == std::errc()) return nice;
  }
  return make_error(absl::StatusCode::kDataLoss, "{} has no nice value", kSession);
}

void give_way() {
  (void)::setpriority(PRIO_PROCESS, 0, kRoundsNice);
  kernel::set_slice(0, kRoundsSlice);
  if (::getsid(0) == ::getpid()) set_session_nice(kRoundsNice);
}

void take_part() {
  (void)::setpriority(PRIO_PROCESS, 0, 0);
  kernel::set_slice(0, kernel::default_slice());
  if (::getsid(0) == ::getpid()) set_session_nice(0);
}

FirstSession::FirstSession() {
  if (::getsid(0) != ::getpid()) return;
  const auto text = kernel::read_file(kSession, 128);
  const auto nice = text.ok() ? parse_session_nice(*text) : text.status();
  if (!nice.ok()) return;
  before_ = *nice;
  set_session_nice(kFreezeNice);
}

FirstSession::~FirstSession() {
  if (before_) set_session_nice(*before_);
}

}  // namespace godwit::process
