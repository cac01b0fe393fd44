#include <sys/resource.h>
#include <sys/syscall.h>

#include <array>
#include <string>

#include "resource/rlimit/rlimit.h"
#include "resource/rlimit/rlimit.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr std::array<std::string_view, RLIM_NLIMITS> kNames = {
    "RLIMIT_CPU",      "RLIMIT_FSIZE", "RLIMIT_DATA",   "RLIMIT_STACK",
    "RLIMIT_CORE",     "RLIMIT_RSS",   "RLIMIT_NPROC",  "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",  "RLIMIT_AS",    "RLIMIT_LOCKS",  "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE", "RLIMIT_NICE",  "RLIMIT_RTPRIO", "RLIMIT_RTTIME"};

std::string text_of(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : std::to_string(value);
}

}  // namespace

absl::StatusOr<TaskResource::Check> RlimitResource::restore(std::string_view bytes,
                                                            const TaskView& husk,
                                                            tracee::Batch& batch) const {
  GW_ASSIGN_OR_RETURN(const RlimitState state, parse_state<RlimitState>(bytes, name()));
  if (state.limits_size() > int{RLIM_NLIMITS})
    return make_error(absl::StatusCode::kDataLoss, "state of {} has {} limits", name(),
                      state.limits_size());
  std::vector<rlimit> limits;
  for (const Rlimit& limit : state.limits()) limits.push_back({limit.soft(), limit.hard()});
  RlimitState known;
  if (husk.known) {
    GW_ASSIGN_OR_RETURN(known, parse_state<RlimitState>(*husk.known, name()));
  }
  const tracee::Batch::Data data = batch.data(std::as_bytes(std::span(limits)));
  const tracee::Batch::Data old = batch.reserve(limits.size() * sizeof(rlimit));
  std::vector<std::pair<size_t, size_t>> calls;  // which limit, which call
  for (size_t i = 0; i < limits.size(); ++i) {
    if (static_cast<int>(i) < known.limits_size()) {
      const Rlimit& has = known.limits(static_cast<int>(i));
      if (has.soft() == limits[i].rlim_cur && has.hard() == limits[i].rlim_max) continue;
    }
    const size_t at = i * sizeof(rlimit);
    // Read first: a refused call does not say what the old limit was.
    batch.call(SYS_prlimit64, {0, i, 0, slice(old, at, sizeof(rlimit))});
    calls.emplace_back(i, batch.call(SYS_prlimit64, {0, i, slice(data, at, sizeof(rlimit)), 0}));
  }
  return Check([=, tgid = husk.tgid](const tracee::Batch& done) {
    for (const auto& [i, call] : calls) {
      const int error = error_in(done.result(call));
      if (error == EPERM)
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "process {}: its hard limit {} is {}, here only {} can be had without "
                          "CAP_SYS_RESOURCE: start godwit's node with at least that limit",
                          tgid.value, kNames[i], text_of(limits[i].rlim_max),
                          text_of(value_in<rlimit>(done, old, i).rlim_max));
      if (error != 0)
        return errno_status(error,
                            fmt::format("prlimit({}, {}, {}, {})", tgid.value, kNames[i],
                                        text_of(limits[i].rlim_cur), text_of(limits[i].rlim_max)));
    }
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
