// Pseudoterminals of the service: whose both sides are known, and what lies in them.
#include <asm/ioctls.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/status.h"
#include "process/source.h"

namespace godwit::process {

using resource::TerminalEnds;

std::map<uint32_t, TerminalEnds> Source::terminals() const {
  std::vector<const resource::OpenFile*> files;
  for (const auto& one : descriptors_->descriptions())
    if (one.kind == &resource::terminal_kind()) files.push_back(&one.file);
  // Its own is nobody's any more when nobody has it open or as a controlling terminal.
  bool used = !files.empty();
  for (const auto& process : tree_.state.processes()) used |= process.terminal() != 0;
  return used ? resource::find_terminals(files, host_.terminal)
              : std::map<uint32_t, TerminalEnds>();
}

absl::Status Source::precheck_terminals(std::vector<resource::Refusal>& refusals) {
  const std::map<uint32_t, TerminalEnds> found = terminals();
  for (const auto& [index, ends] : found) {
    const std::string object = fmt::format("terminal /dev/pts/{}", index);
    if (ends.master < 0) {
      refusals.push_back({"terminal.outside", object,
                          "its master is held by a process outside of the service",
                          "end the session that opened it (godwit exec -t), or run both programs "
                          "in one service"});
      continue;
    }
    int discipline = 0;
    if (::ioctl(ends.master, TIOCGETD, &discipline) == 0 && discipline != 0)
      refusals.push_back({"terminal.discipline", object,
                          fmt::format("it has line discipline {}", discipline),
                          "let the program use the ordinary one (N_TTY)"});
    if (const auto memory = kernel_memory(); !memory.ok())
      refusals.push_back({"terminal.kernel", object,
                          "this kernel does not show what lies unread in it: " +
                              std::string(message_of(memory.status())),
                          "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it"});
  }
  std::map<int32_t, uint32_t> of_leader;  // by session
  for (const auto& process : tree_.state.processes())
    if (process.session() == process.pid()) of_leader[process.pid()] = process.terminal();
  for (const auto& process : tree_.state.processes()) {
    if (process.zombie()) continue;
    const std::string object = fmt::format("process {}", process.pid());
    if (process.terminal() != 0 && !found.contains(process.terminal() - 1))
      refusals.push_back({"terminal.outside", object,
                          "its controlling terminal is held by a process outside of the service",
                          "end the session that opened it, or start the program without one"});
    const auto leader = of_leader.find(process.session());
    if (leader != of_leader.end() && leader->second != process.terminal())
      refusals.push_back({"terminal.given_up", object,
                          "it has another controlling terminal than its session's leader "
                          "(TIOCNOTTY, or born before the leader had one)",
                          "let the program begin a session of its own (setsid)"});
  }
  return absl::OkStatus();
}

absl::Status Source::capture_terminals() {
  terminal_states_.clear();
  const std::map<uint32_t, TerminalEnds> found = terminals();
  if (found.empty()) return absl::OkStatus();
  // Who has taken a controlling terminal since the tree was read shows nowhere else.
  if (final_) GW_RETURN_IF_ERROR(read_frozen_tree());
  GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, kernel_memory());
  for (const auto& [index, ends] : found) {
    const auto capture = [&, which = index, of = ends]() -> absl::StatusOr<std::string> {
      if (of.master < 0)
        return make_error(absl::StatusCode::kFailedPrecondition,
                          "terminal.outside: its master is held outside of the service");
      GW_ASSIGN_OR_RETURN(resource::TerminalState state,
                          resource::capture_terminal(of, final_, *memory));
      const std::string path = fmt::format("/proc/{}/root/dev/pts/{}", host_.init.value, which);
      struct stat st {};
      if (::stat(path.c_str(), &st) != 0) return errno_status(errno, fmt::format("stat({})", path));
      state.set_mode(st.st_mode & 07777U);
      state.set_uid(st.st_uid);
      state.set_gid(st.st_gid);
      return state.SerializeAsString();
    };
    auto state = capture();
    if (state.ok())
      terminal_states_.emplace_back(index, *std::move(state));
    else if (final_)  // while it runs it may go under our hands
      return annotate(state.status(), fmt::format("terminal /dev/pts/{}", index));
  }
  return absl::OkStatus();
}

absl::Status Source::terminal_sections(stream::Writer& writer) {
  for (auto& [index, state] : terminal_states_)
    GW_RETURN_IF_ERROR(section(writer, "terminal", uint64_t{index} + 1, std::move(state)));
  terminal_states_.clear();
  return absl::OkStatus();
}

}  // namespace godwit::process
