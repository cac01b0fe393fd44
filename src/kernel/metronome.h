// While a service is on its way, every CPU chooses anew twice in a millisecond who runs on it.
//
// Who is woken on a CPU where somebody computes goes first only if it is the best choice at that
// very moment (check_preempt_wakeup_fair(), kernel/sched/fair.c), whatever the slices and nice
// values: one that is eligible 10 us later waits for the next tick, 4 ms at 250 Hz. Clients and
// services met that in two moves of five, behind movers and behind a process that was just
// starting. Where a thread of a real-time policy has run and sleeps again, schedule() chooses among
// all that want to run. Measured, 16 MiB, a client's longest gap in the move over the freeze: 0.04
// ms, 0.3 to 0.75 without it.
//
// It does nothing about system calls that never give way (CONFIG_PREEMPT_NONE).
#ifndef GODWIT_KERNEL_METRONOME_H_
#define GODWIT_KERNEL_METRONOME_H_

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace godwit::kernel {

// Thread rule: any thread. Its threads live as long as it does and sleep while nothing beats.
class Metronome {
 public:
  static constexpr absl::Duration kBeat = absl::Microseconds(500);
  // With more CPUs than that, one that idles is found for whoever is woken (select_idle_cpu()).
  static constexpr int kMostCpus = 16;

  // One thread for each CPU that the caller may run on; none where a real-time policy is not
  // allowed or there are more than kMostCpus. Only speed is at stake.
  Metronome();
  ~Metronome();
  Metronome(const Metronome&) = delete;
  Metronome& operator=(const Metronome&) = delete;

  // It beats while one of these lives. May outlive the thread that made it, not the metronome.
  class Beating {
   public:
    Beating() = default;
    explicit Beating(Metronome& owner);
    Beating(Beating&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    Beating& operator=(Beating&& other) noexcept;
    ~Beating() { end(); }
    void end();

   private:
    Metronome* owner_ = nullptr;
  };

  int threads() const { return static_cast<int>(threads_.size()); }
  // Of all threads, since it was made.
  uint64_t beats() const { return beats_.load(std::memory_order_relaxed); }

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  // Read at each beat without the lock.
  std::atomic<int> wanted_ = 0;
  std::atomic<bool> ending_ = false;
  std::atomic<uint64_t> beats_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_METRONOME_H_
