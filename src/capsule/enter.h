// A thread that lives in a capsule's namespaces, to open its files and make its sockets.
#ifndef GODWIT_CAPSULE_ENTER_H_
#define GODWIT_CAPSULE_ENTER_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"

namespace godwit::capsule {

// The thread is in the mount, network, ipc, uts and cgroup namespaces of the capsule, root and
// working directory at the capsule's "/"; in pid, user and time namespaces it stays where the
// process is (a thread cannot change those). Descriptors are the process's, as for every thread.
// Its mount namespace lives until the thread ends: destroy it before the capsule's.
class CapsuleThread {
 public:
  // `init` is pid 1 of the capsule; it may die later without harm to the thread.
  static absl::StatusOr<std::unique_ptr<CapsuleThread>> start(HostPid init);
  ~CapsuleThread();
  CapsuleThread(const CapsuleThread&) = delete;
  CapsuleThread& operator=(const CapsuleThread&) = delete;

  // Runs `action` there and returns what it returned. Any thread may call; one action at a time.
  // Not from within an action.
  absl::Status run(absl::FunctionRef<absl::Status()> action);

 private:
  CapsuleThread() = default;
  void loop(int pidfd);

  // kIdle -> kWork (caller) -> kDone (thread) -> kIdle (caller); kQuit ends it.
  enum State : int { kStarting, kIdle, kWork, kDone, kQuit };
  std::mutex one_caller_;
  std::atomic<int> state_{kStarting};
  const absl::FunctionRef<absl::Status()>* action_ = nullptr;
  absl::Status result_;
  std::thread thread_;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_ENTER_H_
