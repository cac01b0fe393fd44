#include "kernel/features.h"

#include <fmt/format.h>
#include <linux/kcmp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/abi/pagemap_scan.h"
#include "kernel/abi/task.h"
#include "kernel/abi/tcx.h"
#include "kernel/abi/timerfd.h"
#include "kernel/abi/userfaultfd.h"
#include "kernel/proc/mountinfo.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

Feature present() { return {true, ""}; }
Feature missing(std::string why) { return {false, std::move(why)}; }
std::string because(std::string_view call, int error) {
  return std::string(message_of(errno_status(error, call)));
}

// One page of ours to try things on.
class ProbePage {
 public:
  ProbePage()
      : size_(static_cast<size_t>(::sysconf(_SC_PAGESIZE))),
        page_(::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~ProbePage() {
    if (ok()) ::munmap(page_, size_);
  }
  ProbePage(const ProbePage&) = delete;
  ProbePage& operator=(const ProbePage&) = delete;
  bool ok() const { return page_ != MAP_FAILED; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(page_); }
  uint64_t size() const { return size_; }
  void write(char c) { *static_cast<volatile char*>(page_) = c; }

 private:
  size_t size_;
  void* page_;
};

// Categories of the page as PAGEMAP_SCAN sees them, -errno on error.
int64_t scan(int pagemap, const ProbePage& page, uint64_t flags) {
  abi::PageRegion region{};
  abi::PmScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = flags;
  arg.start = page.address();
  arg.end = page.address() + page.size();
  arg.vec = reinterpret_cast<uint64_t>(&region);
  arg.vec_len = 1;
  arg.category_anyof_mask = abi::kPageIsWritten | abi::kPageIsPresent;
  arg.return_mask = arg.category_anyof_mask;
  const int found = ::ioctl(pagemap, abi::kPagemapScan, &arg);
  if (found < 0) return -errno;
  return found == 0 ? 0 : static_cast<int64_t>(region.categories);
}

Feature probe_pagemap_scan() {
  const auto pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (!pagemap.ok()) return missing(std::string(message_of(pagemap.status())));
  ProbePage page;
  if (!page.ok()) return missing(because("mmap", errno));
  page.write(1);
  const int64_t found = scan(pagemap->get(), page, 0);
  if (found < 0)
    return missing(because("ioctl(PAGEMAP_SCAN), Linux 6.7", static_cast<int>(-found)));
  if ((found & static_cast<int64_t>(abi::kPageIsPresent)) == 0) {
    return missing("PAGEMAP_SCAN does not find a page that was just written");
  }
  return present();
}

// The features that a userfaultfd of this kernel can have, or why there is none.
absl::StatusOr<uint64_t> uffd_features() {
  const long raw = ::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
  if (raw < 0) return errno_status(errno, "userfaultfd()");
  const UniqueFd fd(static_cast<int>(raw));
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) return errno_status(errno, "ioctl(UFFDIO_API)");
  return api.features;
}

Feature probe_uffd_bit(uint64_t bit, std::string_view name) {
  const auto features = uffd_features();
  if (!features.ok()) return missing(std::string(message_of(features.status())));
  if ((*features & bit) == 0) return missing(fmt::format("userfaultfd without {}", name));
  return present();
}

Feature probe_wp_async() {
  const long raw = ::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
  if (raw < 0) return missing(because("userfaultfd()", errno));
  const UniqueFd fd(static_cast<int>(raw));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = abi::kUffdFeatureWpAsync | abi::kUffdFeatureWpUnpopulated;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return missing(because("userfaultfd with WP_ASYNC and WP_UNPOPULATED, Linux 6.7", errno));
  }
  const auto pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (!pagemap.ok()) return missing(std::string(message_of(pagemap.status())));
  ProbePage page;
  if (!page.ok()) return missing(because("mmap", errno));
  page.write(1);
  uffdio_register registration{};
  registration.range = {page.address(), page.size()};
  registration.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(fd.get(), UFFDIO_REGISTER, &registration) != 0) {
    return missing(because("ioctl(UFFDIO_REGISTER, WP)", errno));
  }
  constexpr uint64_t kTake = abi::kPmScanWpMatching | abi::kPmScanCheckWpAsync;
  const auto written = [&]() -> int64_t {
    const int64_t found = scan(pagemap->get(), page, kTake);
    return found < 0 ? found : found & static_cast<int64_t>(abi::kPageIsWritten);
  };
  // Not protected yet counts as written; then protected by the scan itself; then written again.
  const int64_t first = written();
  const int64_t second = written();
  page.write(2);
  const int64_t third = written();
  if (first < 0)
    return missing(because("ioctl(PAGEMAP_SCAN, WP_MATCHING)", static_cast<int>(-first)));
  if (first == 0 || second != 0 || third <= 0) {
    return missing(
        fmt::format("asynchronous write-protect does not track: {}, {}, {}", first, second, third));
  }
  return present();
}

