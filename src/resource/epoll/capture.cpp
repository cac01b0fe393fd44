// epoll(7). The set stands in fdinfo, one line an entry:
//   tfd:       12 events:       19 data:                c  pos:0 ino:40e sdev:10
// An entry belongs to an open file description, and remembers the number that it was added by. If
// that number is another description's by now (closed or replaced, while a dup lives on), the
// program can no longer name the entry, and neither could we: refused. Inode and device tell most
// files apart; where they do not (all eventfds and timerfds share one inode) kcmp(KCMP_EPOLL_TFD)
// does, which walks the set and is slow for big ones: so only there.
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "kernel/proc/text_scanner.h"
#include "resource/epoll/epoll.h"
#include "resource/epoll/epoll.pb.h"
#include "resource/epoll/epoll_internal.h"
#include "resource/file_description.h"

namespace godwit::resource {
namespace {

struct Target {
  int fd = -1;
  uint32_t events = 0;
  uint64_t data = 0;
  ino_t inode = 0;
  dev_t dev = 0;
  uint32_t order = 0;  // among those of the same number, as the kernel finds them
};

bool field(kernel::TextScanner& s, std::string_view key) {
  s.skip_blanks();
  if (!s.literal(key)) return false;
  s.skip_blanks();
  return true;
}

bool parse_target(std::string_view line, Target& t) {
  kernel::TextScanner s(line);
  uint64_t dev = 0;
  int64_t pos = 0;
  if (!s.number(t.fd) || !field(s, "events:") || !s.number(t.events, 16) || !field(s, "data:") ||
      !s.number(t.data, 16) || !field(s, "pos:") || !s.number(pos) || !field(s, "ino:") ||
      !s.number(t.inode, 16) || !field(s, "sdev:") || !s.number(dev, 16) || !s.at_end()) {
    return false;
  }
  // The kernel's own dev_t: MINORBITS is 20.
  t.dev = makedev(static_cast<unsigned>(dev >> 20), static_cast<unsigned>(dev & 0xfffff));
  return t.fd >= 0;
}

absl::StatusOr<std::vector<Target>> read_targets(const OpenFile& file) {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  std::vector<Target> targets;
  targets.reserve(info.lines.size());
  std::map<int, uint32_t> seen;
  for (const kernel::FdInfo::Line& line : info.lines) {
    if (line.key != "tfd") continue;
    Target target;
    if (!parse_target(line.value, target)) {
      return make_error(absl::StatusCode::kInvalidArgument, "{}: bad line of fdinfo: \"{}\"",
                        object_of(file), line.value.substr(0, 100));
    }
    target.order = seen[target.fd]++;
    targets.push_back(target);
  }
  return targets;
}

// Does entry `t` of the set watch our duplicate `candidate`?
absl::StatusOr<bool> watches(int epoll, const Target& t, int candidate) {
  const pid_t self = ::getpid();
  kcmp_epoll_slot slot{static_cast<uint32_t>(epoll), static_cast<uint32_t>(t.fd), t.order};
  const long order = ::syscall(SYS_kcmp, self, self, KCMP_EPOLL_TFD, candidate, &slot);
  if (order < 0) {
    return errno_status(errno, fmt::format("kcmp(KCMP_EPOLL_TFD, {}, {})", candidate, t.fd));
  }
  return order == 0;
}

// Empty if the entry can be added again by its number, else why not.
absl::StatusOr<std::string> trouble_with(const OpenFile& file, const Target& t,
                                         const CaptureContext& context) {
  const uint64_t id = context.description_at(file.tgid, t.fd);
  const std::vector<const OpenFile*> candidates = context.with_inode(t.dev, t.inode);
  if (candidates.empty()) {
    return fmt::format("it watches, as descriptor {}, a file that the service no longer holds",
                       t.fd);
  }
  const auto same = std::find_if(candidates.begin(), candidates.end(),
                                 [id](const OpenFile* f) { return f->id == id; });
  bool right = same != candidates.end();
  if (right && candidates.size() > 1) {
    GW_ASSIGN_OR_RETURN(right, watches(file.fd, t, (*same)->fd));
  }
  if (right) return std::string();
  return fmt::format(
      "what it watches as descriptor {} is no longer open by that number in process {}", t.fd,
      file.tgid.value);
}

}  // namespace

const FileKind& epoll_kind() {
  static const EpollKind kind;
  return kind;
}

bool EpollKind::recognise(const OpenFile& file) const {
  return file.link == "anon_inode:[eventpoll]";
}

absl::Status EpollKind::precheck(const OpenFile& file, const CaptureContext& context,
                                 std::vector<Refusal>& refusals) const {
  GW_ASSIGN_OR_RETURN(const std::vector<Target> targets, read_targets(file));
  for (const Target& target : targets) {
    GW_ASSIGN_OR_RETURN(std::string trouble, trouble_with(file, target, context));
    if (trouble.empty()) continue;
    refuse(file, "epoll.target", std::move(trouble),
           "remove a descriptor from the epoll set before closing it", refusals);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> EpollKind::capture(const OpenFile& file,
                                               const CaptureContext& context) const {
  GW_ASSIGN_OR_RETURN(std::vector<Target> targets, read_targets(file));
  EpollState state;
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  state.set_tgid(file.tgid.value);
  std::stable_sort(targets.begin(), targets.end(),
                   [](const Target& a, const Target& b) { return a.fd < b.fd; });
  for (const Target& target : targets) {
    // While the program runs the set may be ahead of the tables that the engine has read.
    if (context.final()) {
      GW_ASSIGN_OR_RETURN(const std::string trouble, trouble_with(file, target, context));
      if (!trouble.empty()) {
        return make_error(absl::StatusCode::kFailedPrecondition, "{}: epoll.target: {}",
                          object_of(file), trouble);
      }
    }
    EpollState::Entry& entry = *state.add_entries();
    entry.set_fd(target.fd);
    entry.set_events(target.events);
    entry.set_data(target.data);
  }
  return state.SerializeAsString();
}

}  // namespace godwit::resource
