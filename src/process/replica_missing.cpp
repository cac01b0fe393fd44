// Post-copy, at the destination: husks that lack pages.
#include <fcntl.h>
#include <sys/syscall.h>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/left_behind.h"
#include "process/replica.h"
#include "resource/registers/registers.pb.h"

namespace godwit::process {

using resource::MappingState;

// What came before is not to be seen any more: dropped, as if the program had.
absl::Status Replica::miss_pages(const stream::PagesMissing& frame) {
  if ((frame.space & stream::kSharedSpace) != 0)
    return absl::DataLossError("pages of a shared object are said to be missing");
  GW_ASSIGN_OR_RETURN(Husk * husk, husk_of(frame.space));
  const pages::PageSet pages = pages::page_set_of(frame.runs);
  if (const auto applier = appliers_.find(husk->pid().value); applier != appliers_.end())
    applier->second.drop(frame.runs);
  Missing& missing = missing_[husk->pid().value];
  missing.pages.add(pages);
  if (missing.uffd && missing.husk == husk->host_pid()) return absl::OkStatus();
  return annotate(make_userfaultfd(*husk), fmt::format("process {}", husk->pid().value));
}

// In a round, where it can be: the husk has root's rights until its own are restored.
absl::Status Replica::make_userfaultfd(Husk& husk) {
  tracee::Batch make;
  const size_t made = make.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}, true);
  GW_RETURN_IF_ERROR(husk.run(make));
  GW_RETURN_IF_ERROR(make.check_all());
  const int number = static_cast<int>(make.result(made));
  GW_ASSIGN_OR_RETURN(const UniqueFd pidfd, kernel::pidfd_open(husk.host_pid()));
  GW_ASSIGN_OR_RETURN(UniqueFd uffd, kernel::pidfd_getfd(pidfd.get(), number));
  tracee::Batch close;
  close.call(SYS_close, {number}, true);
  GW_RETURN_IF_ERROR(husk.run(close));
  GW_RETURN_IF_ERROR(close.check_all());
  GW_RETURN_IF_ERROR(pages::enable_missing(uffd.get()));
  Missing& missing = missing_[husk.pid().value];
  missing.husk = husk.host_pid();
  missing.uffd = std::move(uffd);
  return absl::OkStatus();
}

bool Replica::may_miss(uint64_t space) const {
  const auto husk = husks_.find(static_cast<int32_t>(space));
  if (husk == husks_.end() || space > INT32_MAX) return false;
  const auto missing = missing_.find(static_cast<int32_t>(space));
  const bool made = missing != missing_.end() && missing->second.uffd &&
                    missing->second.husk == husk->second.host_pid();
  return made || !final_;
}

absl::StatusOr<std::vector<std::pair<uint64_t, pages::PageSet>>> Replica::needed_first() {
  if (!sections_applied_) GW_RETURN_IF_ERROR(apply_sections());
  std::vector<std::pair<uint64_t, pages::PageSet>> all;
  for (auto& [pid, missing] : missing_) {
    const auto found = husks_.find(pid);
    if (found == husks_.end()) continue;
    Husk& husk = found->second;
    pages::PageSet there, later, needed;
    for (const MappingState& mapping : husk.memory_map.mappings()) {
      there.add({mapping.start(), mapping.end()});
      if (can_come_later(mapping)) later.add({mapping.start(), mapping.end()});
    }
    missing.pages = missing.pages.intersect(there);
    for (const HuskTask& task : husk.tasks()) {
      const auto tid = static_cast<uint64_t>(task.tid.value);
      for (const resource::TaskResource* resource : resource::task_resources())
        if (const std::string* state = wanted(resource->name(), tid); state != nullptr)
          add_written_by_kernel(*resource, *state, needed);
      resource::RegistersState registers;
      const std::string* state = wanted("registers", tid);
      // In the order of user_regs_struct. What does not parse is refused where it is restored.
      if (state != nullptr && registers.ParseFromString(*state) && registers.general_size() > 21)
        add_first_needed(registers.general(16), registers.general(19), registers.general(21),
                         needed);
    }
    pages::PageSet first = missing.pages;
    first.subtract(later);
    first.add(missing.pages.intersect(needed));
    if (!first.empty()) all.emplace_back(static_cast<uint64_t>(pid), std::move(first));
  }
  return all;
}

// From here on whoever touches what is missing waits for it, the husk's own stub included.
absl::Status Replica::arm_missing() {
  // A process that has ended since lacks nothing.
  std::erase_if(missing_, [this](const auto& each) { return !husks_.contains(each.first); });
  for (auto& [pid, missing] : missing_) {
    if (missing.pages.empty()) continue;
    GW_ASSIGN_OR_RETURN(const Husk* husk, husk_of(static_cast<uint64_t>(pid)));
    pages::PageSet left = missing.pages;
    for (const MappingState& mapping : husk->memory_map.mappings()) {
      const pages::PageRange range{mapping.start(), mapping.end()};
      if (mapping.kind() != MappingState::KIND_ANONYMOUS || mapping.huge_page_bytes() != 0 ||
          left.intersect(range).empty())
        continue;
      GW_RETURN_IF_ERROR(annotate(pages::register_missing(missing.uffd.get(), range),
                                  fmt::format("process {}", pid)));
      left.subtract(range);
    }
    if (!left.empty())
      return make_error(absl::StatusCode::kDataLoss,
                        "process {}: page {:x} is to come later, but no memory of its own is there",
                        pid, left.ranges().front().start);
  }
  return absl::OkStatus();
}

uint64_t Replica::pages_missing() const {
  uint64_t pages = 0;
  for (const auto& [pid, missing] : missing_) pages += missing.pages.pages();
  return pages;
}

std::vector<pages::FaultService::Space> Replica::take_missing() {
  std::vector<pages::FaultService::Space> spaces;
  for (auto& [pid, missing] : missing_)
    if (!missing.pages.empty())
      spaces.push_back({{static_cast<uint64_t>(pid), missing.husk, std::move(missing.pages)},
                        std::move(missing.uffd)});
  missing_.clear();
  return spaces;
}

}  // namespace godwit::process
