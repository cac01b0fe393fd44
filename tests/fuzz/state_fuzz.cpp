// Fuzzing of what is restored (libFuzzer): each section of a hostile image, or from a hostile peer,
// any bytes whatever, gives an error or a description, lets no descriptor leak, and takes no more
// memory than the bytes are worth (-rss_limit_mb, -malloc_limit_mb).
//
// An input is a byte that says of what, a second one with a bit for a final epoch, the length of
// the first state in two bytes, that state, and a later one. What a kind does in the capsule is
// done on a thread in namespaces of its own, whose root holds nothing but two devices.
#include <fcntl.h>
#include <sanitizer/common_interface_defs.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/aio/aio.h"
#include "resource/clone_addresses.h"
#include "resource/io_uring/io_uring.h"
#include "resource/memory_map/memory_map.h"
#include "resource/posix_mqueue/posix_mqueue.h"
#include "resource/raw_sockets.h"
#include "resource/registry.h"
#include "resource/sysv_ipc/queues.h"
#include "resource/sysv_ipc/semaphores.h"
#include "resource/terminal/terminal.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;            // NOLINT: one file
using namespace godwit::resource;  // NOLINT

void require(bool condition, std::string_view what, const absl::Status& status = absl::OkStatus()) {
  if (condition) return;
  std::fprintf(stderr, "state_fuzz: %.*s: %s\n", static_cast<int>(what.size()), what.data(),
               status.ToString().c_str());
  std::abort();
}

// The thread in the capsule.
class Capsule {
 public:
  Capsule() : thread_([this] { serve(); }), thread_id_(thread_.get_id()) { thread_.detach(); }

  absl::Status run(absl::FunctionRef<absl::Status()> action) {
    if (std::this_thread::get_id() == thread_id_) return action();
    std::unique_lock lock(mutex_);
    action_ = &action;
    changed_.notify_all();
    changed_.wait(lock, [&] { return action_ == nullptr; });
    return std::move(result_);
  }

 private:
  static void enter() {
    const std::string root = "/tmp";
    require(::unshare(CLONE_FS | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0,
            "unshare: root is needed");
    require(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount(private)");
    require(::mount("fuzz", root.c_str(), "tmpfs", 0, "size=8m,nr_inodes=4096") == 0, "tmpfs");
    require(::chroot(root.c_str()) == 0 && ::chdir("/") == 0, "chroot");
    for (const char* folder : {"/dev", "/tmp", "/dev/mqueue"})
      require(::mkdir(folder, 0777) == 0, "mkdir");
    require(::mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3)) == 0, "mknod");
    require(::mknod("/dev/zero", S_IFCHR | 0666, makedev(1, 5)) == 0, "mknod");
    require(::mount("mqueue", "/dev/mqueue", "mqueue", 0, nullptr) == 0, "mqueue");
  }

  void serve() {
    enter();
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return action_ != nullptr; });
      result_ = (*action_)();
      action_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  absl::FunctionRef<absl::Status()>* action_ = nullptr;
  absl::Status result_;
  std::thread thread_;
  std::thread::id thread_id_;
};

Capsule& capsule() {
  static auto* one = new Capsule();
  return *one;
}

// What task resources act upon, and the only process that a description can find.
HostPid husk() {
  static const pid_t pid = [] {
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (true) ::pause();
    }
    return child;
  }();
  return {pid};
}

class Context final : public RestoreContext {
 public:
  explicit Context(bool is_final) : final_(is_final) {}

  bool final() const override { return final_; }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return capsule().run(action);
  }
  HostPid init_pid() const override { return husk(); }
  absl::StatusOr<int> raw_socket(int family) override {
    return raw_sockets_.get(
        family, [](absl::FunctionRef<absl::Status()> action) { return capsule().run(action); });
  }
  int description(uint64_t id) const override {
    const auto found = made.find(id);
    return found == made.end() ? -1 : found->second.get();
  }
  void stash(std::string name, UniqueFd fd) override { stashed_[std::move(name)] = std::move(fd); }
  UniqueFd take(std::string_view name) override {
    const auto found = stashed_.find(std::string(name));
    if (found == stashed_.end()) return {};
    UniqueFd fd = std::move(found->second);
    stashed_.erase(found);
    return fd;
  }
  int stdio(int /*stream*/) const override { return -1; }
  absl::StatusOr<HostPid> host_pid(ImagePid pid) const override {
    if (pid.value == 1) return husk();
    return make_error(absl::StatusCode::kNotFound, "process {} is not there", pid.value);
  }
  int64_t source_clock_ns() const override { return monotonic_ns(); }

  std::map<uint64_t, UniqueFd> made;

 private:
  bool final_;
  std::map<std::string, UniqueFd> stashed_;
  RawSockets raw_sockets_;
};

// An error says something.
template <typename T>
bool good(std::string_view of, const T& result) {
  absl::Status status;
  if constexpr (std::is_same_v<T, absl::Status>)
    status = result;
  else
    status = result.status();
  require(status.ok() || !message_of(status).empty(), of, status);
  return status.ok();
}

