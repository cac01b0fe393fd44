#include "resource/inotify/inotify.h"

#include <fmt/format.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>

#include "kernel/proc/mountinfo.h"
#include "kernel/proc/text_scanner.h"
#include "resource/file_description.h"
#include "resource/inotify/inotify.pb.h"
#include "resource/inotify/watched.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

// include/uapi/linux/inotify.h, Linux 4.17.
constexpr unsigned long kSetNextWatch = _IOW('I', 0, int32_t);

class InotifyKind final : public FileKind {
 public:
  std::string_view name() const override { return "inotify"; }
  bool recognise(const OpenFile& file) const override { return file.link == "anon_inode:inotify"; }
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  bool early() const override { return true; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override;
  std::string describe(std::string_view state) const override;
};

// "wd:1 ino:3148 sdev:1b mask:3ff ignored_mask:0 ...", numbers in hexadecimal.
bool parse_watch(std::string_view text, InotifyState::Watch& watch) {
  uint32_t number = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
  uint32_t mask = 0;
  kernel::TextScanner s(text);
  if (!s.literal("wd:") || !s.number(number, 16) || !s.literal(" ino:") || !s.number(inode, 16) ||
      !s.literal(" sdev:") || !s.number(device, 16) || !s.literal(" mask:") || !s.number(mask, 16))
    return false;
  watch.set_number(static_cast<int32_t>(number));
  watch.set_mask(mask);
  return true;
}

// Where a name of a file system is seen below the root of who has `mounts`: "" where it is not.
std::string below(const kernel::Mount& mount, std::string_view name) {
  const std::string root = mount.root == "/" ? "" : mount.root;
  if (!name.starts_with(root) || (name.size() > root.size() && name[root.size()] != '/')) return "";
  std::string path = mount.point == "/" ? "" : mount.point;
  path += name.substr(root.size());
  return path.empty() || path == "/"
             ? "/"
             : std::string(path.ends_with('/') ? path.substr(0, path.size() - 1) : path);
}

// A name by which the capsule finds that very inode; empty: there is none.
absl::StatusOr<std::string> find_path(const WatchedInode& watched,
                                      const std::vector<kernel::Mount>& mounts,
                                      const CaptureContext& context,
                                      const kernel::KernelMemory& memory) {
  std::string found;
  GW_RETURN_IF_ERROR(context.in_capsule([&]() -> absl::Status {
    for (const std::string& name : watched.names)
      for (const kernel::Mount& mount : mounts) {
        if (mount.dev != watched.device) continue;
        const std::string path = below(mount, name);
        if (path.empty()) continue;
        const auto opened = kernel::open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (!opened.ok()) continue;
        GW_ASSIGN_OR_RETURN(const kernel::KernelAddress inode, inode_of(opened->get(), memory));
        if (inode != watched.inode) continue;
        found = path;
        return absl::OkStatus();
      }
    return absl::OkStatus();
  }));
  return found;
}

absl::StatusOr<InotifyState> read_watches(const OpenFile& file, const CaptureContext& context,
                                          std::vector<Refusal>& refusals) {
  InotifyState state;
  state.set_flags(static_cast<uint32_t>(file.status_flags));
  const auto memory = context.kernel_memory();
  if (!memory.ok()) {
    refuse(file, "inotify.kernel",
           "this kernel does not show what is watched: " + std::string(message_of(memory.status())),
           "a kernel with CONFIG_DEBUG_INFO_BTF, as distributions have it", refusals);
    return state;
  }
  GW_ASSIGN_OR_RETURN(const InotifyView view, look_at_inotify(file.fd, **memory));
  state.set_next_number(view.next_number);
  // While the program runs it may change between the two.
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  std::vector<kernel::Mount> mounts;
  if (!view.watched.empty()) {
    GW_ASSIGN_OR_RETURN(mounts, kernel::read_mountinfo(context.init_pid()));
  }
  for (const kernel::FdInfo::Line& line : info.lines) {
    if (line.key != "inotify") continue;
    InotifyState::Watch& watch = *state.add_watches();
    if (!parse_watch(line.value, watch))
      return make_error(absl::StatusCode::kFailedPrecondition, "{}: fdinfo is not understood",
                        object_of(file));
    const auto watched = view.watched.find(watch.number());
    if (watched == view.watched.end())
      return make_error(absl::StatusCode::kUnavailable, "{}: its watches are changing",
                        object_of(file));
    GW_ASSIGN_OR_RETURN(std::string path, find_path(watched->second, mounts, context, **memory));
    if (path.empty())
      refuse(
          file, "inotify.unnamed",
          fmt::format("what its watch {} is on has no name any more, or none that can be found{}",
                      watch.number(),
                      watched->second.names.empty() ? "" : " (" + watched->second.names[0] + ")"),
          "let the program remove that watch, or watch it again by its name", refusals);
    watch.set_path(std::move(path));
  }
  return state;
}

absl::StatusOr<InotifyState> parse(std::string_view bytes) {
  GW_ASSIGN_OR_RETURN(auto state, parse_state<InotifyState>(bytes, "inotify"));
  for (const auto& watch : state.watches())
    if (watch.number() < 1 || !watch.path().starts_with('/') ||
        watch.path().find('\0') != std::string::npos)
      return make_error(absl::StatusCode::kDataLoss, "inotify: watch {} is not valid",
                        watch.number());
  if (state.next_number() < 0)
    return make_error(absl::StatusCode::kDataLoss, "inotify: the next number is below 0");
  return state;
}

}  // namespace

