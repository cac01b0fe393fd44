// A thread that waits for one piece of work at a time: made before the freeze, so that none is born
// in it.
#ifndef GODWIT_PROCESS_BACKGROUND_H_
#define GODWIT_PROCESS_BACKGROUND_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace godwit::process {

// start() and wait() come from one thread, in turns.
class Background {
 public:
  Background() : thread_([this] { loop(); }) {}
  ~Background() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  void start(std::function<absl::Status()> work) {
    {
      std::lock_guard lock(mutex_);
      work_ = std::move(work);
      busy_ = true;
    }
    changed_.notify_all();
  }

  // What the work returned; OK if none was started.
  absl::Status wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !busy_; });
    return std::exchange(result_, absl::OkStatus());
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || work_ != nullptr; });
      if (work_ == nullptr) return;
      const std::function<absl::Status()> work = std::exchange(work_, nullptr);
      lock.unlock();
      absl::Status result = work();
      lock.lock();
      result_ = std::move(result);
      busy_ = false;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<absl::Status()> work_;
  absl::Status result_;
  bool busy_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_BACKGROUND_H_
