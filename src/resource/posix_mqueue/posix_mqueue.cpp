#include "resource/posix_mqueue/posix_mqueue.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "resource/file_description.h"

namespace godwit::resource {
namespace {

constexpr long kQueueFileSystem = 0x19800202;  // MQUEUE_MAGIC, ipc/mqueue.c

// include/uapi/linux/mount.h, Linux 5.2.
constexpr unsigned kCloseOnExec = 1;    // FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
constexpr unsigned kCreateCommand = 6;  // FSCONFIG_CMD_CREATE

class PosixMqueueKind final : public FileKind {
 public:
  std::string_view name() const override { return "posix_mqueue"; }
  // Its link is its name in that file system, "/name".
  bool recognise(const OpenFile& file) const override {
    if (!S_ISREG(file.stat.st_mode) || file.link.rfind('/') != 0) return false;
    struct statfs of {};
    return ::fstatfs(file.fd, &of) == 0 && of.f_type == kQueueFileSystem;
  }
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext&,
                        std::vector<Refusal>& refusals) const override {
    refuse(file, "mqueue.open", "POSIX message queues are not carried",
           "let the program use System V message queues, pipes or sockets", refusals);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override {
    std::vector<Refusal> refusals;
    GW_RETURN_IF_ERROR(precheck(file, context, refusals));
    return refused_now(refusals);
  }
  bool early() const override { return false; }
  absl::StatusOr<UniqueFd> create(uint64_t, std::string_view, RestoreContext&) const override {
    return unknown();
  }
  absl::StatusOr<bool> update(int, std::string_view, std::string_view,
                              RestoreContext&) const override {
    return unknown();
  }
  absl::StatusOr<Check> finish(int, std::string_view, ImagePid, int, tracee::Batch&,
                               RestoreContext&) const override {
    return unknown();
  }
  std::string describe(std::string_view) const override { return "POSIX message queue"; }

 private:
  static absl::Status unknown() {
    return make_error(absl::StatusCode::kDataLoss, "a POSIX message queue cannot be in an image");
  }
};

absl::StatusOr<UniqueFd> taken(long fd, const char* call) {
  if (fd < 0) return errno_status(errno, fmt::format("{}(mqueue)", call));
  return UniqueFd(static_cast<int>(fd));
}

}  // namespace

const FileKind& posix_mqueue_kind() {
  static const PosixMqueueKind kind;
  return kind;
}

absl::StatusOr<UniqueFd> open_queue_folder() {
  GW_ASSIGN_OR_RETURN(const UniqueFd context,
                      taken(::syscall(SYS_fsopen, "mqueue", kCloseOnExec), "fsopen"));
  if (::syscall(SYS_fsconfig, context.get(), kCreateCommand, nullptr, nullptr, 0) != 0)
    return errno_status(errno, "fsconfig(mqueue)");
  GW_ASSIGN_OR_RETURN(const UniqueFd mount,
                      taken(::syscall(SYS_fsmount, context.get(), kCloseOnExec, 0), "fsmount"));
  return kernel::openat(mount.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

absl::StatusOr<std::vector<std::string>> queue_names(int folder) {
  // A description of its own: the position is not ours alone.
  GW_ASSIGN_OR_RETURN(UniqueFd own,
                      kernel::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  DIR* list = ::fdopendir(own.get());
  if (list == nullptr) return errno_status(errno, "fdopendir(mqueue)");
  (void)own.release();
  absl::Cleanup close = [list] { ::closedir(list); };
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(list))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace godwit::resource
