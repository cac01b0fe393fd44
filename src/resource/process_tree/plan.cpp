#include <algorithm>
#include <map>
#include <set>

#include "base/status.h"
#include "resource/process_tree/process_tree.h"

namespace godwit::resource {
namespace {

constexpr int32_t kInit = 1;

struct Node {
  int32_t pid = 0;
  int32_t parent = kInit;  // final parent
  int32_t session = 0;
  int32_t group = 0;
  int32_t exit_signal = 17;  // SIGCHLD
  bool zombie = false;
  int32_t wait_status = 0;
  std::string name;
  uint32_t terminal = 0;
  bool ghost = false;
  bool existing = false;
  bool ended = false;  // and existing, as a zombie
  // Who forks it, and whether before that one's setsid.
  int32_t creator = kInit;
  bool before_setsid = false;
  bool forked = false;
};

class Planner {
 public:
  Planner(const ProcessTreeState& wanted, std::span<const int32_t> existing,
          std::span<const int32_t> ended) {
    const auto among = [](std::span<const int32_t> pids, int32_t pid) {
      return std::find(pids.begin(), pids.end(), pid) != pids.end();
    };
    for (const auto& p : wanted.processes()) {
      Node node;
      node.pid = p.pid();
      node.parent = p.parent();
      node.session = p.session();
      node.group = p.process_group();
      node.exit_signal = p.exit_signal();
      node.zombie = p.zombie();
      node.wait_status = p.wait_status();
      node.name = p.name();
      node.terminal = p.terminal();
      node.ended = among(ended, p.pid());
      node.existing = node.ended || among(existing, p.pid());
      node.forked = node.existing;
      nodes_[node.pid] = node;
    }
  }

  absl::StatusOr<std::vector<TreeStep>> plan() {
    GW_RETURN_IF_ERROR(check_terminals());
    add_ghosts();
    for (auto& [pid, node] : nodes_) GW_RETURN_IF_ERROR(choose_creator(node));
    for (auto& [pid, node] : nodes_)
      if (node.creator == kInit) fork_with_children(node);
    // Children of processes that were already there.
    for (auto& [pid, node] : nodes_)
      if (node.existing) fork_children(node, false);
    for (auto& [pid, node] : nodes_)
      if (!node.forked)
        return make_error(absl::StatusCode::kInvalidArgument,
                          "process tree: process {} cannot be made: its parents form a circle",
                          pid);
    join_groups();
    end_all();
    return std::move(steps_);
  }

 private:
  bool leader_of_session(const Node& node) const { return node.session == node.pid; }
  // The session that children inherit before their parent's setsid.
  int32_t inherited_session(const Node& node) const {
    const auto creator = nodes_.find(node.creator);
    if (creator == nodes_.end()) return 0;  // init's
    return node.before_setsid ? inherited_session(creator->second) : creator->second.session;
  }
  // Sessions of init and of outside are the one that init's children are born into.
  int32_t normal(int32_t session) const { return session == kInit ? 0 : session; }

  // Who is born into a session whose leader has a controlling terminal has it as well.
  absl::Status check_terminals() const {
    for (const auto& [pid, node] : nodes_) {
      if (node.zombie || leader_of_session(node)) continue;
      const auto leader = nodes_.find(node.session);
      const bool lives = leader != nodes_.end() && !leader->second.zombie;
      if (node.terminal != (lives ? leader->second.terminal : 0))
        return make_error(absl::StatusCode::kInvalidArgument,
                          "process tree: process {} has another controlling terminal than its "
                          "session's leader",
                          pid);
    }
    return absl::OkStatus();
  }

  void add_ghost(int32_t pid, int32_t session, int32_t group, int32_t parent) {
    Node ghost;
    ghost.pid = pid;
    ghost.parent = parent;
    ghost.session = session;
    ghost.group = group;
    ghost.ghost = true;
    nodes_[pid] = ghost;
  }

  // Leaders that have ended while their session or group lives.
  void add_ghosts() {
    std::set<int32_t> sessions;
    for (const auto& [pid, node] : nodes_)
      if (normal(node.session) != 0 && !nodes_.contains(node.session) && !node.existing)
        sessions.insert(node.session);
    for (int32_t session : sessions) add_ghost(session, session, session, kInit);
    std::map<int32_t, int32_t> groups;  // group -> session
    for (const auto& [pid, node] : nodes_)
      if (node.group > kInit && !nodes_.contains(node.group) && !node.existing)
        groups[node.group] = node.session;
    for (const auto& [group, session] : groups)
      add_ghost(group, session, group, normal(session) == 0 ? kInit : session);
  }

