#include "pages/pacer.h"

#include <algorithm>

#include "base/clock.h"

namespace godwit::pages {
namespace {

// What may go at once after a silence.
constexpr double kBurstSeconds = 0.02;

}  // namespace

void Pacer::lift(bool lifted) {
  lifted_ = lifted;
  if (lifted && share_ != nullptr) share_->rest();
}

uint64_t Pacer::rate() const {
  if (lifted_) return 0;
  if (share_ == nullptr) return limit_;
  const uint64_t shared = share_->rate();
  return limit_ == 0 ? shared : std::min(limit_, shared);
}

// Held back by its own limit it would not send more if the others sent less.
uint64_t Pacer::wants(uint64_t now_rate) const {
  return limit_ == 0 || now_rate < limit_ ? UINT64_MAX : limit_;
}

void Pacer::refill(uint64_t rate) {
  const int64_t now = monotonic_ns();
  const double seconds = static_cast<double>(now - counted_at_) * 1e-9;
  const auto per_second = static_cast<double>(rate);
  counted_at_ = now;
  allowance_ = std::min(allowance_ + seconds * per_second, per_second * kBurstSeconds);
}

void Pacer::charge(uint64_t bytes) {
  const uint64_t now_rate = rate();
  if (now_rate == 0) return;
  refill(now_rate);
  allowance_ -= static_cast<double>(bytes);
  if (share_ != nullptr) share_->use(bytes, waited_ ? wants(now_rate) : 0);
  waited_ = false;
}

int64_t Pacer::wait_ns() {
  const uint64_t now_rate = rate();
  if (now_rate == 0) return 0;
  refill(now_rate);
  if (allowance_ >= 0) return 0;
  waited_ = true;
  // Batches may be seconds apart.
  if (share_ != nullptr) share_->use(0, wants(now_rate));
  return static_cast<int64_t>(-allowance_ / static_cast<double>(now_rate) * 1e9) + 1;
}

}  // namespace godwit::pages
