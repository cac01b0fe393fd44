#include "node/busy.h"

#include <chrono>

#include "base/status.h"

namespace godwit::node {

Busy::Hold& Busy::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    release();
    busy_ = std::exchange(other.busy_, nullptr);
    name_ = std::move(other.name_);
  }
  return *this;
}

void Busy::Hold::release() {
  if (busy_ == nullptr) return;
  {
    std::lock_guard lock(busy_->mutex_);
    busy_->doing_.erase(name_);
  }
  busy_->released_.notify_all();
  busy_ = nullptr;
}

absl::StatusOr<Busy::Hold> Busy::hold(const std::string& name, const std::string& doing,
                                      Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto left = std::chrono::nanoseconds(std::max<int64_t>(0, deadline.remaining_ns()));
  if (!released_.wait_for(lock, left, [&] { return doing_.count(name) == 0; }))
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "service {} is {} at the moment; try again when that is done", name,
                      doing_[name]);
  doing_[name] = doing;
  return Hold(this, name);
}

}  // namespace godwit::node
