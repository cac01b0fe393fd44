#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "resource/process_tree/process_tree.h"

namespace godwit::resource {
namespace {

using Kind = TreeStep::Kind;

struct Spec {
  int32_t pid, parent, group, session;
  bool zombie = false;
};

ProcessTreeState tree_of(std::initializer_list<Spec> specs) {
  ProcessTreeState tree;
  for (const Spec& spec : specs) {
    auto* process = tree.add_processes();
    process->set_pid(spec.pid);
    process->set_parent(spec.parent);
    process->set_process_group(spec.group);
    process->set_session(spec.session);
    process->set_exit_signal(17);
    process->set_zombie(spec.zombie);
    if (!spec.zombie) process->add_threads(spec.pid);
    process->set_wait_status(spec.zombie ? 0x300 : 0);
  }
  return tree;
}

// Carries the steps out on paper, by the rules of fork(2), setsid(2), setpgid(2) and of
// reparenting.
struct Machine {
  struct Process {
    int32_t parent, group, session;
    bool dead = false;
  };
  std::map<int32_t, Process> all = {{1, {0, 1, 1}}};

  void run(const std::vector<TreeStep>& steps) {
    for (const TreeStep& step : steps) {
      switch (step.kind) {
        case Kind::kFork: {
          ASSERT_TRUE(all.contains(step.by) && !all.at(step.by).dead) << step.pid;
          ASSERT_FALSE(all.contains(step.pid)) << step.pid;
          const Process& by = all.at(step.by);
          all[step.pid] = {step.through_helper ? 1 : step.by, by.group, by.session};
          break;
        }
        case Kind::kSetsid: {
          Process& process = all.at(step.pid);
          ASSERT_NE(process.group, step.pid) << "setsid by a group leader";
          process.session = process.group = step.pid;
          break;
        }
        case Kind::kTerminal:
          ASSERT_EQ(all.at(step.pid).session, step.pid) << "a terminal for no session's leader";
          break;
        case Kind::kSetpgid: {
          Process& process = all.at(step.pid);
          ASSERT_NE(process.session, step.pid) << "setpgid by a session leader";
          if (step.group != step.pid) {
            bool same_session = false;
            for (const auto& [pid, other] : all)
              same_session |= other.group == step.group && other.session == process.session;
            ASSERT_TRUE(same_session) << step.pid << " joins " << step.group;
          }
          process.group = step.group;
          break;
        }
        case Kind::kExit:
          all.at(step.pid).dead = true;
          for (auto& [pid, other] : all)
            if (other.parent == step.pid) other.parent = 1;
          if (step.ghost && all.at(step.pid).parent == 1) all.erase(step.pid);
          break;
        case Kind::kReap:
          ASSERT_EQ(all.at(step.pid).parent, step.by);
          all.erase(step.pid);
          break;
        case Kind::kInvalid:
          FAIL();
      }
    }
  }
};

void expect_buildable(const ProcessTreeState& tree) {
  const auto steps = plan_process_tree(tree, {});
  ASSERT_TRUE(steps.ok()) << steps.status();
  Machine machine;
  ASSERT_NO_FATAL_FAILURE(machine.run(*steps));
  EXPECT_EQ(machine.all.size(), static_cast<size_t>(tree.processes_size()) + 1);
  for (const auto& want : tree.processes()) {
    ASSERT_TRUE(machine.all.contains(want.pid())) << want.pid();
    const Machine::Process& made = machine.all.at(want.pid());
    EXPECT_EQ(made.parent, want.parent()) << want.pid();
    EXPECT_EQ(made.group, want.process_group()) << want.pid();
    EXPECT_EQ(made.session, want.session()) << want.pid();
    EXPECT_EQ(made.dead, want.zombie()) << want.pid();
  }
}

TEST(PlanTest, MainProcessLeadsItsSession) { expect_buildable(tree_of({{2, 1, 2, 2}})); }

TEST(PlanTest, MasterAndWorkers) {
  expect_buildable(tree_of({{2, 1, 2, 2}, {3, 2, 2, 2}, {4, 2, 2, 2}, {5, 4, 4 + 1, 2}}));
}

TEST(PlanTest, ChildForkedBeforeItsParentCalledSetsid) {
  // 3 and 4 are in the session of 2; 4 is 3's child, and 3 has a session of its own by now.
  expect_buildable(tree_of({{2, 1, 2, 2}, {3, 2, 3, 3}, {4, 3, 2, 2}}));
}

TEST(PlanTest, DaemonOfADeadSessionLeader) {
  // The classic double fork: the leader 3 of session 3 has ended, 4 lives in it.
  expect_buildable(tree_of({{4, 1, 3, 3}}));
}

TEST(PlanTest, OrphanInTheSessionOfALivingLeader) {
  expect_buildable(tree_of({{2, 1, 2, 2}, {7, 1, 2, 2}}));
}

TEST(PlanTest, GroupWithoutItsLeader) {
  expect_buildable(tree_of({{2, 1, 2, 2}, {5, 2, 4, 2}, {6, 2, 4, 2}}));
}

TEST(PlanTest, Zombies) {
  expect_buildable(tree_of({{2, 1, 2, 2}, {3, 2, 2, 2, true}, {4, 2, 4, 4, true}}));
}

TEST(PlanTest, AZombieEndsUnderItsName) {
  auto tree = tree_of({{2, 1, 2, 2}, {3, 2, 2, 2, true}});
  tree.mutable_processes(1)->set_name("\xff odd");
  const auto steps = plan_process_tree(tree, {});
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_EQ(steps->back().kind, Kind::kExit);
  EXPECT_EQ(steps->back().pid, 3);
  EXPECT_EQ(steps->back().name, "\xff odd");
}

// It lived when a round was built, and has ended since.
TEST(PlanTest, OneThatLivedBecomesAZombie) {
  const auto tree = tree_of({{2, 1, 2, 2}, {3, 2, 2, 2, true}, {4, 2, 2, 2, true}});
  const int32_t existing[] = {2, 3};
  const int32_t ended[] = {4};
  const auto steps = plan_process_tree(tree, existing, ended);
  ASSERT_TRUE(steps.ok()) << steps.status();
  ASSERT_EQ(steps->size(), 1u);
  EXPECT_EQ(steps->front().kind, Kind::kExit);
  EXPECT_EQ(steps->front().pid, 3);
  EXPECT_EQ(steps->front().wait_status, 0x300);
}

TEST(PlanTest, OnlyWhatIsMissingIsMade) {
  const auto tree = tree_of({{2, 1, 2, 2}, {3, 2, 2, 2}});
  const int32_t existing[] = {2};
  const auto steps = plan_process_tree(tree, existing);
  ASSERT_TRUE(steps.ok()) << steps.status();
  ASSERT_EQ(steps->front().kind, Kind::kFork);
  EXPECT_EQ(steps->front().pid, 3);
  EXPECT_EQ(steps->front().by, 2);
  for (const TreeStep& step : *steps) EXPECT_EQ(step.pid, 3);
}

TEST(PlanTest, HostileTreesAreRefused) {
  EXPECT_FALSE(plan_process_tree(tree_of({{2, 9, 2, 2}}), {}).ok());  // no such parent
  EXPECT_FALSE(plan_process_tree(tree_of({{2, 3, 2, 2}, {3, 2, 3, 3}}), {}).ok());  // a circle
  EXPECT_FALSE(plan_process_tree(tree_of({{2, 1, 2, 2}, {3, 1, 3, 3}, {4, 2, 3, 3}}), {}).ok());
  ProcessTreeState without_leader = tree_of({{2, 1, 2, 2}});
  without_leader.mutable_processes(0)->set_threads(0, 3);
  EXPECT_FALSE(plan_process_tree(without_leader, {}).ok());
}

TEST(ProcessTreePlan, ASessionsLeaderTakesItsTerminalBeforeItsChildrenAreBorn) {
  // 12 was born before 10 began its session.
  ProcessTreeState tree = tree_of({{10, 1, 10, 10}, {11, 10, 11, 10}, {12, 10, 1, 0}});
  tree.mutable_processes(0)->set_terminal(4);
  tree.mutable_processes(1)->set_terminal(4);
  const auto steps = plan_process_tree(tree, {});
  ASSERT_TRUE(steps.ok()) << steps.status();
  std::map<std::pair<Kind, int32_t>, size_t> at;
  for (size_t i = 0; i < steps->size(); ++i) at[{(*steps)[i].kind, (*steps)[i].pid}] = i;
  const size_t taken = at.at({Kind::kTerminal, 10});
  EXPECT_EQ((*steps)[taken].terminal, 4U);
  EXPECT_LT(at.at({Kind::kSetsid, 10}), taken);
  EXPECT_LT(taken, at.at({Kind::kFork, 11}));
  EXPECT_LT(at.at({Kind::kFork, 12}), at.at({Kind::kSetsid, 10}));
  // It is there already.
  const int32_t existing[] = {10, 12};
  const auto later = plan_process_tree(tree, existing);
  ASSERT_TRUE(later.ok()) << later.status();
  for (const TreeStep& step : *later) EXPECT_NE(step.kind, Kind::kTerminal);
  // Nobody can be without a terminal that the others of the session have.
  tree.mutable_processes(1)->set_terminal(0);
  EXPECT_FALSE(plan_process_tree(tree, {}).ok());
}

}  // namespace
}  // namespace godwit::resource
