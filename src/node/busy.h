// Who is at work on which service of this node: one operation at a time changes a service, and a
// migration is a long one. Others are told what goes on instead of waiting for it.
#ifndef GODWIT_NODE_BUSY_H_
#define GODWIT_NODE_BUSY_H_

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace godwit::node {

class Busy {
 public:
  // Holds the service until destroyed. May be passed to another thread.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : busy_(std::exchange(other.busy_, nullptr)), name_(std::move(other.name_)) {}
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { release(); }
    void release();
    // What was to be done is done for whoever asked for it; what is left ends by itself.
    void ends_soon();

   private:
    friend class Busy;
    Hold(Busy* busy, std::string name) : busy_(busy), name_(std::move(name)) {}
    Busy* busy_ = nullptr;
    std::string name_;
  };

  // `doing` completes "service X is ...": "being moved to n2". Waits until `deadline`, and longer
  // for one that ends soon; then kFailedPrecondition says what the other one does.
  absl::StatusOr<Hold> hold(const std::string& name, const std::string& doing, Deadline deadline);
  absl::StatusOr<Hold> try_hold(const std::string& name, const std::string& doing) {
    return hold(name, doing, Deadline::in(absl::ZeroDuration()));
  }

 private:
  struct Doing {
    std::string what;
    bool ends_soon = false;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Doing> doing_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_BUSY_H_
