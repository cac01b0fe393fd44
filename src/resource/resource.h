// What a kernel resource has to say to be captured and restored. One folder each, one line in
// registry.cpp. Two shapes:
//
//   TaskResource   state of a task or a thread group (registers, credentials, timers, ...)
//   FileKind       state of an open file description (pipe, tcp_socket, epoll, ...)
//
// process/source and process/replica drive them. State is the bytes of the resource's own protobuf
// message (<name>.proto, message <Name>State in package godwit.resource): the engine compares
// those bytes to tell what changed since the last epoch, so capture must be deterministic: the
// same state gives the same bytes (no map fields).
#ifndef GODWIT_RESOURCE_RESOURCE_H_
#define GODWIT_RESOURCE_RESOURCE_H_

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "kernel/kernel_memory.h"
#include "resource/clone_addresses.h"
#include "resource/fd_table/file_view.h"
#include "resource/seen_tasks.h"
#include "tracee/batch.h"
#include "tracee/task.h"

namespace godwit::resource {

struct Terminal;  // terminal/terminal.h

// Why something cannot move, and the way out.
struct Refusal {
  std::string code;    // stable, for scripts: "fd.unknown", "seccomp.notify"
  std::string object;  // "process 12 (nginx), descriptor 7 -> /dev/kvm"
  std::string reason;
  std::string way_out;
};

struct AddressRange {
  uint64_t start = 0;
  uint64_t end = 0;
  bool overlaps(uint64_t s, uint64_t e) const { return s < end && start < e; }
};

class TaskResource;
// What a resource's restore() for the first task of a process leaves for its other tasks.
using ProcessNotes = std::map<const TaskResource*, std::string>;

// One task of the source or of a husk, stopped.
struct TaskView {
  ImagePid tgid;
  ImagePid tid;
  HostPid host_tgid;
  HostPid host_tid;
  bool leader = false;
  int pidfd = -1;  // of the thread group
  // Null while the program runs (precheck and the rounds): then only /proc is read.
  tracee::StoppedTask* task = nullptr;
  // In the freeze, of a thread that is not its process's first, where the kernel shows it: it may
  // save calls.
  const SeenTask* seen = nullptr;
  // For restore(): the state that the husk's task has, where it is known.
  std::optional<std::string_view> known;
  ProcessNotes* notes = nullptr;  // for restore()
};

enum class Scope { kInvalid, kProcess, kTask };

enum class Phase {
  kInvalid,
  // May be applied to a husk while the source still runs, again whenever it changes.
  kEarly,
  // Applied once, from the final epoch, before descriptors and sockets are complete.
  kFinal,
  // The very last, by ptrace alone, after the stub is gone: registers, signal mask.
  kLast,
};

class TaskResource {
 public:
  virtual ~TaskResource() = default;
  virtual std::string_view name() const = 0;
  virtual Scope scope() const = 0;
  virtual Phase phase() const = 0;

  // Reads what it can from outside and adds to `batch` the calls that only the task itself can
  // make. The returned function runs after the batch and gives the state's bytes. An empty string:
  // nothing to restore (the default of a new task).
  using Collect = std::function<absl::StatusOr<std::string>(const tracee::Batch&)>;
  virtual absl::StatusOr<Collect> capture(const TaskView& task, tracee::Batch& batch) const = 0;

  // All that decides the state of a task, compared with other tasks of its process: one of those
  // with the same is captured for all of them. None: each has its own.
  virtual std::optional<std::string> decided_by(const SeenTask&) const { return std::nullopt; }

  // Brings the husk's task to `state`: acts from outside, and adds calls to `batch`; the returned
  // function (may be empty) runs after the batch and checks results. Must be right also when an
  // earlier state was applied before. kLast resources get an empty batch that is never run.
  using Check = std::function<absl::Status(const tracee::Batch&)>;
  virtual absl::StatusOr<Check> restore(std::string_view state, const TaskView& husk,
                                        tracee::Batch& batch) const = 0;

  // In a husk only restore() changes it. What a husk has is captured in a round then, and in the
  // freeze restore() is called only for a state that differs.
  virtual bool keeps_in_husk() const { return false; }

  // While the program runs, from /proc only: what of this resource could not be restored.
  virtual absl::Status precheck(const TaskView& task, std::vector<Refusal>& refusals) const = 0;

