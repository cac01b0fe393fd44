// Pseudoterminals of a replica: made before its processes, completed when all else is there.
#include <asm/ioctls.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <span>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/replica.h"
#include "process/replica_context.h"

namespace godwit::process {

using resource::Terminal;

absl::Status Replica::make_terminals() {
  std::set<uint32_t> indexes;
  for (auto at = sections_.lower_bound({"terminal", 0});
       at != sections_.end() && at->first.kind == "terminal"; ++at) {
    GW_ASSIGN_OR_RETURN(const resource::TerminalState state, resource::parse_terminal(at->second));
    indexes.insert(state.index());
    const auto make = [&]() -> absl::Status {
      if (!terminals_.contains(state.index())) {
        Terminal made;
        GW_RETURN_IF_ERROR(host_.in_capsule([&]() -> absl::Status {
          GW_ASSIGN_OR_RETURN(made, resource::make_terminal(state));
          return absl::OkStatus();
        }));
        terminals_.emplace(state.index(), std::move(made));
      }
      return resource::set_terminal(terminals_.at(state.index()), state);
    };
    GW_RETURN_IF_ERROR(annotate(make(), resource::describe_terminal(state)));
  }
  std::erase_if(terminals_, [&](const auto& entry) { return !indexes.contains(entry.first); });
  // Before the freeze, if there are rounds. Without it only what lies unread cannot be put back.
  if (!terminals_.empty() && !kernel_memory_.has_value()) {
    auto opened = kernel::KernelMemory::open();
    kernel_memory_ = opened.ok() ? *std::move(opened) : nullptr;
  }
  return absl::OkStatus();
}

// By a session's leader that has no children in that session yet: they will be born with it.
absl::Status Replica::take_terminal(Husk& husk, uint32_t wanted) {
  const auto found = terminals_.find(wanted - 1);
  if (found == terminals_.end() || !found->second.slave)
    return make_error(absl::StatusCode::kDataLoss, "its terminal {} has no section", wanted - 1);
  const int slave = found->second.slave.get();
  GW_ASSIGN_OR_RETURN(const std::vector<int> lent, husk.lend(channel_, std::span(&slave, 1)));
  tracee::Batch batch;
  batch.call(SYS_ioctl, {lent[0], TIOCSCTTY, 0}, true);
  batch.call(SYS_close, {lent[0]}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  GW_RETURN_IF_ERROR(batch.check_all());
  terminal_of_[husk.pid().value] = wanted;
  return absl::OkStatus();
}

// Of leaders that were there before: one may have taken or lost its terminal since.
absl::Status Replica::check_controlling_terminals(const resource::ProcessTreeState& tree) const {
  for (const auto& process : tree.processes()) {
    if (process.zombie() || process.session() != process.pid()) continue;
    const auto has = terminal_of_.find(process.pid());
    if ((has == terminal_of_.end() ? 0 : has->second) != process.terminal())
      return make_error(absl::StatusCode::kAborted,
                        "process {} has changed its controlling terminal during the move; move it "
                        "again",
                        process.pid());
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Replica::Context::open_controlling_terminal(uint32_t index, int flags) {
  for (auto& [pid, husk] : replica_.husks_) {
    const auto has = replica_.terminal_of_.find(pid);
    if (has == replica_.terminal_of_.end() || has->second != index + 1) continue;
    const std::string_view path("/dev/tty", sizeof "/dev/tty");
    tracee::Batch open;
    const auto name = open.data(std::as_bytes(std::span(path)));
    const size_t call = open.call(SYS_openat, {AT_FDCWD, name, flags}, true);
    GW_RETURN_IF_ERROR(husk.run(open));
    GW_RETURN_IF_ERROR(annotate(open.check(call), "openat(\"/dev/tty\")"));
    const auto number = static_cast<int>(open.result(call));
    GW_ASSIGN_OR_RETURN(const UniqueFd pidfd, kernel::pidfd_open(husk.host_pid()));
    GW_ASSIGN_OR_RETURN(UniqueFd taken, kernel::pidfd_getfd(pidfd.get(), number));
    tracee::Batch close;
    close.call(SYS_close, {number}, true);
    GW_RETURN_IF_ERROR(husk.run(close));
    GW_RETURN_IF_ERROR(close.check_all());
    return taken;
  }
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "terminal {} was opened as /dev/tty and is no session's any more", index);
}

// Only a process of the terminal's session may say which group is in the foreground. One that has
// no processes any more cannot be: then it stays the leader's.
absl::Status Replica::set_foreground(const Terminal& terminal) {
  const int32_t group = terminal.state.foreground();
  resource::ProcessTreeState tree;
  if (group == 0 || !tree.ParseFromString(*wanted("process_tree", 0))) return absl::OkStatus();
  for (auto& [pid, husk] : husks_) {
    const auto has = terminal_of_.find(pid);
    if (has == terminal_of_.end() || has->second != terminal.state.index() + 1) continue;
    const bool there = std::any_of(tree.processes().begin(), tree.processes().end(),
                                   [&, session = pid](const auto& p) {
                                     return p.process_group() == group && p.session() == session;
                                   });
    if (!there) return absl::OkStatus();
    const int slave = terminal.slave.get();
    GW_ASSIGN_OR_RETURN(const std::vector<int> lent, husk.lend(channel_, std::span(&slave, 1)));
    tracee::Batch batch;
    const auto number = batch.data(std::as_bytes(std::span(&group, 1)));
    batch.call(SYS_ioctl, {lent[0], TIOCSPGRP, number}, true);
    batch.call(SYS_close, {lent[0]}, true);
    GW_RETURN_IF_ERROR(husk.run(batch));
    return batch.check_all();
  }
  return absl::OkStatus();
}

absl::Status Replica::complete_terminals() {
  for (auto& [index, terminal] : terminals_) {
    const auto complete = [&, &one = terminal]() -> absl::Status {
      GW_RETURN_IF_ERROR(set_foreground(one));
      GW_RETURN_IF_ERROR(resource::complete_terminal(one, kernel_memory_->get()));
      return one.state.outside() ? host_.take_terminal(one.master.get()) : absl::OkStatus();
    };
    GW_RETURN_IF_ERROR(annotate(complete(), resource::describe_terminal(terminal.state)));
  }
  if (!terminals_.empty()) spans_.mark("terminals");
  return absl::OkStatus();
}

}  // namespace godwit::process