// A ring gets to its place by as many requests: some more do not find more.
bool takes_long(const FileKind& kind, const std::string& state) {
  IoUringState ring;
  constexpr uint32_t kMost = 4096;
  return &kind == &io_uring_kind() && ring.ParseFromString(state) &&
         (ring.sq_head() > kMost || ring.cq_tail() > kMost);
}

void try_kind(const FileKind& kind, bool is_final, const std::string& first,
              const std::string& second) {
  if (takes_long(kind, first) || takes_long(kind, second)) return;
  Context context(is_final);
  require(!kind.describe(first).empty(), "no description");
  kind.finishes(first);
  kind.rank(first);
  kind.shared_object(first);
  CloneAddresses addresses;
  require(addresses.add("10.0.0.1", "10.0.0.2").ok(), "addresses");
  good(kind.name(), kind.for_clone(first, addresses));
  auto made = kind.create(1, first, context);
  if (!good(kind.name(), made)) return;
  int fd = made->get();
  context.made[1] = *std::move(made);
  const std::string* state = &first;
  if (const auto updated = kind.update(fd, first, second, context);
      good(kind.name(), updated) && *updated)
    state = &second;
  if (is_final) {
    good(kind.name(), kind.complete(fd, *state, context));
    tracee::Batch batch;
    good(kind.name(), kind.finish(fd, *state, {1}, 5, batch, context));
  }
  // A second one of the same bytes: kinds whose descriptions belong together look for the first.
  if (auto other = kind.create(2, second, context); good(kind.name(), other))
    context.made[2] = *std::move(other);
  kind.retire(fd);
}

// What needs a stopped task is left out: it writes what it is given into that task alone.
bool wants_a_stopped_task(std::string_view name) {
  return name == "registers" || name == "rseq" || name.find("pending") != std::string_view::npos ||
         name == "signal_flush";
}

void try_resource(const TaskResource& resource, const std::string& state) {
  resource.written_by_kernel(state);
  if (wants_a_stopped_task(resource.name())) return;
  ProcessNotes notes;
  TaskView view;
  view.tgid = view.tid = {1};
  view.host_tgid = view.host_tid = husk();
  view.leader = true;
  view.notes = &notes;
  tracee::Batch batch;
  good(resource.name(), resource.restore(state, view, batch));
}

void try_memory_map(const std::string& first, const std::string& second) {
  MemoryMapState now, wanted;
  if (!now.ParseFromString(first) || !wanted.ParseFromString(second)) return;
  tracee::Batch batch;
  good("memory map",
       add_memory_map_calls(
           now, wanted, [](const MappingState&) -> absl::StatusOr<Backing> { return Backing{}; },
           batch));
  replaced_ranges(now, wanted);
  add_seal_calls(wanted, batch);
  add_mm_fields_call(wanted, -1, batch);
}

// By number, what they are.
std::map<std::string, std::string> descriptors() {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto link = std::filesystem::read_symlink(entry.path(), gone);
    if (!gone && link.native().find("/fd") == std::string::npos)
      all[entry.path().filename()] = link;
  }
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  husk();
  capsule();
  // The sanitizer's symbolizer is a process at the end of two pipes.
  char name[64];
  __sanitizer_symbolize_pc(__builtin_return_address(0), "%f", name, sizeof name);
  // A signal of a description that it makes is nobody's end.
  for (const int number : {SIGIO, SIGURG, SIGPIPE}) ::signal(number, SIG_IGN);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  const size_t length = std::min<size_t>(data[2] | data[3] << 8, size - 4);
  const auto* bytes = reinterpret_cast<const char*>(data) + 4;
  const std::string first(bytes, length);
  const std::string second =
      length == size - 4 ? first : std::string(bytes + length, size - 4 - length);
  const bool is_final = (data[1] & 1) != 0;
  const auto kinds = file_kinds();
  const auto resources = task_resources();
  static const auto before = [] {
    // What is made at the first use, and kept.
    capsule().run([] { return absl::OkStatus(); }).IgnoreError();
    return descriptors();
  }();
  size_t what = data[0] % (kinds.size() + resources.size() + 5);
  if (what < kinds.size()) {
    try_kind(*kinds[what], is_final, first, second);
  } else if ((what -= kinds.size()) < resources.size()) {
    try_resource(*resources[what], first);
  } else if ((what -= resources.size()) == 0) {
    try_memory_map(first, second);
  } else if (what == 1) {
    good("semaphores", parse_semaphores(first));
  } else if (what == 2) {
    good("queue", parse_queue(first));
  } else if (what == 3) {
    good("asynchronous I/O", parse_aio(first));
  } else {
    good("POSIX queue", parse_posix_queue(first));
  }
  for (const auto& [number, link] : descriptors())
    require(before.contains(number), "a descriptor has leaked: " + number + " -> " + link);
  return 0;
}
