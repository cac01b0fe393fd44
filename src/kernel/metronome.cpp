#include "kernel/metronome.h"

#include <pthread.h>
#include <sched.h>

#include <ctime>

namespace godwit::kernel {
namespace {

// The lowest: it is to interrupt programs of the fair scheduler, nobody else.
bool become_real_time() {
  sched_param lowest{};
  lowest.sched_priority = 1;
  // Not for what the thread may come to start.
  return ::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest) == 0;
}

}  // namespace

Metronome::Metronome() {
  cpu_set_t cpus;
  if (::sched_getaffinity(0, sizeof cpus, &cpus) != 0 || CPU_COUNT(&cpus) > kMostCpus) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &cpus)) continue;
    threads_.emplace_back([this] { run(); });
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    (void)::pthread_setaffinity_np(threads_.back().native_handle(), sizeof one, &one);
  }
}

Metronome::~Metronome() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& each : threads_) each.join();
}

void Metronome::run() {
  if (!become_real_time()) return;
  const timespec beat = absl::ToTimespec(kBeat);
  while (!ending_) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ending_ || wanted_ > 0; });
    }
    while (wanted_.load(std::memory_order_relaxed) > 0 && !ending_) {
      ::clock_nanosleep(CLOCK_MONOTONIC, 0, &beat, nullptr);
      beats_.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

Metronome::Beating::Beating(Metronome& owner) : owner_(&owner) {
  std::lock_guard lock(owner.mutex_);
  if (++owner.wanted_ == 1) owner.changed_.notify_all();
}

Metronome::Beating& Metronome::Beating::operator=(Beating&& other) noexcept {
  if (this != &other) {
    end();
    owner_ = std::exchange(other.owner_, nullptr);
  }
  return *this;
}

void Metronome::Beating::end() {
  if (owner_ == nullptr) return;
  std::lock_guard lock(owner_->mutex_);
  --owner_->wanted_;
  owner_ = nullptr;
}

}  // namespace godwit::kernel
