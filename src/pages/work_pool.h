// A few threads that wait for work: made before the freeze, so that none is born in it.
#ifndef GODWIT_PAGES_WORK_POOL_H_
#define GODWIT_PAGES_WORK_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace godwit::pages {

class WorkPool {
 public:
  // `threads` in all: the caller of run() is one of them.
  explicit WorkPool(size_t threads);
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  size_t threads() const { return workers_.size() + 1; }

  // Calls `item(thread, i)` for every i < count, on all threads; back when all are done. `thread`
  // is below threads() and held by one call at a time.
  void run(size_t count, absl::FunctionRef<void(size_t thread, size_t i)> item);

 private:
  void work(size_t thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const absl::FunctionRef<void(size_t, size_t)>* item_ = nullptr;
  size_t count_ = 0;
  uint64_t generation_ = 0;
  size_t active_ = 0;  // workers inside items; one that wakes too late is not waited for
  bool ending_ = false;
  std::atomic<size_t> next_{0};
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_WORK_POOL_H_
