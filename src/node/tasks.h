// Threads that a daemon started on the side: each is joined when it is done or at the end.
#ifndef GODWIT_NODE_TASKS_H_
#define GODWIT_NODE_TASKS_H_

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

namespace godwit::node {

class Tasks {
 public:
  ~Tasks() { join(); }

  void run(std::function<void()> work) {
    std::lock_guard lock(mutex_);
    threads_.remove_if([](Task& each) {
      if (!each.done->load()) return false;
      each.thread.join();
      return true;
    });
    auto done = std::make_shared<std::atomic<bool>>(false);
    threads_.push_back({std::thread([work = std::move(work), done] {
                          work();
                          *done = true;
                        }),
                        done});
  }

  // Nothing may be added any more.
  void join() {
    std::list<Task> left;
    {
      std::lock_guard lock(mutex_);
      left.swap(threads_);
    }
    for (Task& each : left) each.thread.join();
  }

 private:
  struct Task {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> done;
  };
  std::mutex mutex_;
  std::list<Task> threads_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_TASKS_H_