const FileKind& inotify_kind() {
  static const InotifyKind kind;
  return kind;
}

absl::Status InotifyKind::precheck(const OpenFile& file, const CaptureContext& context,
                                   std::vector<Refusal>& refusals) const {
  const absl::Status read = read_watches(file, context, refusals).status();
  // It changes them just now: the next look will see.
  return absl::IsUnavailable(read) ? absl::OkStatus() : read;
}

absl::StatusOr<std::string> InotifyKind::capture(const OpenFile& file,
                                                 const CaptureContext& context) const {
  std::vector<Refusal> refusals;
  GW_ASSIGN_OR_RETURN(const InotifyState state, read_watches(file, context, refusals));
  GW_RETURN_IF_ERROR(refused_now(refusals));
  int unread = 0;
  if (::ioctl(file.fd, FIONREAD, &unread) != 0) return errno_status(errno, "ioctl(FIONREAD)");
  if (context.final() && unread != 0)
    return make_error(absl::StatusCode::kUnavailable, "{}: it has events that were not read yet",
                      object_of(file));
  return state.SerializeAsString();
}

absl::StatusOr<UniqueFd> InotifyKind::create(uint64_t, std::string_view bytes,
                                             RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const InotifyState state, parse(bytes));
  UniqueFd fd(::inotify_init1(IN_CLOEXEC));
  if (!fd) return errno_status(errno, "inotify_init1()");
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> InotifyKind::update(int fd, std::string_view, std::string_view now,
                                         RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const InotifyState state, parse(now));
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(state.flags())));
  return true;
}

// In the husk, when everything of ours that opens files is done: else our own accesses would be
// events. The last one first, since fdinfo shows the last one first.
absl::StatusOr<FileKind::Check> InotifyKind::finish(int, std::string_view bytes, ImagePid,
                                                    int remote_fd, tracee::Batch& batch,
                                                    RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const InotifyState state, parse(bytes));
  std::vector<std::pair<size_t, std::string>> calls;
  for (int i = state.watches_size(); i-- > 0;) {
    const InotifyState::Watch& watch = state.watches(i);
    const auto path =
        batch.data(std::as_bytes(std::span(watch.path().c_str(), watch.path().size() + 1)));
    batch.call(SYS_ioctl, {remote_fd, kSetNextWatch, watch.number()}, true);
    calls.emplace_back(
        batch.call(SYS_inotify_add_watch, {remote_fd, path, watch.mask() | IN_DONT_FOLLOW}, true),
        fmt::format("watch {} on {}", watch.number(), watch.path()));
  }
  if (state.next_number() > 0)
    batch.call(SYS_ioctl, {remote_fd, kSetNextWatch, state.next_number()}, true);
  return [state, calls = std::move(calls)](const tracee::Batch& run) -> absl::Status {
    for (size_t i = 0; i < calls.size(); ++i) {
      GW_RETURN_IF_ERROR(annotate(run.check(calls[i].first), calls[i].second));
      const int number = state.watches(state.watches_size() - 1 - static_cast<int>(i)).number();
      if (run.result(calls[i].first) != number)
        return make_error(absl::StatusCode::kInternal, "{}: has become number {}", calls[i].second,
                          run.result(calls[i].first));
    }
    return absl::OkStatus();
  };
}

std::string InotifyKind::describe(std::string_view bytes) const {
  const auto state = parse_state<InotifyState>(bytes, name());
  if (!state.ok()) return "inotify (unreadable)";
  return fmt::format("inotify, {} watches", state->watches_size());
}

}  // namespace godwit::resource
