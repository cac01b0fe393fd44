// For tests of task resources: a child that sets itself up and is stopped; states go from one such
// child to another, the husk, which then checks itself.
#ifndef GODWIT_RESOURCE_TESTING_TASKS_H_
#define GODWIT_RESOURCE_TESTING_TASKS_H_

#include <fcntl.h>
#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "resource/resource.h"
#include "tracee/batch.h"
#include "tracee/task.h"

namespace godwit::resource::testing {

// Forked, set up, waiting in read(2), stopped by ptrace. Killed and reaped at the end.
class StoppedChild {
 public:
  // `set_up` runs in the child; its `check` when it is let go on: the exit status, 0 for good.
  // Aborts the test binary if the child cannot be made: there is nothing to test then.
  explicit StoppedChild(std::function<void()> set_up = {}, std::function<int()> check = {}) {
    int ready[2];
    int go[2];
    if (::pipe2(ready, O_CLOEXEC) != 0 || ::pipe2(go, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ < 0) std::abort();
    if (pid_ == 0) {
      ::close(ready[0]);
      ::close(go[1]);
      if (set_up) set_up();
      char byte = 'r';
      if (::write(ready[1], &byte, 1) != 1) ::_exit(101);
      ssize_t got = -1;
      do got = ::read(go[0], &byte, 1);
      while (got < 0 && errno == EINTR);
      if (got != 1) ::_exit(102);
      ::_exit(check ? check() : 0);
    }
    ::close(ready[1]);
    ::close(go[0]);
    go_ = UniqueFd(go[1]);
    char byte = 0;
    const ssize_t got = ::read(ready[0], &byte, 1);
    ::close(ready[0]);
    if (got != 1) std::abort();
    stop();
  }
  // Forked, in `body` until `reached` says so here; then stopped wherever it is.
  struct Running {};
  StoppedChild(Running, const std::function<void()>& body, const std::function<bool()>& reached) {
    pid_ = ::fork();
    if (pid_ < 0) std::abort();
    if (pid_ == 0) {
      body();
      ::_exit(103);
    }
    const Deadline deadline = Deadline::in(absl::Seconds(20));
    while (!reached())
      if (deadline.passed()) std::abort();
    stop();
  }
  StoppedChild(const StoppedChild&) = delete;
  StoppedChild& operator=(const StoppedChild&) = delete;
  ~StoppedChild() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    task_.reset();
    ::waitpid(pid_, nullptr, 0);
  }

  pid_t pid() const { return pid_; }
  tracee::StoppedTask& task() { return *task_; }

  TaskView view() {
    TaskView view;
    view.tgid = view.tid = {pid_};
    view.host_tgid = view.host_tid = {pid_};
    view.leader = true;
    view.task = task_ ? &*task_ : nullptr;
    return view;
  }

  absl::Status run(tracee::Batch& batch) {
    if (batch.empty()) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(tracee::StubArea area, tracee::StubArea::map(*task_, {pid_}, 65536));
    const absl::Status status = area.run(*task_, {pid_}, batch, Deadline::in(absl::Seconds(20)));
    GW_RETURN_IF_ERROR(area.unmap(*task_));
    return status;
  }

  absl::StatusOr<std::string> capture(const TaskResource& resource) {
    tracee::Batch batch;
    GW_ASSIGN_OR_RETURN(const TaskResource::Collect collect, resource.capture(view(), batch));
    GW_RETURN_IF_ERROR(run(batch));
    return collect(batch);
  }

  // `known` as TaskView has it; the number of calls that it took goes to `calls`.
  absl::Status restore(const TaskResource& resource, std::string_view state,
                       std::optional<std::string_view> known = std::nullopt,
                       size_t* calls = nullptr) {
    TaskView husk = view();
    husk.known = known;
    tracee::Batch batch;
    GW_ASSIGN_OR_RETURN(const TaskResource::Check check, resource.restore(state, husk, batch));
    if (calls != nullptr) *calls = batch.size();
    if (resource.phase() != Phase::kLast) GW_RETURN_IF_ERROR(run(batch));
    return check ? check(batch) : absl::OkStatus();
  }

  // It runs, waiting, until stop().
  void let_go() { task_.reset(); }
  void stop() {
    absl::StatusOr<tracee::SeizedTask> seized = tracee::SeizedTask::seize({pid_});
    if (!seized.ok() || !seized->interrupt().ok()) std::abort();
    absl::StatusOr<tracee::StoppedTask> stopped =
        std::move(*seized).wait_stopped(Deadline::in(absl::Seconds(20)));
    if (!stopped.ok()) std::abort();
    task_.emplace(*std::move(stopped));
  }

  // Lets it go on; the exit status of its check, or minus the signal that ended it.
  int finish() {
    // First: a husk with another's registers never reads it, and ends when it likes.
    if (go_ && ::write(go_.get(), "g", 1) != 1) std::abort();
    task_.reset();
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
  UniqueFd go_;
  std::optional<tracee::StoppedTask> task_;
};

}  // namespace godwit::resource::testing

#endif  // GODWIT_RESOURCE_TESTING_TASKS_H_
