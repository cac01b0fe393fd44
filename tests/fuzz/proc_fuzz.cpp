// Fuzzing of every parser of /proc (libFuzzer: LLVMFuzzerTestOneInput). A program names its files,
// threads and mappings, so these texts are hostile: each parser, given any text whatever, gives a
// value or an error and touches nothing beside the text.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/proc/limits.h"
#include "kernel/proc/maps.h"
#include "kernel/proc/mountinfo.h"
#include "kernel/proc/stat.h"
#include "kernel/proc/status.h"
#include "kernel/proc/tasks.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/proc/timens.h"
#include "kernel/proc/timers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;          // NOLINT: one file
using namespace godwit::kernel;  // NOLINT

void require(bool condition, const char* what, const absl::Status& status) {
  if (condition) return;
  std::fprintf(stderr, "proc_fuzz: %s: %s\n", what, status.ToString().c_str());
  std::abort();
}

// An error says something; what it quotes may be anything.
template <typename T>
bool parsed(const absl::StatusOr<T>& result) {
  if (!result.ok())
    require(!message_of(result.status()).empty(), "error without a word", result.status());
  return result.ok();
}

void check_mappings(const absl::StatusOr<std::vector<Mapping>>& mappings) {
  if (!parsed(mappings)) return;
  for (const Mapping& one : *mappings)
    require(one.start < one.end, "a mapping that ends before it starts", absl::OkStatus());
}

void check(std::string_view text) {
  check_mappings(parse_maps(text));
  check_mappings(parse_smaps(text));
  parsed(parse_fdinfo(text));
  parsed(parse_limits(text));
  if (const auto mounts = parse_mountinfo(text); parsed(mounts))
    parsed(find_cgroup2_mount(*mounts));
  parsed(parse_cgroup2_path(text));
  parsed(parse_task_stat(text));
  parsed(parse_task_status(text));
  parsed(parse_pids(text));
  parsed(parse_auxv(text));
  parsed(parse_time_offsets(text));
  parsed(parse_timers(text));
  require(unescape_octal(text).size() <= text.size(), "an escape that grew", absl::OkStatus());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check({reinterpret_cast<const char*>(data), size});
  return 0;
}