  absl::Status choose_creator(Node& node) {
    if (node.existing || leader_of_session(node)) {
      node.creator = node.parent;  // whatever it was born into, setsid() follows
      if (leader_of_session(node) && node.parent != kInit) {
        // A process group leader cannot call setsid(2); a fresh child never leads one.
        if (!nodes_.contains(node.parent)) return no_parent(node);
      }
      return absl::OkStatus();
    }
    const int32_t session = normal(node.session);
    if (node.parent == kInit) {
      if (session == 0) {
        node.creator = kInit;
        return absl::OkStatus();
      }
      // An orphan: its session's leader forks it, and init inherits it when that ghost has gone
      // or through a helper in between.
      node.creator = session;
      return absl::OkStatus();
    }
    const auto parent = nodes_.find(node.parent);
    if (parent == nodes_.end()) return no_parent(node);
    node.creator = node.parent;
    if (normal(parent->second.session) == session) return absl::OkStatus();
    if (leader_of_session(parent->second) && normal(inherited_session(parent->second)) == session) {
      node.before_setsid = true;
      return absl::OkStatus();
    }
    return make_error(
        absl::StatusCode::kInvalidArgument,
        "process tree: process {} is in session {} that its parent {} was never a member of",
        node.pid, node.session, node.parent);
  }

  absl::Status no_parent(const Node& node) const {
    return make_error(absl::StatusCode::kInvalidArgument,
                      "process tree: the parent {} of process {} is not in the tree", node.parent,
                      node.pid);
  }

  void fork_with_children(Node& node) {
    if (!node.forked) {
      node.forked = true;
      TreeStep step{TreeStep::Kind::kFork, node.pid, node.creator, 0,
                    node.exit_signal,      0,        node.ghost};
      // Neither its own parent nor a ghost that init buries: forked through a helper that ends at
      // once, so that init inherits it.
      const auto creator = nodes_.find(node.creator);
      if (node.parent == kInit && node.creator != kInit && !creator->second.ghost)
        step.through_helper = true;
      steps_.push_back(step);
      fork_children(node, true);
      if (leader_of_session(node))
        steps_.push_back({TreeStep::Kind::kSetsid, node.pid, 0, 0, 0, 0, node.ghost});
      if (leader_of_session(node) && node.terminal != 0) {
        steps_.push_back({TreeStep::Kind::kTerminal, node.pid});
        steps_.back().terminal = node.terminal;
      }
    }
    fork_children(node, false);
  }

  void fork_children(Node& node, bool before_setsid) {
    for (auto& [pid, child] : nodes_)
      if (!child.forked && child.creator == node.pid && child.before_setsid == before_setsid)
        fork_with_children(child);
  }

  void join_groups() {
    const auto join = [&](bool leaders) {
      for (const auto& [pid, node] : nodes_) {
        if (node.existing || leader_of_session(node) || node.group <= kInit) continue;
        if ((node.group == pid) == leaders)
          steps_.push_back({TreeStep::Kind::kSetpgid, pid, 0, node.group, 0, 0, node.ghost});
      }
    };
    join(true);
    join(false);
  }

  void end_all() {
    for (const auto& [pid, node] : nodes_) {
      if (node.ended || (!node.zombie && !node.ghost)) continue;
      steps_.push_back(
          {TreeStep::Kind::kExit, pid, node.parent, 0, 0, node.wait_status, node.ghost, node.name});
      if (node.ghost && node.parent != kInit)
        steps_.push_back({TreeStep::Kind::kReap, pid, node.parent, 0, 0, 0, true});
    }
  }

  std::map<int32_t, Node> nodes_;
  std::vector<TreeStep> steps_;
};

}  // namespace

absl::StatusOr<std::vector<TreeStep>> plan_process_tree(const ProcessTreeState& wanted,
                                                        std::span<const int32_t> existing,
                                                        std::span<const int32_t> ended) {
  for (const auto& process : wanted.processes())
    if (!process.zombie() && std::find(process.threads().begin(), process.threads().end(),
                                       process.pid()) == process.threads().end())
      return make_error(absl::StatusCode::kInvalidArgument,
                        "process tree: process {} is not among its threads", process.pid());
  return Planner(wanted, existing, ended).plan();
}

}  // namespace godwit::resource
