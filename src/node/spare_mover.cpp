#include "node/spare_mover.h"

#include "base/log.h"
#include "base/status.h"

namespace godwit::node {
namespace {

// After a start that failed.
constexpr absl::Duration kAgainAfter = absl::Seconds(30);
// It links and has waited for its role by then.
constexpr absl::Duration kUntilItWaits = absl::Milliseconds(30);

}  // namespace

SpareMover::Pause::Pause(SpareMover& owner) : owner_(&owner), beating_(owner.metronome_) {
  std::lock_guard lock(owner.mutex_);
  ++owner.under_way_;
  owner.changed_.notify_all();
}

SpareMover::Pause& SpareMover::Pause::operator=(Pause&& other) noexcept {
  if (this != &other) {
    end();
    owner_ = std::exchange(other.owner_, nullptr);
    beating_ = std::move(other.beating_);
  }
  return *this;
}

void SpareMover::Pause::end() {
  if (owner_ == nullptr) return;
  beating_.end();
  std::lock_guard lock(owner_->mutex_);
  --owner_->under_way_;
  owner_->changed_.notify_all();
  owner_ = nullptr;
}

SpareMover::~SpareMover() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void SpareMover::keep_one() {
  std::lock_guard lock(mutex_);
  wanted_ = true;
  changed_.notify_all();
}

absl::StatusOr<std::unique_ptr<MoverProcess>> SpareMover::take_or_start(
    const migration::MoverStart& start) {
  std::unique_ptr<MoverProcess> mover;
  {
    std::lock_guard lock(mutex_);
    mover = std::move(spare_);
  }
  // One that has died meanwhile says so here; one that dies later is a mover that died.
  if (mover != nullptr && mover->begin(start).ok()) return mover;
  GW_ASSIGN_OR_RETURN(mover, MoverProcess::start());
  GW_RETURN_IF_ERROR(mover->begin(start));
  return mover;
}

pid_t SpareMover::spare_pid() const {
  std::lock_guard lock(mutex_);
  return spare_ == nullptr ? 0 : spare_->pid();
}

void SpareMover::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    const auto due = [this] { return wanted_ && under_way_ == 0 && spare_ == nullptr; };
    changed_.wait(lock, [&] { return ending_ || due(); });
    if (changed_.wait_for(lock, absl::ToChronoNanoseconds(calm_),
                          [&] { return ending_ || !due(); }))
      continue;
    lock.unlock();
    kernel::Metronome::Beating beating(metronome_);
    auto started = MoverProcess::start();
    lock.lock();
    if (started.ok()) {
      spare_ = *std::move(started);
      changed_.wait_for(lock, absl::ToChronoNanoseconds(kUntilItWaits), [this] { return ending_; });
      continue;
    }
    beating.end();
    // The next move tries for itself and says why; there is no hurry here.
    log_warning("starting a mover ahead: {}", message_of(started.status()));
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kAgainAfter), [this] { return ending_; });
  }
}

}  // namespace godwit::node
