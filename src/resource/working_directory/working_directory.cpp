// Working directory and root of a process: /proc/PID/cwd and /proc/PID/root (proc(5)), read as
// paths below the capsule's root; chroot(2) and chdir(2) in the husk, whose mount namespace is the
// capsule's. Small enough for one file.
#include "resource/working_directory/working_directory.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/working_directory/working_directory.pb.h"

namespace godwit::resource {
namespace {

tracee::Batch::Data text(std::string_view path, tracee::Batch& batch) {
  const std::string ended(path);
  return batch.data(std::as_bytes(std::span(ended.c_str(), ended.size() + 1)));
}

constexpr std::string_view kMark = " (deleted)";

// As another root sees it: links lead where they do there.
absl::StatusOr<UniqueFd> open_below(int root, const std::string& path) {
  open_how how{};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how)));
  if (!fd) return errno_status(errno, fmt::format("openat2(\"{}\", O_PATH)", path));
  return fd;
}

// A directory that is there until the husk is in it.
class Passing {
 public:
  // At `path` where it can be, else at another place, since its parent has gone as well or another
  // one has its name.
  static absl::StatusOr<std::shared_ptr<Passing>> make(int root, const WorkingDirectoryState& state,
                                                       ImagePid pid) {
    auto passing = std::make_shared<Passing>();
    const size_t last = state.path().rfind('/');
    if (last == std::string::npos)
      return make_error(absl::StatusCode::kDataLoss, "working directory \"{}\"", state.path());
    auto parent = open_below(root, last == 0 ? "/" : state.path().substr(0, last));
    const std::string name = state.path().substr(last + 1);
    const bool there = parent.ok() && !name.empty() && name != "." && name != ".." &&
                       ::mkdirat(parent->get(), name.c_str(), 0700) == 0;
    if (there) {
      passing->folder_ = *std::move(parent);
      passing->name_ = name;
      passing->path_ = state.path();
    } else {
      GW_ASSIGN_OR_RETURN(UniqueFd top, open_below(root, "/"));
      passing->name_ = fmt::format(".removed-{}", pid.value);
      if (::mkdirat(top.get(), passing->name_.c_str(), 0700) != 0)
        return errno_status(errno, fmt::format("mkdir(\"/{}\")", passing->name_));
      passing->folder_ = std::move(top);
      passing->path_ = "/" + passing->name_;
    }
    const WorkingDirectoryState::Removed& as = state.removed();
    if (::fchownat(passing->folder_.get(), passing->name_.c_str(), as.uid(), as.gid(), 0) != 0 ||
        ::fchmodat(passing->folder_.get(), passing->name_.c_str(), as.mode() & 07777, 0) != 0)
      return errno_status(errno, fmt::format("chown, chmod(\"{}\")", passing->path_));
    return passing;
  }
  Passing() = default;
  Passing(const Passing&) = delete;
  Passing& operator=(const Passing&) = delete;
  ~Passing() { (void)remove(); }
  const std::string& path() const { return path_; }
  absl::Status remove() {
    if (name_.empty()) return absl::OkStatus();
    const std::string name = std::exchange(name_, {});
    if (::unlinkat(folder_.get(), name.c_str(), AT_REMOVEDIR) != 0)
      return errno_status(errno, fmt::format("rmdir(\"{}\")", path_));
    return absl::OkStatus();
  }

 private:
  UniqueFd folder_;
  std::string name_;  // in it; empty: nothing to remove
  std::string path_;
};

class WorkingDirectory final : public TaskResource {
 public:
  std::string_view name() const override { return "working_directory"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }

  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override {
    const auto state = std::make_shared<WorkingDirectoryState>();
    batch.meanwhile([state, task]() -> absl::Status {
      GW_ASSIGN_OR_RETURN(*state, directory_of(task));
      GW_ASSIGN_OR_RETURN(*state->mutable_root(), link(task, "root"));
      return absl::OkStatus();
    });
    return [state](const tracee::Batch&) {
      return absl::StatusOr<std::string>(state->SerializeAsString());
    };
  }

  absl::StatusOr<Check> restore(std::string_view bytes, const TaskView& husk,
                                tracee::Batch& batch) const override {
    WorkingDirectoryState state;
    if (!state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
      return make_error(absl::StatusCode::kDataLoss, "working_directory: not a valid state");
    std::shared_ptr<Passing> passing;
    if (state.has_removed()) {
      GW_ASSIGN_OR_RETURN(const UniqueFd root,
                          kernel::open(fmt::format("/proc/{}/root", husk.host_tgid.value),
                                       O_PATH | O_DIRECTORY | O_CLOEXEC));
      GW_ASSIGN_OR_RETURN(passing, Passing::make(root.get(), state, husk.tgid));
    }
    // Both paths are those of the capsule, so the root comes last; the directory may lie outside.
    batch.call(SYS_chdir, {text(passing ? passing->path() : state.path(), batch)}, true);
    if (state.root() != "/") batch.call(SYS_chroot, {text(state.root(), batch)}, true);
    if (!passing) return Check();
    return [passing](const tracee::Batch&) { return passing->remove(); };
  }

  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override {
    GW_ASSIGN_OR_RETURN(const std::string root, link(task, "root"));
    if (root.ends_with(kMark))
      refusals.push_back({"root.deleted", fmt::format("process {}", task.tgid.value),
                          fmt::format("its root {} has been removed", root),
                          "keep the directory that chroot(2) is given while the program runs"});
    return absl::OkStatus();
  }

 private:
  // The mark is no proof: a name may end so.
  static absl::StatusOr<WorkingDirectoryState> directory_of(const TaskView& task) {
    WorkingDirectoryState state;
    GW_ASSIGN_OR_RETURN(std::string path, link(task, "cwd"));
    if (path.ends_with(kMark)) {
      struct stat is {};
      struct stat named {};
      const std::string cwd = fmt::format("/proc/{}/cwd", task.host_tgid.value);
      if (::stat(cwd.c_str(), &is) != 0) return errno_status(errno, fmt::format("stat({})", cwd));
      GW_ASSIGN_OR_RETURN(const UniqueFd root,
                          kernel::open(fmt::format("/proc/{}/root", task.host_tgid.value),
                                       O_PATH | O_DIRECTORY | O_CLOEXEC));
      const auto by_name = open_below(root.get(), path);
      if (!by_name.ok() || ::fstat(by_name->get(), &named) != 0 || named.st_ino != is.st_ino ||
          named.st_dev != is.st_dev) {
        path.resize(path.size() - kMark.size());
        state.mutable_removed()->set_mode(is.st_mode & 07777);
        state.mutable_removed()->set_uid(is.st_uid);
        state.mutable_removed()->set_gid(is.st_gid);
      }
    }
    state.set_path(std::move(path));
    return state;
  }

  static absl::StatusOr<std::string> link(const TaskView& task, std::string_view which) {
    return kernel::readlinkat(AT_FDCWD, fmt::format("/proc/{}/{}", task.host_tgid.value, which));
  }
};

}  // namespace

const TaskResource& working_directory_resource() {
  static const WorkingDirectory resource;
  return resource;
}

}  // namespace godwit::resource
