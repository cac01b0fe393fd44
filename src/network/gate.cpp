#include "network/gate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/status.h"
#include "network/bpf.h"

namespace godwit::network {

// The page that the programs read. Offsets are in their instructions.
struct Gate::Words {
  std::atomic<uint32_t> towards;
  std::atomic<uint32_t> from;
  std::atomic<uint32_t> hold_ifindex;
  uint32_t pad;
  std::atomic<uint64_t> held;
  std::atomic<uint64_t> replayed;
  std::atomic<uint64_t> dropped_towards;
  std::atomic<uint64_t> dropped_from;
};

namespace {

constexpr uint32_t kWordsSize = 48;
constexpr int16_t kTowardsAt = 0, kFromAt = 4, kHoldIfindexAt = 8, kHeldAt = 16, kReplayedAt = 24,
                  kDroppedTowardsAt = 32, kDroppedFromAt = 40;

constexpr uint32_t raw(GateMode mode) { return static_cast<uint32_t>(mode); }

std::vector<bpf_insn> towards_program(int map) {
  using namespace bpf;
  std::vector<bpf_insn> p;
  bpf::load_value(p, 6, map);
  const auto add = [&p](std::initializer_list<bpf_insn> part) { p.insert(p.end(), part); };
  add({load32(1, 6, kTowardsAt), jump_if(BPF_JEQ, 1, raw(GateMode::kPass), 9),  // -> pass
       jump_if(BPF_JEQ, 1, raw(GateMode::kHold), 10),                           // -> hold
       jump_if(BPF_JEQ, 1, raw(GateMode::kReplay), 4),                          // -> replay
       // drop:
       set(1, 1), atomic_add64(6, 1, kDroppedTowardsAt), set(0, bpf::kTcxDrop), leave(),
       // replay: whatever came after a frame that is still in the hold goes there too, so that
       // order stays.
       load64(2, 6, kHeldAt), load64(3, 6, kReplayedAt),
       insn(BPF_JMP | BPF_JNE | BPF_X, 2, 3, 2, 0),  // -> hold
       // pass:
       set(0, bpf::kTcxNext), leave(),
       // hold: counted first, so that "replayed" can never claim a frame that is on its way.
       set(1, 1), atomic_add64(6, 1, kHeldAt), load32(1, 6, kHoldIfindexAt), set(2, 0),
       call(BPF_FUNC_redirect), leave()});
  return p;
}

std::vector<bpf_insn> from_program(int map) {
  using namespace bpf;
  std::vector<bpf_insn> p;
  bpf::load_value(p, 6, map);
  for (const bpf_insn& i :
       {load32(1, 6, kFromAt), jump_if(BPF_JEQ, 1, raw(GateMode::kPass), 4),
        // drop:
        set(1, 1), atomic_add64(6, 1, kDroppedFromAt), set(0, bpf::kTcxDrop), leave(),
        // pass:
        set(0, bpf::kTcxNext), leave()}) {
    p.push_back(i);
  }
  return p;
}

constexpr std::array kPins{"map", "towards", "from"};

// bpffs refuses names with a dot (EPERM).
std::string pin_path(const std::string& folder, const std::string& name, const char* what) {
  return fmt::format("{}/{}-{}", folder, name, what);
}

}  // namespace

absl::Status Gate::map_words() {
  static_assert(sizeof(Words) == kWordsSize && offsetof(Words, hold_ifindex) == kHoldIfindexAt &&
                offsetof(Words, held) == kHeldAt &&
                offsetof(Words, dropped_from) == kDroppedFromAt);
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  void* at = ::mmap(nullptr, kWordsSize, PROT_READ | PROT_WRITE, MAP_SHARED, map_.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(gate's BPF array)");
  words_ = static_cast<Words*>(at);
  return absl::OkStatus();
}

absl::StatusOr<Gate> Gate::create(const std::string& pin_dir, const std::string& name,
                                  int ifindex) {
  Gate gate;
  GW_ASSIGN_OR_RETURN(gate.map_, bpf::create_mmapable_value("gw_gate", kWordsSize));
  GW_RETURN_IF_ERROR(gate.map_words());
  GW_ASSIGN_OR_RETURN(const UniqueFd towards,
                      bpf::load_classifier("gw_towards", towards_program(gate.map_.get())));
  GW_ASSIGN_OR_RETURN(const UniqueFd from,
                      bpf::load_classifier("gw_from", from_program(gate.map_.get())));
  GW_ASSIGN_OR_RETURN(gate.towards_link_, bpf::attach_tcx(towards.get(), ifindex, bpf::kTcxEgress));
  GW_ASSIGN_OR_RETURN(gate.from_link_, bpf::attach_tcx(from.get(), ifindex, bpf::kTcxIngress));

  GW_RETURN_IF_ERROR(unpin(pin_dir, name));  // of a port whose node was killed
  GW_RETURN_IF_ERROR(bpf::mount_bpffs(pin_dir));
  absl::Status status;
  const std::array<int, 3> objects{gate.map_.get(), gate.towards_link_.get(),
                                   gate.from_link_.get()};
  for (size_t i = 0; i < kPins.size() && status.ok(); ++i) {
    status = bpf::pin(objects[i], pin_path(pin_dir, name, kPins[i]));
  }
  if (!status.ok()) {
    (void)unpin(pin_dir, name);
    return status;
  }
  return gate;
}

absl::StatusOr<Gate> Gate::open(const std::string& pin_dir, const std::string& name, int ifindex) {
  Gate gate;
  GW_ASSIGN_OR_RETURN(gate.map_, bpf::open_pinned(pin_path(pin_dir, name, "map")));
  GW_ASSIGN_OR_RETURN(gate.towards_link_, bpf::open_pinned(pin_path(pin_dir, name, "towards")));
  GW_ASSIGN_OR_RETURN(gate.from_link_, bpf::open_pinned(pin_path(pin_dir, name, "from")));
  for (const int link : {gate.towards_link_.get(), gate.from_link_.get()}) {
    GW_ASSIGN_OR_RETURN(const int at, bpf::tcx_link_ifindex(link));
    if (at != ifindex) {
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "the gate of {} is attached to link {}, not to link {}", name, at, ifindex);
    }
  }
  GW_RETURN_IF_ERROR(gate.map_words());
  return gate;
}

absl::Status Gate::unpin(const std::string& pin_dir, const std::string& name) {
  for (const char* what : kPins) {
    const std::string path = pin_path(pin_dir, name, what);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
      return errno_status(errno, fmt::format("unlink(\"{}\")", path));
    }
  }
  return bpf::unmount_bpffs_if_empty(pin_dir);
}

Gate& Gate::operator=(Gate&& other) noexcept {
  std::swap(map_, other.map_);
  std::swap(towards_link_, other.towards_link_);
  std::swap(from_link_, other.from_link_);
  std::swap(words_, other.words_);
  return *this;
}

Gate::~Gate() {
  if (words_ != nullptr) ::munmap(words_, kWordsSize);
}

void Gate::set_towards(GateMode mode) { words_->towards.store(raw(mode)); }
void Gate::set_from(GateMode mode) { words_->from.store(raw(mode)); }
GateMode Gate::towards() const { return static_cast<GateMode>(words_->towards.load()); }
GateMode Gate::from() const { return static_cast<GateMode>(words_->from.load()); }
void Gate::set_hold_ifindex(int ifindex) {
  words_->hold_ifindex.store(static_cast<uint32_t>(ifindex));
}
void Gate::set_replayed(uint64_t held) { words_->replayed.store(held); }

GateCounters Gate::counters() const {
  return {words_->held.load(), words_->dropped_towards.load(), words_->dropped_from.load()};
}

}  // namespace godwit::network
