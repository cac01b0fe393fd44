#include "network/option_watch.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "network/bpf.h"

namespace godwit::network {
namespace {

constexpr uint32_t kSlots = 1U << 14;
constexpr int kSoNetnsCookie = 71;  // asm-generic/socket.h of Linux 5.14
constexpr int16_t kWithoutPeerAt = 0, kConnectionsAt = 4;
constexpr uint32_t kSize = kConnectionsAt + kSlots * 4;

// What the program computes below.
uint32_t slot_of(uint32_t local_port, uint32_t remote_port) {
  return (local_port * 31 + remote_port) & (kSlots - 1);
}

std::vector<bpf_insn> setsockopt_program(int map, uint64_t cookie) {
  using namespace bpf;
  constexpr int kContext = 6, kSocket = 7, kValue = 8;
  std::vector<bpf_insn> p;
  const auto add = [&p](std::initializer_list<bpf_insn> part) { p.insert(p.end(), part); };
  add({move(kContext, 1),
       // A value of more than a page, of which the program sees the first only: length 0 says that
       // the kernel is to use the caller's.
       load32(2, kContext, offsetof(bpf_sockopt, optlen)), jump_if(BPF_JSLE, 2, 4096, 2), set(2, 0),
       store32(kContext, 2, offsetof(bpf_sockopt, optlen)),
       load64(kSocket, kContext, offsetof(bpf_sockopt, sk)), call(BPF_FUNC_get_netns_cookie)});
  // r1 was the context until the call.
  load_number(p, 1, cookie);
  constexpr int kToOut = 15;
  add({jump_if_register(BPF_JNE, 0, 1, kToOut + 2),
       load32(1, kSocket, offsetof(bpf_sock, protocol)), jump_if(BPF_JNE, 1, IPPROTO_TCP, kToOut)});
  load_value(p, kValue, map);
  add({load32(1, kSocket, offsetof(bpf_sock, src_port)),
       load16(2, kSocket, offsetof(bpf_sock, dst_port)), to_host16(2), set(3, 1),
       jump_if(BPF_JNE, 2, 0, 2),  // -> with a peer
       atomic_add32(kValue, 3, kWithoutPeerAt), jump(6),
       // with a peer:
       insn(BPF_ALU64 | BPF_MUL | BPF_K, 1, 0, 0, 31),
       insn(BPF_ALU64 | BPF_ADD | BPF_X, 1, 2, 0, 0),
       insn(BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, kSlots - 1),
       insn(BPF_ALU64 | BPF_LSH | BPF_K, 1, 0, 0, 2),
       insn(BPF_ALU64 | BPF_ADD | BPF_X, kValue, 1, 0, 0), atomic_add32(kValue, 3, kConnectionsAt),
       // out: allowed
       set(0, 1), leave()});
  return p;
}

// From /proc/self/mountinfo, since v2 may be anywhere beside v1.
absl::StatusOr<UniqueFd> open_cgroup_root() {
  std::ifstream mounts("/proc/self/mountinfo");
  std::string line;
  while (std::getline(mounts, line)) {
    const size_t type = line.find(" - cgroup2 ");
    if (type == std::string::npos) continue;
    // "36 35 98:0 /root /mount/point options ... - cgroup2 ..."
    size_t at = 0;
    for (int field = 0; field < 3; ++field) at = line.find(' ', at) + 1;
    const size_t root_end = line.find(' ', at);
    if (line.substr(at, root_end - at) != "/") continue;
    const size_t end = line.find(' ', root_end + 1);
    return kernel::open(line.substr(root_end + 1, end - root_end - 1),
                        O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  }
  return absl::NotFoundError("the root of the cgroup v2 hierarchy is not mounted");
}

}  // namespace

struct OptionWatch::Counts {
  std::atomic<uint32_t> without_peer;
  std::array<std::atomic<uint32_t>, kSlots> connections;
};

absl::StatusOr<UniqueFd> OptionWatch::fresh_socket() {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_status(errno, "socket(AF_INET, SOCK_STREAM)");
  return fd;
}

absl::StatusOr<OptionWatch::Defaults> OptionWatch::read_defaults() const {
  constexpr std::array<std::pair<int, int>, 5> kOptions{{{IPPROTO_TCP, TCP_KEEPIDLE},
                                                         {IPPROTO_TCP, TCP_KEEPINTVL},
                                                         {IPPROTO_TCP, TCP_KEEPCNT},
                                                         {IPPROTO_TCP, TCP_LINGER2},
                                                         {IPPROTO_IP, IP_TTL}}};
  Defaults values{};
  for (size_t i = 0; i < kOptions.size(); ++i) {
    socklen_t size = sizeof values[i];
    if (::getsockopt(socket_.get(), kOptions[i].first, kOptions[i].second, &values[i], &size) != 0)
      return errno_status(errno, fmt::format("getsockopt(option {})", kOptions[i].second));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<OptionWatch>> OptionWatch::begin(UniqueFd socket) {
  static_assert(sizeof(Counts) == kSize && offsetof(Counts, connections) == kConnectionsAt);
  std::unique_ptr<OptionWatch> watch(new OptionWatch(std::move(socket)));
  socklen_t size = sizeof watch->cookie_;
  if (::getsockopt(watch->socket_.get(), SOL_SOCKET, kSoNetnsCookie, &watch->cookie_, &size) != 0)
    return errno_status(errno, "getsockopt(SO_NETNS_COOKIE)");
  GW_ASSIGN_OR_RETURN(watch->defaults_, watch->read_defaults());
  GW_ASSIGN_OR_RETURN(const UniqueFd root, open_cgroup_root());
  GW_ASSIGN_OR_RETURN(const UniqueFd map, bpf::create_mmapable_value("gw_options", kSize));
  void* at = ::mmap(nullptr, kSize, PROT_READ, MAP_SHARED, map.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(BPF array of an option watch)");
  watch->counts_ = static_cast<Counts*>(at);
  GW_ASSIGN_OR_RETURN(
      const UniqueFd program,
      bpf::load(bpf::kSetsockopt, "gw_options", setsockopt_program(map.get(), watch->cookie_)));
  GW_ASSIGN_OR_RETURN(watch->link_,
                      bpf::attach_cgroup(program.get(), root.get(), bpf::kSetsockopt));
  return watch;
}

OptionWatch::~OptionWatch() {
  if (counts_ != nullptr) ::munmap(counts_, kSize);
}

bool OptionWatch::changed(uint16_t local_port, uint16_t remote_port) const {
  return counts_->without_peer != 0 || counts_->connections[slot_of(local_port, remote_port)] != 0;
}

bool OptionWatch::defaults_changed() const {
  const auto now = read_defaults();
  return !now.ok() || *now != defaults_;
}

}  // namespace godwit::network
