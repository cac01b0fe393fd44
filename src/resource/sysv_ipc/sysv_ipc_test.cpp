// Each test has its own ipc namespaces: what it makes goes with them.
#include "resource/sysv_ipc/sysv_ipc.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "kernel/syscalls.h"
#include "resource/sysv_ipc/queues.h"
#include "resource/sysv_ipc/semaphores.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

void in_new_namespace(const std::function<void()>& body) {
  std::thread([&] {
    ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
    body();
  }).join();
}

class SysvIpcTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "an ipc namespace needs root";
  }
};

void operate(int set, unsigned short index, short by, short flags) {
  sembuf operation{index, by, flags};
  ASSERT_EQ(::semop(set, &operation, 1), 0);
}

TEST_F(SysvIpcTest, SemaphoresRoundTripWithWhatAnEndGivesBack) {
  auto opened = kernel::KernelMemory::open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const kernel::KernelMemory& memory = **opened;
  std::vector<SemaphoreSetState> sets;
  in_new_namespace([&] {
    ::semctl(::semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID);  // numbers are not the first ones
    const int first = ::semget(0x1234, 3, IPC_CREAT | 0640);
    const int second = ::semget(IPC_PRIVATE, 1, 0600);
    ASSERT_GT(first, 0);
    unsigned short values[] = {7, 0, 32000};
    ASSERT_EQ(::semctl(first, 0, SETALL, values), 0);
    semid_ds ds{};
    ds.sem_perm.uid = 77;
    ds.sem_perm.gid = 88;
    ds.sem_perm.mode = 0604;
    ASSERT_EQ(::semctl(first, 0, IPC_SET, &ds), 0);
    testing::StoppedChild child([&] {
      operate(first, 0, -2, SEM_UNDO);
      operate(first, 1, 3, SEM_UNDO);
      operate(second, 0, 1, 0);
    });
    auto read = read_semaphores();
    ASSERT_TRUE(read.ok()) << read.status();
    sets = *std::move(read);
    const std::pair<ImagePid, HostPid> processes[] = {{{12}, {child.pid()}}};
    const absl::Status undo = read_undo(processes, memory, sets);
    ASSERT_TRUE(undo.ok()) << undo;
    ASSERT_EQ(sets.size(), 2U);
    EXPECT_EQ(sets[0].number(), first);
    EXPECT_EQ(sets[0].permissions().key(), 0x1234);
    EXPECT_EQ(sets[0].permissions().mode(), 0604U);
    EXPECT_EQ(sets[0].permissions().uid(), 77U);
    EXPECT_EQ(sets[0].values(0), 5U);
    ASSERT_EQ(sets[0].undo_size(), 2);
    EXPECT_EQ(sets[0].undo(0).change(), 2);
    EXPECT_EQ(sets[0].undo(1).change(), -3);
    EXPECT_EQ(sets[1].undo_size(), 0);
  });
  sets[0].mutable_permissions()->set_creator_uid(4321);
  sets[0].mutable_permissions()->set_creator_gid(5432);
  in_new_namespace([&] {
    for (const SemaphoreSetState& set : sets) {
      ASSERT_TRUE(parse_semaphores(set.SerializeAsString()).ok());
      const absl::Status made = make_semaphores(set);
      ASSERT_TRUE(made.ok()) << made;
    }
    auto husk = std::make_unique<testing::StoppedChild>();
    tracee::Batch batch;
    for (const SemaphoreSetState& set : sets) add_undo_calls(set, {12}, batch);
    ASSERT_TRUE(husk->run(batch).ok());
    ASSERT_TRUE(batch.check_all().ok()) << batch.check_all();
    auto again = read_semaphores();
    ASSERT_TRUE(again.ok());
    const std::pair<ImagePid, HostPid> processes[] = {{{12}, {husk->pid()}}};
    ASSERT_TRUE(read_undo(processes, memory, *again).ok());
    ASSERT_EQ(again->size(), 2U);
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ((*again)[i].DebugString(), sets[i].DebugString());
    // Its end gives back.
    husk.reset();
    EXPECT_EQ(::semctl(sets[0].number(), 0, GETVAL), 7);
    EXPECT_EQ(::semctl(sets[0].number(), 1, GETVAL), 0);
  });
}

