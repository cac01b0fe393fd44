#include "pages/work_pool.h"

namespace godwit::pages {

WorkPool::WorkPool(size_t threads) {
  for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

WorkPool::~WorkPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkPool::run(size_t count, absl::FunctionRef<void(size_t, size_t)> item) {
  if (count <= 1 || workers_.empty()) {
    for (size_t i = 0; i < count; ++i) item(0, i);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    item_ = &item;
    count_ = count;
    next_ = 0;
    ++generation_;
  }
  wake_.notify_all();
  for (size_t i = next_++; i < count; i = next_++) item(0, i);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return active_ == 0; });
  item_ = nullptr;
}

void WorkPool::work(size_t thread) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return ending_ || generation_ != seen; });
    if (ending_) return;
    seen = generation_;
    if (item_ == nullptr) continue;
    ++active_;
    const auto& item = *item_;
    const size_t count = count_;
    lock.unlock();
    for (size_t i = next_++; i < count; i = next_++) item(thread, i);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
  }
}

}  // namespace godwit::pages
