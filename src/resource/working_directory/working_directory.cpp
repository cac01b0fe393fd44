// Working directory and root of a process: /proc/PID/cwd and /proc/PID/root (proc(5)), read as
// paths below the capsule's root; chroot(2) and chdir(2) in the husk, whose mount namespace is the
// capsule's. Small enough for one file.
#include "resource/working_directory/working_directory.h"

#include <fcntl.h>
#include <sys/syscall.h>

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

class WorkingDirectory final : public TaskResource {
 public:
  std::string_view name() const override { return "working_directory"; }
  Scope scope() const override { return Scope::kProcess; }
  Phase phase() const override { return Phase::kFinal; }
  bool keeps_in_husk() const override { return true; }

  absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const override {
    const auto state = std::make_shared<WorkingDirectoryState>();
    batch.meanwhile([state, task]() -> absl::Status {
      GW_ASSIGN_OR_RETURN(*state->mutable_path(), link(task, "cwd"));
      GW_ASSIGN_OR_RETURN(*state->mutable_root(), link(task, "root"));
      return absl::OkStatus();
    });
    return [state](const tracee::Batch&) {
      return absl::StatusOr<std::string>(state->SerializeAsString());
    };
  }

  absl::StatusOr<Check> restore(std::string_view bytes, const TaskView&,
                                tracee::Batch& batch) const override {
    WorkingDirectoryState state;
    if (!state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
      return make_error(absl::StatusCode::kDataLoss, "working_directory: not a valid state");
    // Both paths are those of the capsule, so the root comes last; the directory may lie outside.
    batch.call(SYS_chdir, {text(state.path(), batch)}, true);
    if (state.root() != "/") batch.call(SYS_chroot, {text(state.root(), batch)}, true);
    return Check();
  }

  absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const override {
    GW_ASSIGN_OR_RETURN(const std::string path, link(task, "cwd"));
    if (path.ends_with(" (deleted)"))
      refusals.push_back({"cwd.deleted", fmt::format("process {}", task.tgid.value),
                          fmt::format("its working directory {} has been removed", path),
                          "let the program change to a directory that exists"});
    GW_ASSIGN_OR_RETURN(const std::string root, link(task, "root"));
    if (root.ends_with(" (deleted)"))
      refusals.push_back({"root.deleted", fmt::format("process {}", task.tgid.value),
                          fmt::format("its root {} has been removed", root),
                          "keep the directory that chroot(2) is given while the program runs"});
    return absl::OkStatus();
  }

 private:
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