TEST_F(SysvIpcTest, QueuesRoundTripWithTheirMessages) {
  struct {
    long type;
    char text[9000];
  } message{};
  std::vector<MessageQueueState> queues;
  in_new_namespace([&] {
    ::msgctl(::msgget(IPC_PRIVATE, 0600), IPC_RMID, nullptr);
    const int queue = ::msgget(0x4321, IPC_CREAT | 0640);
    ASSERT_GT(queue, 0);
    for (const auto& [type, size] :
         {std::pair(5L, 3UL), std::pair(1L << 40, 0UL), std::pair(5L, 8000UL)}) {
      message.type = type;
      std::fill_n(message.text, size, static_cast<char>('a' + size % 26));
      ASSERT_EQ(::msgsnd(queue, &message, size, IPC_NOWAIT), 0);
    }
    msqid_ds ds{};
    ASSERT_EQ(::msgctl(queue, IPC_STAT, &ds), 0);
    ds.msg_perm.uid = 7;
    ds.msg_perm.gid = 8;
    ds.msg_perm.mode = 0602;
    ds.msg_qbytes = 4000;  // less than it holds
    ASSERT_EQ(::msgctl(queue, IPC_SET, &ds), 0);
    auto read = read_queues();
    ASSERT_TRUE(read.ok()) << read.status();
    queues = *std::move(read);
    // They are still there.
    EXPECT_EQ(read_queues()->at(0).DebugString(), queues.at(0).DebugString());
  });
  ASSERT_EQ(queues.size(), 1U);
  MessageQueueState& state = queues[0];
  ASSERT_EQ(state.messages_size(), 3);
  EXPECT_EQ(state.messages(1).type(), 1L << 40);
  EXPECT_EQ(state.messages(2).text().size(), 8000U);
  EXPECT_EQ(state.limit(), 4000U);
  state.mutable_permissions()->set_creator_uid(4321);
  state.mutable_permissions()->set_creator_gid(5432);
  // More than a queue may hold by default, of messages larger than one may be by default.
  state.add_messages()->set_type(9);
  state.mutable_messages(3)->set_text(std::string(100'000, 'x'));
  in_new_namespace([&] {
    ASSERT_TRUE(parse_queue(state.SerializeAsString()).ok());
    const absl::Status made = make_queue(state);
    ASSERT_TRUE(made.ok()) << made;
    const auto again = read_queues();
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_EQ(again->size(), 1U);
    EXPECT_EQ((*again)[0].SerializeAsString(), state.SerializeAsString());
    EXPECT_EQ(::msgrcv(state.number(), &message, sizeof message.text, 5, IPC_NOWAIT), 3);
    EXPECT_EQ(*kernel::read_file("/proc/sys/kernel/msgmax"), "8192\n");
  });
}

TEST_F(SysvIpcTest, BytesThatAreNoneAreAnError) {
  EXPECT_FALSE(parse_semaphores("\xff").ok());
  SemaphoreSetState set;
  EXPECT_FALSE(parse_semaphores(set.SerializeAsString()).ok());  // without a semaphore
  set.add_values(40000);
  EXPECT_FALSE(parse_semaphores(set.SerializeAsString()).ok());
  set.set_values(0, 1);
  EXPECT_TRUE(parse_semaphores(set.SerializeAsString()).ok());
  set.add_undo()->set_index(1);
  EXPECT_FALSE(parse_semaphores(set.SerializeAsString()).ok());
  set.clear_undo();
  set.mutable_permissions()->set_mode(07777);
  EXPECT_FALSE(parse_semaphores(set.SerializeAsString()).ok());
  EXPECT_FALSE(parse_queue("\xff").ok());
  MessageQueueState queue;
  queue.add_messages();  // of type 0
  EXPECT_FALSE(parse_queue(queue.SerializeAsString()).ok());
}

}  // namespace
}  // namespace godwit::resource
