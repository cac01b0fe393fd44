// For tests of file kinds: contexts that stand for the source's and the destination's, and an
// OpenFile made from a descriptor of the test's own process.
#ifndef GODWIT_RESOURCE_TESTING_CONTEXTS_H_
#define GODWIT_RESOURCE_TESTING_CONTEXTS_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/syscalls.h"
#include "resource/raw_sockets.h"
#include "resource/resource.h"
#include "resource/terminal/terminal.h"

namespace godwit::resource::testing {

// The description behind descriptor `fd` of this process, as process/source would hand it over.
// `id` 0 takes the descriptor's number. Aborts the test binary on a bad descriptor.
inline OpenFile open_file(int fd, uint64_t id = 0) {
  OpenFile file;
  file.id = id != 0 ? id : static_cast<uint64_t>(fd) + 1;
  file.fd = fd;
  file.tgid = {::getpid()};
  file.host_tgid = {::getpid()};
  file.remote_fd = fd;
  file.link = kernel::readlinkat(AT_FDCWD, "/proc/self/fd/" + std::to_string(fd)).value();
  file.fdinfo = kernel::read_fdinfo_text(file.host_tgid, fd).value();
  if (::fstat(fd, &file.stat) != 0) std::abort();
  file.status_flags = ::fcntl(fd, F_GETFL);
  return file;
}

// The tree's descriptions are those that were add()ed.
class FakeCaptureContext final : public CaptureContext {
 public:
  // Stays where it is until the context goes.
  const OpenFile& add(OpenFile file) {
    files_.push_back(std::make_unique<OpenFile>(std::move(file)));
    return *files_.back();
  }
  const OpenFile& add(int fd, uint64_t id = 0) { return add(open_file(fd, id)); }

  bool is_final = true;
  ino_t stdio_inodes[3] = {0, 0, 0};

  bool final() const override { return is_final; }
  uint64_t description_at(ImagePid tgid, int fd) const override {
    for (const auto& file : files_)
      if (file->tgid == tgid && file->remote_fd == fd) return file->id;
    return 0;
  }
  std::vector<const OpenFile*> with_inode(dev_t dev, ino_t ino) const override {
    std::vector<const OpenFile*> found;
    for (const auto& file : files_)
      if (file->stat.st_dev == dev && file->stat.st_ino == ino) found.push_back(file.get());
    return found;
  }
  ino_t stdio_inode(int stream) const override { return stdio_inodes[stream]; }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return action();
  }
  HostPid init_pid() const override { return {::getpid()}; }
  absl::StatusOr<const kernel::KernelMemory*> kernel_memory() const override {
    if (!memory_) {
      GW_ASSIGN_OR_RETURN(memory_, kernel::KernelMemory::open());
    }
    return memory_.get();
  }

 private:
  mutable std::unique_ptr<kernel::KernelMemory> memory_;
  std::vector<std::unique_ptr<OpenFile>> files_;
};

// Keeps the descriptions that the test has made (`made`) and what kinds have stashed.
class FakeRestoreContext final : public RestoreContext {
 public:
  bool is_final = true;
  std::map<uint64_t, UniqueFd> made;
  int stdio_fds[3] = {-1, -1, -1};
  std::map<uint32_t, Terminal> terminals;
  std::map<int32_t, HostPid> pids;  // others: the same number here

  bool final() const override { return is_final; }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return action();
  }
  HostPid init_pid() const override { return {::getpid()}; }
  absl::StatusOr<int> raw_socket(int family) override {
    return raw_sockets_.get(family,
                            [](absl::FunctionRef<absl::Status()> action) { return action(); });
  }
  int description(uint64_t id) const override {
    const auto found = made.find(id);
    return found == made.end() ? -1 : found->second.get();
  }
  void stash(std::string name, UniqueFd fd) override { stashed_[std::move(name)] = std::move(fd); }
  UniqueFd take(std::string_view name) override {
    const auto found = stashed_.find(std::string(name));
    if (found == stashed_.end()) return UniqueFd();
    UniqueFd fd = std::move(found->second);
    stashed_.erase(found);
    return fd;
  }
  int stdio(int stream) const override { return stdio_fds[stream]; }
  const Terminal* terminal(uint32_t index) const override {
    const auto found = terminals.find(index);
    return found == terminals.end() ? nullptr : &found->second;
  }
  // Only for a test whose own terminal it is.
  absl::StatusOr<UniqueFd> open_controlling_terminal(uint32_t, int flags) override {
    return kernel::open("/dev/tty", flags);
  }
  absl::StatusOr<HostPid> host_pid(ImagePid pid) const override {
    const auto found = pids.find(pid.value);
    return found == pids.end() ? HostPid{pid.value} : found->second;
  }
  int64_t source_clock_ns() const override { return monotonic_ns(); }

  size_t stashed_count() const { return stashed_.size(); }
  // As process/replica does when all descriptions are made: what nobody took is closed.
  void drop_stash() { stashed_.clear(); }

 private:
  std::map<std::string, UniqueFd> stashed_;
  RawSockets raw_sockets_;
};

}  // namespace godwit::resource::testing

#endif  // GODWIT_RESOURCE_TESTING_CONTEXTS_H_
