#include "pages/link_share.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::pages {
namespace {

constexpr size_t kSlots = 128;
// Rates are told for so long at a time.
constexpr int64_t kWindowNs = 100'000'000;
// Between two batches of one that is held back, and of one that looks for pages in between.
constexpr int64_t kForgottenNs = 500'000'000;

}  // namespace

// Zeros are the beginning. All of it is written and read without locks: a value that is a moment
// old is as good.
struct LinkShare::Slot {
  std::atomic<uint64_t> taken;       // who has it: a thread id, 0: nobody
  std::atomic<int64_t> touched_ns;   // CLOCK_MONOTONIC, which all share; 0: rests
  std::atomic<int64_t> held_ns;      // when it was last held back
  std::atomic<uint64_t> wants;       // then; batches may be too far apart to tell
  std::atomic<uint64_t> per_second;  // that it uses
};

struct LinkShare::Memory {
  std::atomic<uint64_t> bytes_per_s;
  std::array<Slot, kSlots> slots;
};

uint64_t fair_rate(uint64_t total, std::span<uint64_t> demands) {
  std::sort(demands.begin(), demands.end());
  uint64_t left = total;
  uint64_t sharers = demands.size() + 1;
  for (const uint64_t demand : demands) {
    if (demand >= left / sharers) break;
    left -= demand;
    --sharers;
  }
  return std::max<uint64_t>(1, left / sharers);
}

absl::Status LinkShare::create(const std::string& path, uint64_t bytes_per_s) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (::ftruncate(fd.get(), sizeof(Memory)) != 0)
    return errno_status(errno, fmt::format("ftruncate({})", path));
  if (::pwrite(fd.get(), &bytes_per_s, sizeof bytes_per_s, offsetof(Memory, bytes_per_s)) !=
      sizeof bytes_per_s)
    return errno_status(errno, fmt::format("pwrite({})", path));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LinkShare>> LinkShare::join(const std::string& path) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(path, O_RDWR | O_CLOEXEC));
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno_status(errno, fmt::format("fstat({})", path));
  if (st.st_size != sizeof(Memory))
    return make_error(absl::StatusCode::kDataLoss, "{}: {} bytes, not {}", path, st.st_size,
                      sizeof(Memory));
  void* const at = ::mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, fmt::format("mmap({})", path));
  auto* const shared = static_cast<Memory*>(at);
  const int64_t now = monotonic_ns();
  for (Slot& slot : shared->slots) {
    uint64_t owner = slot.taken;
    // One that has died is known by its silence; one that rests has its process.
    const bool free = owner == 0 || ::access(fmt::format("/proc/{}", owner).c_str(), F_OK) != 0;
    if (!free || !slot.taken.compare_exchange_strong(owner, static_cast<uint64_t>(::gettid())))
      continue;
    slot.per_second = 0;
    slot.wants = UINT64_MAX;  // until it shows how much
    slot.held_ns = now;
    slot.touched_ns = 0;
    return std::unique_ptr<LinkShare>(new LinkShare(shared, &slot));
  }
  ::munmap(at, sizeof(Memory));
  return make_error(absl::StatusCode::kResourceExhausted,
                    "{} migrations share the node's bandwidth already", kSlots);
}

LinkShare::~LinkShare() {
  own_->touched_ns = 0;
  own_->taken = 0;
  ::munmap(memory_, sizeof(Memory));
}

uint64_t LinkShare::rate() const {
  const int64_t now = monotonic_ns();
  std::array<uint64_t, kSlots> demands{};
  size_t count = 0;
  for (const Slot& slot : memory_->slots) {
    if (&slot == own_ || now - slot.touched_ns > kForgottenNs) continue;
    demands.at(count++) = now - slot.held_ns < kForgottenNs ? slot.wants : slot.per_second;
  }
  return fair_rate(memory_->bytes_per_s, std::span(demands).first(count));
}

void LinkShare::use(uint64_t bytes, uint64_t wants) {
  const int64_t now = monotonic_ns();
  own_->touched_ns = now;
  if (wants > 0) {
    own_->wants = wants;
    own_->held_ns = now;
  }
  window_bytes_ += bytes;
  const int64_t time = now - window_begin_ns_;
  if (time < kWindowNs) return;
  // After a silence it is not known.
  if (time < kForgottenNs)
    own_->per_second =
        static_cast<uint64_t>(static_cast<double>(window_bytes_) * 1e9 / static_cast<double>(time));
  window_begin_ns_ = now;
  window_bytes_ = 0;
}

void LinkShare::rest() { own_->touched_ns = 0; }

}  // namespace godwit::pages
