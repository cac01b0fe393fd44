// What file kinds may ask of the replica that they are restored in.
#ifndef GODWIT_PROCESS_REPLICA_CONTEXT_H_
#define GODWIT_PROCESS_REPLICA_CONTEXT_H_

#include <map>
#include <string>
#include <utility>

#include "base/status.h"
#include "process/replica.h"
#include "resource/raw_sockets.h"

namespace godwit::process {

class Replica::Context final : public resource::RestoreContext {
 public:
  explicit Context(Replica& replica) : replica_(replica) {}

  bool final() const override { return replica_.final_; }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return replica_.host_.in_capsule(action);
  }
  HostPid init_pid() const override { return replica_.host_.init; }
  absl::StatusOr<int> raw_socket(int family) override {
    return raw_sockets_.get(family, replica_.host_.in_capsule);
  }
  int description(uint64_t id) const override {
    const auto found = replica_.descriptions_.find(id);
    return found == replica_.descriptions_.end() ? -1 : found->second.fd.get();
  }
  void stash(std::string name, UniqueFd fd) override {
    stash_.insert_or_assign(std::move(name), std::move(fd));
  }
  UniqueFd take(std::string_view name) override {
    const auto found = stash_.find(std::string(name));
    if (found == stash_.end()) return UniqueFd();
    UniqueFd fd = std::move(found->second);
    stash_.erase(found);
    return fd;
  }
  int stdio(int stream) const override {
    return replica_.host_.stdio.at(static_cast<size_t>(stream));
  }
  const resource::Terminal* terminal(uint32_t index) const override {
    const auto found = replica_.terminals_.find(index);
    return found == replica_.terminals_.end() ? nullptr : &found->second;
  }
  absl::StatusOr<UniqueFd> open_controlling_terminal(uint32_t index, int flags) override;
  absl::StatusOr<HostPid> host_pid(ImagePid pid) const override {
    const auto zombie = replica_.zombies_.find(pid.value);
    if (zombie != replica_.zombies_.end()) return zombie->second;
    const auto found = replica_.husks_.find(pid.value);
    if (found == replica_.husks_.end())
      return make_error(absl::StatusCode::kNotFound, "process {} is not in the replica", pid.value);
    return found->second.tasks().front().task.tid();
  }
  int64_t source_clock_ns() const override { return replica_.source_clock_ns_; }
  // Ends of pairs that nobody took: what had no holder at the source has none here.
  void drop_stash() { stash_.clear(); }

 private:
  Replica& replica_;
  std::map<std::string, UniqueFd> stash_;
  resource::RawSockets raw_sockets_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_REPLICA_CONTEXT_H_
