// A mover that is started before anybody asks for a move. Linking and the static initialisers take
// 5 ms of CPU time, and while they compute a client that is woken on that CPU waits for the next
// tick (4 ms, CONFIG_PREEMPT_NONE): that is best done when no service is on its way.
//
// Owned by the node. Thread rule: any thread.
#ifndef GODWIT_NODE_SPARE_MOVER_H_
#define GODWIT_NODE_SPARE_MOVER_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernel/metronome.h"
#include "migration/mover.pb.h"
#include "node/mover_process.h"

namespace godwit::node {

class SpareMover {
 public:
  // How long after the last move's end the next one is started: what came late for the service is
  // answered by then, and a move of several services one after another is not disturbed in between.
  static constexpr absl::Duration kCalm = absl::Milliseconds(200);

  explicit SpareMover(absl::Duration calm = kCalm) : calm_(calm), thread_([this] { run(); }) {}
  // Ends the spare one.
  ~SpareMover();
  SpareMover(const SpareMover&) = delete;
  SpareMover& operator=(const SpareMover&) = delete;

  // From here on there is to be a spare one whenever nothing is under way.
  void keep_one();

  // While one lives, something is under way: none is started ahead, and the CPUs choose anew often.
  // It may outlive the thread that made it, but not the SpareMover.
  class Pause {
   public:
    Pause() = default;
    explicit Pause(SpareMover& owner);
    Pause(Pause&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)), beating_(std::move(other.beating_)) {}
    Pause& operator=(Pause&& other) noexcept;
    ~Pause() { end(); }
    void end();

   private:
    SpareMover* owner_ = nullptr;
    kernel::Metronome::Beating beating_;
  };

  // The spare one if there is one and it lives, else one that is started now.
  absl::StatusOr<std::unique_ptr<MoverProcess>> take_or_start(const migration::MoverStart& start);

  // 0: there is none.
  pid_t spare_pid() const;

 private:
  void run();

  const absl::Duration calm_;
  kernel::Metronome metronome_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<MoverProcess> spare_;
  bool wanted_ = false;
  bool ending_ = false;
  int under_way_ = 0;
  std::thread thread_;  // last: uses the others
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_SPARE_MOVER_H_
