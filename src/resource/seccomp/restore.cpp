// Linux facts: seccomp(2). A filter that is set with SECCOMP_FILTER_FLAG_TSYNC becomes that of all
// threads, which share it as if they had inherited it; who shares its oldest filters with another
// can do that again later. Without SECCOMP_FILTER_FLAG_SPEC_ALLOW a filter may switch on
// mitigations of the CPU, which the resource task_identity sets as they are.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>

#include "resource/seccomp/seccomp.h"
#include "resource/seccomp/seccomp.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// More would not be taken: MAX_INSNS_PER_PATH (kernel/seccomp.c) counts four for each filter.
constexpr int kMostFilters = 32768 / 5;

absl::Status damaged(ImagePid tid, std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "task {}: state of seccomp: {}", tid.value, what);
}

absl::Status check_state(const SeccompState& state, const TaskView& husk) {
  const bool filters = state.mode() == SECCOMP_MODE_FILTER;
  if (!filters && state.mode() != SECCOMP_MODE_STRICT)
    return damaged(husk.tid, fmt::format("mode {}", state.mode()));
  if (!filters && (state.filters_size() != 0 || state.common() != 0 || state.of_leader() != 0))
    return damaged(husk.tid, "filters in strict mode");
  if (state.filters_size() > kMostFilters || state.of_leader() > kMostFilters ||
      (husk.leader && state.of_leader() != 0) || (!husk.leader && state.common() != 0) ||
      state.common() > static_cast<uint32_t>(state.filters_size()))
    return damaged(husk.tid, fmt::format("{} filters, {} common, {} of the first task",
                                         state.filters_size(), state.common(), state.of_leader()));
  for (const SeccompFilterState& filter : state.filters())
    if (filter.code().empty() || filter.code().size() % sizeof(sock_filter) != 0 ||
        filter.code().size() > BPF_MAXINSNS * sizeof(sock_filter))
      return damaged(husk.tid, fmt::format("a filter of {} bytes", filter.code().size()));
  return absl::OkStatus();
}

size_t add_filter(const SeccompFilterState& filter, bool all_threads, tracee::Batch& batch) {
  const tracee::Batch::Data code =
      batch.data(std::as_bytes(std::span(filter.code().data(), filter.code().size())));
  sock_fprog program{};
  program.len = static_cast<unsigned short>(filter.code().size() / sizeof(sock_filter));
  const tracee::Batch::Data argument = batch.data(bytes_of(program));
  batch.patch_pointer(argument, offsetof(sock_fprog, filter), code);
  const uint64_t flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW |
                         (filter.log() ? SECCOMP_FILTER_FLAG_LOG : 0) |
                         (all_threads ? SECCOMP_FILTER_FLAG_TSYNC : 0);
  return batch.call(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, flags, argument});
}

}  // namespace

absl::StatusOr<TaskResource::Check> SeccompResource::restore(std::string_view bytes,
                                                             const TaskView& husk,
                                                             tracee::Batch& batch) const {
  if (bytes.empty()) return Check{};
  GW_ASSIGN_OR_RETURN(const SeccompState state, parse_state<SeccompState>(bytes, name()));
  GW_RETURN_IF_ERROR(check_state(state, husk));
  std::vector<size_t> calls;
  if (state.mode() == SECCOMP_MODE_STRICT)
    calls.push_back(batch.call(SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0}));
  uint32_t common = state.common();
  if (husk.leader && husk.notes != nullptr) husk.notes->insert_or_assign(this, std::string(bytes));
  if (!husk.leader && state.mode() == SECCOMP_MODE_FILTER) {
    SeccompState leader;
    if (husk.notes != nullptr && husk.notes->contains(this)) {
      GW_ASSIGN_OR_RETURN(leader, parse_state<SeccompState>(husk.notes->at(this), name()));
    }
    common = leader.common();
    if (state.of_leader() < common ||
        state.of_leader() > static_cast<uint32_t>(leader.filters_size()))
      return damaged(husk.tid, fmt::format("{} filters of the first task's {}, {} common",
                                           state.of_leader(), leader.filters_size(), common));
    // It has those that the first task's batch gave to all.
    for (uint32_t i = common; i < state.of_leader(); ++i)
      calls.push_back(add_filter(leader.filters(static_cast<int>(i)), false, batch));
    common = 0;
  }
  for (int i = 0; i < state.filters_size(); ++i)
    calls.push_back(add_filter(state.filters(i), static_cast<uint32_t>(i) < common, batch));
  return Check([calls = std::move(calls), tid = husk.tid](const tracee::Batch& done) {
    for (const size_t call : calls) {
      GW_RETURN_IF_ERROR(done.check(call));
      // With SECCOMP_FILTER_FLAG_TSYNC: the thread that could not be given the filter.
      if (done.result(call) != 0)
        return make_error(absl::StatusCode::kInternal,
                          "task {}: seccomp(SECCOMP_SET_MODE_FILTER): thread {} has other filters",
                          tid.value, done.result(call));
    }
    return absl::OkStatus();
  });
}

}  // namespace godwit::resource
