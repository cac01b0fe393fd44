#include "capsule/enter.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>

#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

absl::Status enter(int pidfd) {
  // setns(2): a mount namespace can be joined only by a thread that shares root and working
  // directory with no other.
  if (::unshare(CLONE_FS) != 0) return errno_status(errno, "unshare(CLONE_FS)");
  // A pidfd takes several kinds in one call (Linux 5.8).
  constexpr int kKinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  if (::setns(pidfd, kKinds) != 0) return errno_status(errno, "setns(capsule)");
  // The call has put both at the root of the namespace, which is the capsule's after its
  // pivot_root.
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CapsuleThread>> CapsuleThread::start(HostPid init) {
  GW_ASSIGN_OR_RETURN(const UniqueFd pidfd, kernel::pidfd_open(init));
  std::unique_ptr<CapsuleThread> entered(new CapsuleThread());
  CapsuleThread* const self = entered.get();
  // Signals of the process are for its other threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  entered->thread_ = std::thread([self, fd = pidfd.get()] { self->loop(fd); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  self->state_.wait(kStarting, std::memory_order_acquire);
  GW_RETURN_IF_ERROR(self->result_);
  return entered;
}

CapsuleThread::~CapsuleThread() {
  state_.store(kQuit, std::memory_order_release);
  state_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CapsuleThread::loop(int pidfd) {
  ::prctl(PR_SET_NAME, "in-capsule");
  result_ = enter(pidfd);
  int expected = kStarting;
  state_.compare_exchange_strong(expected, kIdle);
  state_.notify_all();
  while (true) {
    const int state = state_.load(std::memory_order_acquire);
    if (state == kQuit) return;
    if (state != kWork) {
      // A futex: waiting here has no deadline, ending it has an owner.
      state_.wait(state, std::memory_order_acquire);
      continue;
    }
    result_ = (*action_)();
    state_.store(kDone, std::memory_order_release);
    state_.notify_all();
  }
}

absl::Status CapsuleThread::run(absl::FunctionRef<absl::Status()> action) {
  const std::lock_guard<std::mutex> lock(one_caller_);
  action_ = &action;
  state_.store(kWork, std::memory_order_release);
  state_.notify_all();
  // The answer comes when the action ends: its waits have deadlines, this one needs none.
  state_.wait(kWork, std::memory_order_acquire);
  absl::Status result = std::move(result_);
  state_.store(kIdle, std::memory_order_release);
  return result;
}

}  // namespace godwit::capsule
