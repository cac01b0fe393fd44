// A thread that waits for one piece of work at a time: made before the freeze, so that none is born
// in it.
#ifndef GODWIT_PROCESS_BACKGROUND_H_
#define GODWIT_PROCESS_BACKGROUND_H_

#include <array>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "process/priority.h"

namespace godwit::process {

// start() and wait() come from one thread, in turns.
class Background {
 public:
  enum class Urgency {
    kFreeze,    // goes before others, as what it is started by does
    kOrdinary,  // whoever waits for its work has something else to wait for
  };
  explicit Background(Urgency urgency = Urgency::kFreeze)
      : thread_([this, urgency] {
          // Not only when it is woken: by then the waker may keep the CPU that it is queued on.
          if (urgency == Urgency::kFreeze) {
            go_first();
            kernel::set_slice(0, kFreezeSlice);
          }
          touch_heap();
          loop();
        }) {}
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

  void keep_off(const OneCpu& cpu) { cpu.keep_off(thread_); }

  bool busy() {
    std::lock_guard lock(mutex_);
    return busy_;
  }

  // What the work returned; OK if none was started.
  absl::Status wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !busy_; });
    return std::exchange(result_, absl::OkStatus());
  }

 private:
  // A thread's first memory is new to it page by page: 40 first touches in its first work.
  static void touch_heap() {
    constexpr size_t kPiece = size_t{64} << 10;  // below mmap's threshold, mallopt(3)
    std::array<std::unique_ptr<char[]>, 8> pieces;
    for (auto& piece : pieces) piece = std::make_unique<char[]>(kPiece);
  }

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
