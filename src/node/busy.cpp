#include "node/busy.h"

#include <algorithm>
#include <chrono>

#include "base/status.h"

namespace godwit::node {
namespace {

// Memory of gigabytes is given back in a second; a machine may be busy.
constexpr absl::Duration kEndsWithin = absl::Seconds(20);

}  // namespace

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
  busy_->changed_.notify_all();
  busy_ = nullptr;
}

void Busy::Hold::ends_soon() {
  if (busy_ == nullptr) return;
  {
    std::lock_guard lock(busy_->mutex_);
    busy_->doing_[name_].ends_soon = true;
  }
  busy_->changed_.notify_all();
}

absl::StatusOr<Busy::Hold> Busy::hold(const std::string& name, const std::string& doing,
                                      Deadline deadline) {
  const Deadline of_what_ends = Deadline::in(kEndsWithin);
  std::unique_lock lock(mutex_);
  for (auto other = doing_.find(name); other != doing_.end(); other = doing_.find(name)) {
    const int64_t left = std::max(deadline.remaining_ns(),
                                  other->second.ends_soon ? of_what_ends.remaining_ns() : 0);
    if (left <= 0)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "service {} is {} at the moment; try again when that is done", name,
                        other->second.what);
    changed_.wait_for(lock, std::chrono::nanoseconds(left));
  }
  doing_[name].what = doing;
  return Hold(this, name);
}

}  // namespace godwit::node
