// System V semaphores and message queues: with what a process's end gives back, and with one who
// waits for each.
#include <fcntl.h>
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "checks.h"

namespace state {
namespace {

constexpr key_t kKey = 0x60d718;

struct Message {
  long type;
  char text[200];
};

int value(int set, int index) { return ::semctl(set, index, GETVAL); }

void operate(int set, unsigned short index, short by, short flags) {
  sembuf operation{index, by, flags};
  must(::semop(set, &operation, 1), "semop");
}

Check semaphores() {
  ::semctl(static_cast<int>(must(::semget(IPC_PRIVATE, 1, 0600), "semget")), 0, IPC_RMID);
  const int set = static_cast<int>(must(::semget(kKey, 4, IPC_CREAT | IPC_EXCL | 0640), "semget"));
  unsigned short values[] = {9, 0, 5, 0};
  must(::semctl(set, 0, SETALL, values), "SETALL");
  semid_ds ds{};
  ds.sem_perm.uid = 12;
  ds.sem_perm.gid = 34;
  ds.sem_perm.mode = 0622;
  must(::semctl(set, 0, IPC_SET, &ds), "IPC_SET");
  // Holds two of the first, has put three into the second, and waits in each turn for the fourth.
  const auto child = static_cast<pid_t>(must(::fork(), "fork"));
  if (child == 0) {
    operate(set, 0, -2, SEM_UNDO);
    operate(set, 1, 3, SEM_UNDO);
    for (;;) {
      operate(set, 3, -1, 0);
      operate(set, 2, 1, 0);
    }
  }
  if (!soon([=] { return value(set, 1) == 3 && ::semctl(set, 3, GETNCNT) == 1; }))
    must(-1, "semaphores");
  return {"semaphores", [=, turns = 0]() mutable {
            report().equal("number of the set", ::semget(kKey, 4, 0), set);
            semid_ds now{};
            report().equal("IPC_STAT", ::semctl(set, 0, IPC_STAT, &now), 0);
            report().equal("uid of the set", now.sem_perm.uid, 12);
            report().equal("gid of the set", now.sem_perm.gid, 34);
            report().equal("mode of the set", now.sem_perm.mode, 0622);
            report().equal("first semaphore", value(set, 0), 7);
            report().equal("second semaphore", value(set, 1), 3);
            operate(set, 3, 1, 0);
            ++turns;
            report().expect(soon([=] { return value(set, 2) == 5 + turns; }),
                            "who waits for a semaphore does not get it");
            // Its end would give back: a sibling with the same debts ends in its place.
            const auto sibling = static_cast<pid_t>(::fork());
            if (sibling == 0) {
              operate(set, 0, -1, SEM_UNDO);
              ::pause();
            }
            report().expect(soon([=] { return value(set, 0) == 6; }), "semop in a new process");
            ::kill(sibling, SIGKILL);
            ::waitpid(sibling, nullptr, 0);
            report().equal("first semaphore, given back", value(set, 0), 7);
          }};
}

// A new process with debts in each turn, which ends after the move that follows.
Check debts() {
  const int set = static_cast<int>(must(::semget(IPC_PRIVATE, 1, 0600), "semget"));
  unsigned short values[] = {50};
  must(::semctl(set, 0, SETALL, values), "SETALL");
  const auto lend = [set] {
    const auto child = static_cast<pid_t>(must(::fork(), "fork"));
    if (child == 0) {
      operate(set, 0, -20, SEM_UNDO);
      for (;;) ::pause();
    }
    if (!soon([=] { return value(set, 0) == 30; })) must(-1, "a debt");
    return child;
  };
  return {"what an end gives back", [=, child = lend()]() mutable {
            report().equal("semaphore with a debt", value(set, 0), 30);
            ::kill(child, SIGKILL);
            ::waitpid(child, nullptr, 0);
            report().equal("semaphore after its end", value(set, 0), 50);
            child = lend();
          }};
}

void send(int queue, long type, const std::string& text) {
  Message message{type, {}};
  text.copy(message.text, sizeof message.text);
  must(::msgsnd(queue, &message, text.size(), IPC_NOWAIT), "msgsnd");
}

std::string receive(int queue, long type) {
  Message message{};
  const ssize_t n = ::msgrcv(queue, &message, sizeof message.text, type, IPC_NOWAIT);
  return n < 0 ? "nothing"
               : std::to_string(message.type) + " " +
                     std::string(message.text, static_cast<size_t>(n));
}

Check queues() {
  ::msgctl(static_cast<int>(must(::msgget(IPC_PRIVATE, 0600), "msgget")), IPC_RMID, nullptr);
  const int queue = static_cast<int>(must(::msgget(kKey, IPC_CREAT | IPC_EXCL | 0640), "msgget"));
  msqid_ds ds{};
  must(::msgctl(queue, IPC_STAT, &ds), "IPC_STAT");
  ds.msg_perm.uid = 56;
  ds.msg_perm.mode = 0606;
  ds.msg_qbytes = 5000;
  must(::msgctl(queue, IPC_SET, &ds), "IPC_SET");
  if (must(::fork(), "fork") == 0) {
    for (;;) {  // answers what is for it
      Message message{};
      must(::msgrcv(queue, &message, sizeof message.text, 99, 0), "msgrcv");
      send(queue, 100, "answer");
    }
  }
  const auto fill = [queue] {
    send(queue, 7, "seven");
    send(queue, 3, "three");
    send(queue, 7, "");
  };
  fill();
  return {"message queue", [=] {
            report().equal("number of the queue", ::msgget(kKey, 0), queue);
            msqid_ds now{};
            report().equal("IPC_STAT", ::msgctl(queue, IPC_STAT, &now), 0);
            report().equal("uid of the queue", now.msg_perm.uid, 56);
            report().equal("mode of the queue", now.msg_perm.mode, 0606);
            report().equal("limit of the queue", static_cast<long long>(now.msg_qbytes), 5000);
            report().equal("messages", static_cast<long long>(now.msg_qnum), 3);
            send(queue, 99, "question");
            std::string answer;
            report().expect(soon([&] { return (answer = receive(queue, 100)) != "nothing"; }),
                            "who waits for a message does not get it");
            const std::string wanted[] = {"3 three", "7 seven", "7 ", "nothing"};
            const std::string got[] = {receive(queue, 3), receive(queue, 0), receive(queue, 0),
                                       receive(queue, 0)};
            for (int i = 0; i < 4; ++i)
              report().expect(got[i] == wanted[i], "a message is \"" + got[i] + "\"");
            fill();
          }};
}

// A queue with a name that nobody has open, and one without, which a child waits for.
Check posix_queues() {
  mq_attr attributes{};
  attributes.mq_maxmsg = 4;
  attributes.mq_msgsize = 5000;
  const auto make = [&](const char* name) {
    return static_cast<mqd_t>(must(
        ::mq_open(name, O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &attributes), "mq_open"));
  };
  const std::string large(4500, 'q');
  const auto fill = [large](mqd_t queue) {
    must(::mq_send(queue, "low", 3, 1), "mq_send");
    must(::mq_send(queue, large.data(), large.size(), 9), "mq_send");
    must(::mq_send(queue, "low too", 7, 1), "mq_send");
  };
  const mqd_t named = make("/state-named");
  fill(named);
  ::mq_close(named);
  const mqd_t asked = make("/state-asked");
  const auto waits = static_cast<mqd_t>(must(::mq_open("/state-asked", O_RDONLY), "mq_open"));
  const mqd_t answered = make("/state-answered");
  for (const char* name : {"/state-asked", "/state-answered"}) must(::mq_unlink(name), "mq_unlink");
  if (must(::fork(), "fork") == 0) {
    for (char bytes[5000];;) {
      const ssize_t got = ::mq_receive(waits, bytes, sizeof bytes, nullptr);
      if (got < 0 || ::mq_send(answered, bytes, static_cast<size_t>(got), 3) != 0) ::_exit(1);
    }
  }
  return {"POSIX message queues", [=, turn = 0]() mutable {
            const auto receive = [](mqd_t queue, unsigned wanted) {
              char bytes[5000];
              unsigned priority = 0;
              const ssize_t got = ::mq_receive(queue, bytes, sizeof bytes, &priority);
              report().equal("priority", priority, wanted);
              return got < 0 ? std::string(std::strerror(errno))
                             : std::string(bytes, static_cast<size_t>(got));
            };
            const mqd_t again = ::mq_open("/state-named", O_RDWR);
            report().expect(again >= 0, "the named queue is gone");
            mq_attr now{};
            ::mq_getattr(again, &now);
            report().equal("mq_maxmsg", now.mq_maxmsg, 4);
            report().equal("mq_msgsize", now.mq_msgsize, 5000);
            report().expect(now.mq_curmsgs == 3 && receive(again, 9) == large &&
                                receive(again, 1) == "low" && receive(again, 1) == "low too",
                            "the messages have changed");
            fill(again);
            ::mq_close(again);
            const std::string text = "turn " + std::to_string(turn++);
            report().equal("mq_send", ::mq_send(asked, text.data(), text.size(), 0), 0);
            report().expect(soon([&] {
                              ::mq_getattr(answered, &now);
                              return now.mq_curmsgs == 1;
                            }),
                            "nobody waits at the removed queue");
            if (now.mq_curmsgs == 1)
              report().expect(receive(answered, 3) == text, "another answer");
            report().equal("flags", now.mq_flags, O_NONBLOCK);
          }};
}

}  // namespace

void add_ipc_checks(std::vector<Check>& checks) {
  checks.push_back(posix_queues());
  checks.push_back(semaphores());
  checks.push_back(debts());
  checks.push_back(queues());
}

}  // namespace state