  // Memory of the program's that the kernel writes while the task runs, whatever the program does:
  // the same at both ends only by chance.
  virtual std::vector<AddressRange> written_by_kernel(std::string_view /*state*/) const {
    return {};
  }
};

// SO_DOMAIN, SO_TYPE, SO_PROTOCOL.
struct SocketIdentity {
  int domain = -1;
  int type = -1;
  int protocol = -1;
};

// One open file description of the source, with a duplicate of it in our own table.
struct OpenFile {
  uint64_t id = 0;  // of the description, stable through the move
  int fd = -1;      // pidfd_getfd duplicate: shares offset and flags with the target's; -1: only
                    // `view` is known, and by it what a round found stands (FileKind::stands())
  ImagePid tgid;    // a process that has it open
  HostPid host_tgid;
  int remote_fd = -1;  // its number there
  std::string link;    // readlink /proc/PID/fd/N
  std::string fdinfo;  // text of /proc/PID/fdinfo/N; empty in the freeze for kinds whose
                       // needs_fdinfo() is false
  struct stat stat {};
  int status_flags = 0;                  // F_GETFL
  bool process_locks = false;            // a process has record locks by it (fcntl(2), F_SETLK)
  std::optional<SocketIdentity> socket;  // asked once for all kinds of sockets
  std::string settled;                   // what its kind's settle() gave, for capture()
  std::string_view settled_before;       // in the freeze: what it gave in the last round, if it did
  const FileView* view = nullptr;        // of a TCP socket, where there are views
};

// What a kind may ask while it captures.
class CaptureContext {
 public:
  virtual ~CaptureContext() = default;
  // True in the last epoch: everything is frozen and the gate is closed.
  virtual bool final() const = 0;
  // The description that descriptor `fd` of process `tgid` refers to, 0 if none.
  virtual uint64_t description_at(ImagePid tgid, int fd) const = 0;
  // Descriptions of the tree with this (st_dev, st_ino): both ends of a pipe share one inode.
  virtual std::vector<const OpenFile*> with_inode(dev_t dev, ino_t ino) const = 0;
  // Inode number of the capsule's own end of the service's stdio pipe: 0 stdin, 1 stdout,
  // 2 stderr; 0 if that stream is not a pipe of the shim's.
  virtual ino_t stdio_inode(int stream) const = 0;
  // Runs on a thread that is in the capsule's mount, network, ipc and uts namespaces, root and cwd
  // at the capsule's "/".
  virtual absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const = 0;
  // pid 1 of the capsule: /proc/<init>/root is its root.
  virtual HostPid init_pid() const = 0;
  // The kernel's memory, for what no call tells; made at the first call and kept. An error: this
  // kernel does not show it.
  virtual absl::StatusOr<const kernel::KernelMemory*> kernel_memory() const {
    return absl::UnimplementedError("the kernel's memory is not read here");
  }
  // False only if it is known that since the first round began nobody called setsockopt(2) for the
  // TCP connection between these ports in the network namespace with this SO_NETNS_COOKIE, nor for
  // a socket without a peer there, and nobody wrote a sysctl.
  virtual bool options_changed(uint64_t /*netns_cookie*/, uint16_t /*local_port*/,
                               uint16_t /*remote_port*/) const {
    return true;
  }
};

class RestoreContext {
 public:
  virtual ~RestoreContext() = default;
  virtual bool final() const = 0;
  virtual absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const = 0;
  virtual HostPid init_pid() const = 0;
  // A socket of the capsule's network namespace that sends whole IP packets (SOCK_RAW,
  // IPPROTO_RAW: raw(7)), made at the first call and kept. Any thread.
  virtual absl::StatusOr<int> raw_socket(int family) = 0;
  // Our duplicate of a description that was already made, -1 if not (yet).
  virtual int description(uint64_t id) const = 0;
  // Kinds whose descriptions come in pairs leave the other one here under a name of theirs.
  virtual void stash(std::string name, UniqueFd fd) = 0;
  virtual UniqueFd take(std::string_view name) = 0;
  // The destination shim's stdio: a descriptor to duplicate, -1 if it has none.
  virtual int stdio(int stream) const = 0;
  // A pseudoterminal, which was made before the processes; null if there is none of that index.
  virtual const Terminal* terminal(uint32_t /*index*/) const { return nullptr; }
  // "/dev/tty" of a process that has it as its controlling terminal.
  virtual absl::StatusOr<UniqueFd> open_controlling_terminal(uint32_t /*index*/, int /*flags*/) {
    return absl::NotFoundError("no process has it");
  }
  // Of a restored process here, or a zombie.
  virtual absl::StatusOr<HostPid> host_pid(ImagePid pid) const = 0;
  // CLOCK_MONOTONIC of the source when it captured the final epoch; before that any time.
  virtual int64_t source_clock_ns() const = 0;
};

class FileKind {
 public:
  virtual ~FileKind() = default;
  virtual std::string_view name() const = 0;