Feature probe_soft_dirty() {
  const auto pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (!pagemap.ok()) return missing(std::string(message_of(pagemap.status())));
  ProbePage page;
  if (!page.ok()) return missing(because("mmap", errno));
  page.write(1);
  const auto dirty = [&]() -> int {
    uint64_t entry = 0;
    const auto at = static_cast<off_t>(page.address() / page.size() * sizeof entry);
    if (::pread(pagemap->get(), &entry, sizeof entry, at) != sizeof entry) return -1;
    return static_cast<int>(entry >> 55 & 1);  // pagemap.rst: bit 55
  };
  if (const absl::Status s = write_file("/proc/self/clear_refs", "4"); !s.ok()) {
    return missing(std::string(message_of(s)));
  }
  const int before = dirty();
  page.write(2);
  const int after = dirty();
  if (before != 0 || after != 1) {
    return missing(
        fmt::format("CONFIG_MEM_SOFT_DIRTY: a write does not set the bit ({}, {})", before, after));
  }
  return present();
}

// Asking for a pid that is taken fails with EEXIST after all rights were checked: no task is made.
Feature probe_set_tid() {
  pid_t taken = ::getpid();
  abi::CloneArgs args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&taken);
  args.set_tid_size = 1;
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) ::_exit(0);
  if (pid > 0) {
    ::waitpid(static_cast<pid_t>(pid), nullptr, 0);
    return missing("clone3(set_tid) gave another pid than it was asked for");
  }
  if (errno == EEXIST) return present();
  return missing(because("clone3(set_tid), Linux 5.5 and CAP_CHECKPOINT_RESTORE", errno));
}

Feature probe_pidfd_getfd() {
  const auto pidfd = pidfd_open(HostPid{::getpid()});
  if (!pidfd.ok()) return missing(std::string(message_of(pidfd.status())));
  const auto copy = pidfd_getfd(pidfd->get(), pidfd->get());
  return copy.ok() ? present() : missing(std::string(message_of(copy.status())));
}

Feature probe_kcmp() {
  const pid_t self = ::getpid();
  if (::syscall(SYS_kcmp, self, self, KCMP_VM, 0, 0) == 0) return present();
  return missing(because("kcmp(KCMP_VM), CONFIG_KCMP", errno));
}

Feature probe_time_namespaces() {
  if (::access("/proc/self/ns/time_for_children", F_OK) == 0) return present();
  return missing(because("/proc/self/ns/time_for_children, CONFIG_TIME_NS, Linux 5.6", errno));
}

// The root of the hierarchy has no cgroup.freeze: a group is made and removed.
Feature probe_cgroup_freeze(const std::string& mount) {
  if (mount.empty()) return missing("no cgroup2 file system is mounted");
  const std::string folder = fmt::format("{}/godwit-probe-{}", mount, ::getpid());
  if (::mkdir(folder.c_str(), 0755) != 0)
    return missing(because("mkdir(\"" + folder + "\")", errno));
  const bool freeze = ::access((folder + "/cgroup.freeze").c_str(), W_OK) == 0;
  const bool kill = ::access((folder + "/cgroup.kill").c_str(), W_OK) == 0;
  ::rmdir(folder.c_str());
  if (!freeze) return missing("cgroup.freeze, Linux 5.2");
  if (!kill) return missing("cgroup.kill, Linux 5.14");
  return present();
}

Feature probe_tcp_repair() {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return missing(because("socket(AF_INET, SOCK_STREAM)", errno));
  int on = 1;
  if (::setsockopt(fd.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0) {
    return missing(because("setsockopt(TCP_REPAIR), CAP_NET_ADMIN", errno));
  }
  int off = TCP_REPAIR_OFF_NO_WP;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_REPAIR, &off, sizeof off);
  return present();
}

// A link to an interface that is not there: a kernel with TCX says ENODEV, one without EINVAL.
Feature probe_tcx() {
  const std::array<bpf_insn, 2> program = {bpf_insn{BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0},
                                           bpf_insn{BPF_JMP | BPF_EXIT, 0, 0, 0, 0}};
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_SCHED_CLS;
  load.insns = reinterpret_cast<uint64_t>(program.data());
  load.insn_cnt = program.size();
  load.license = reinterpret_cast<uint64_t>("GPL");
  const UniqueFd fd(static_cast<int>(::syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load)));
  if (!fd) return missing(because("bpf(BPF_PROG_LOAD, SCHED_CLS)", errno));
  abi::BpfTcxLinkCreate link{};
  link.prog_fd = static_cast<uint32_t>(fd.get());
  link.target_ifindex = 0x7fffffff;
  link.attach_type = abi::kBpfTcxIngress;
  const UniqueFd made(static_cast<int>(::syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof link)));
  if (made || errno == ENODEV) return present();
  return missing(because("bpf(BPF_LINK_CREATE, TCX), Linux 6.6", errno));
}

// A child that waits on a pipe, seized and asked.
Feature probe_rseq_configuration() {
  auto pipe = pipe2(0);
  if (!pipe.ok()) return missing(std::string(message_of(pipe.status())));
  const pid_t child = ::fork();
  if (child < 0) return missing(because("fork()", errno));
  if (child == 0) {
    ::close(pipe->write.get());
    char c = 0;
    (void)!::read(pipe->read.get(), &c, 1);
    ::_exit(0);
  }
  Feature result = present();
  if (::syscall(SYS_ptrace, PTRACE_SEIZE, child, 0, 0) != 0) {
    result = missing(because("ptrace(PTRACE_SEIZE)", errno));
  } else if (::syscall(SYS_ptrace, PTRACE_INTERRUPT, child, 0, 0) != 0 ||
             ::waitpid(child, nullptr, __WALL) != child) {
    result = missing(because("ptrace(PTRACE_INTERRUPT)", errno));
  } else {
    ptrace_rseq_configuration configuration{};
    if (::syscall(SYS_ptrace, PTRACE_GET_RSEQ_CONFIGURATION, child, sizeof configuration,
                  &configuration) < 0) {
      result = missing(because("ptrace(PTRACE_GET_RSEQ_CONFIGURATION), Linux 5.13", errno));
    }
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, __WALL);
  return result;
}

Feature probe_anon_vma_name() {
  ProbePage page;
  if (!page.ok()) return missing(because("mmap", errno));
  if (::prctl(abi::kPrSetVma, abi::kPrSetVmaAnonName, page.address(), page.size(), "godwit") != 0) {
    return missing(because("prctl(PR_SET_VMA_ANON_NAME), Linux 5.17, CONFIG_ANON_VMA_NAME", errno));
  }
  return present();
}

Feature probe_timerfd_set_ticks() {
  const UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!fd) return missing(because("timerfd_create()", errno));
  uint64_t ticks = 3;
  if (::ioctl(fd.get(), abi::kTfdIocSetTicks, &ticks) != 0) {
    return missing(because("ioctl(TFD_IOC_SET_TICKS), CONFIG_CHECKPOINT_RESTORE", errno));
  }
  return present();
}

Feature probe_prctl_mm_map() {
  unsigned size = 0;
  if (::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) != 0) {
    return missing(because("prctl(PR_SET_MM_MAP_SIZE), CONFIG_CHECKPOINT_RESTORE", errno));
  }
  if (size != sizeof(prctl_mm_map)) {
    return missing(
        fmt::format("struct prctl_mm_map is {} bytes here, not {}", size, sizeof(prctl_mm_map)));
  }
  return present();
}

}  // namespace

std::vector<std::pair<std::string_view, const Feature*>> Features::all() const {
  return {{"pagemap_scan", &pagemap_scan},
          {"uffd_wp_async", &uffd_wp_async},
          {"uffd_move", &uffd_move},
          {"uffd_poison", &uffd_poison},
          {"soft_dirty", &soft_dirty},
          {"clone3_set_tid", &clone3_set_tid},
          {"pidfd_getfd", &pidfd_getfd},
          {"kcmp", &kcmp},
          {"time_namespaces", &time_namespaces},
          {"cgroup_freeze", &cgroup_freeze},
          {"tcp_repair", &tcp_repair},
          {"tcx", &tcx},
          {"rseq_configuration", &rseq_configuration},
          {"anon_vma_name", &anon_vma_name},
          {"timerfd_set_ticks", &timerfd_set_ticks},
          {"prctl_mm_map", &prctl_mm_map}};
}

Features probe_features() {
  Features f;
  if (const auto mounts = read_mountinfo(HostPid{::getpid()}); mounts.ok()) {
    f.cgroup2_mount = find_cgroup2_mount(*mounts).value_or("");
  }
  f.pagemap_scan = probe_pagemap_scan();
  f.uffd_wp_async = probe_wp_async();
  f.uffd_move = probe_uffd_bit(abi::kUffdFeatureMove, "MOVE, Linux 6.8");
  f.uffd_poison = probe_uffd_bit(abi::kUffdFeaturePoison, "POISON, Linux 6.6");
  f.soft_dirty = probe_soft_dirty();
  f.clone3_set_tid = probe_set_tid();
  f.pidfd_getfd = probe_pidfd_getfd();
  f.kcmp = probe_kcmp();
  f.time_namespaces = probe_time_namespaces();
  f.cgroup_freeze = probe_cgroup_freeze(f.cgroup2_mount);
  f.tcp_repair = probe_tcp_repair();
  f.tcx = probe_tcx();
  f.rseq_configuration = probe_rseq_configuration();
  f.anon_vma_name = probe_anon_vma_name();
  f.timerfd_set_ticks = probe_timerfd_set_ticks();
  f.prctl_mm_map = probe_prctl_mm_map();
  return f;
}

}  // namespace godwit::kernel