  // Exactly one kind answers yes for a description that can move; none: the precheck refuses.
  virtual bool recognise(const OpenFile& file) const = 0;
  virtual bool needs_fdinfo() const = 0;
  // Recognised, but in a state that cannot be restored. Also called while the program runs.
  virtual absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                                std::vector<Refusal>& refusals) const = 0;

  virtual absl::StatusOr<std::string> capture(const OpenFile& file,
                                              const CaptureContext& context) const = 0;

  // The part of the state that only the program could change. Before capture() in a round, and in
  // the freeze while other things are done and packets may still arrive; capture() follows when the
  // gate is closed. Without it (an empty text, also after an error) capture() reads everything.
  virtual std::string settle(const OpenFile& /*file*/, const CaptureContext& /*context*/) const {
    return {};
  }

  // In the freeze, of a description that was `before` in the last round: all that settle() found
  // then is as it was, as `now` proves.
  virtual bool stands(const OpenFile& /*before*/, const FileView& /*now*/,
                      const CaptureContext& /*context*/) const {
    return false;
  }
  // For one that stands: capture() needs no descriptor, since the view says the rest.
  virtual bool seen_whole(const FileView& /*now*/) const { return false; }

  // True if different descriptions of this kind may be settled, captured, updated and completed on
  // several threads at once.
  virtual bool concurrent() const { return false; }

  // True if nothing but the program changes it: in the freeze capture() need not wait until the
  // gate is closed. Only asked of kinds that are concurrent().
  virtual bool still() const { return false; }

  // False if finish() would add nothing and check nothing, of which any kind may have many.
  virtual bool finishes(std::string_view /*state*/) const { return true; }

  // True if create() may run from a non-final epoch (context.final() says which it is) and
  // update() brings it to the final state.
  virtual bool early() const = 0;

  // Within a kind, descriptions of a lower rank are made first.
  virtual int rank(std::string_view /*state*/) const { return 0; }

  // The shared memory object (SharedObjectState.id) whose file it is; 0: none.
  virtual uint64_t shared_object(std::string_view /*state*/) const { return 0; }

  // Makes the description here. O_CLOEXEC on the returned descriptor is ours, not the program's.
  virtual absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                          RestoreContext& context) const = 0;

  // Brings a description made from `before` to `now`. false: must be made anew.
  virtual absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                                      RestoreContext& context) const = 0;

  // The same description in a clone of the service, which has addresses of its own and none of the
  // original's peers. Pure.
  virtual absl::StatusOr<std::string> for_clone(std::string_view state,
                                                const CloneAddresses& /*addresses*/) const {
    return std::string(state);
  }

  // It has ended at the source; husks may hold it for a while yet. Gives back what another may
  // need: an address.
  virtual void retire(int /*fd*/) const {}

  // In the final epoch, when all descriptions have been made, before finish() and beside what is
  // done in the husks.
  virtual absl::Status complete(int /*fd*/, std::string_view /*state*/,
                                RestoreContext& /*context*/) const {
    return absl::OkStatus();
  }

  // In the final epoch, after every descriptor is at its number in every husk: things that need
  // the others (epoll's set). Calls go into `batch`, run in the husk `tgid` that holds the
  // description at number `remote_fd`.
  using Check = std::function<absl::Status(const tracee::Batch&)>;
  virtual absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                                       tracee::Batch& batch, RestoreContext& context) const = 0;

  // One line for `godwit image show`: "tcp 10.0.0.5:6379 -> 10.0.0.9:41234 established, 0/120 B".
  virtual std::string describe(std::string_view state) const = 0;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_RESOURCE_H_
