// Locks of files, of processes and of open file descriptions, and one who waits for a lock.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "checks.h"

namespace state {
namespace {

constexpr off_t kStart = 10;
constexpr off_t kLength = 7;

struct Shared {
  std::atomic<int> held;     // turns: the holder has the lock
  std::atomic<int> release;  // the holder shall give it back for a turn
  std::atomic<int> got;      // the waiter has had it
};

struct flock range(short type, off_t start, off_t length) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = length;
  return lock;
}

void nap() {
  const timespec time{0, 1'000'000};
  ::nanosleep(&time, nullptr);
}

void lock(int fd, int command, short type, off_t start, off_t length) {
  struct flock wanted = range(type, start, length);
  must(::fcntl(fd, command, &wanted), "fcntl(lock)");
}

// By the description that its parent has as well: the lock is the child's alone all the same.
[[noreturn]] void hold(int fd, Shared& shared) {
  lock(fd, F_SETLK, F_RDLCK, 100, 0);
  for (int turn = 1;; ++turn) {
    lock(fd, F_SETLKW, F_WRLCK, kStart, kLength);
    shared.held = turn;
    while (shared.release < turn) nap();
    lock(fd, F_SETLK, F_UNLCK, kStart, kLength);
    while (shared.got < turn) nap();
  }
}

[[noreturn]] void wait_for_it(int fd, Shared& shared) {
  for (int turn = 1;; ++turn) {
    while (shared.held < turn) nap();
    lock(fd, F_SETLKW, F_WRLCK, kStart, 1);
    lock(fd, F_SETLK, F_UNLCK, kStart, 1);
    shared.got = turn;
  }
}

Check process_locks() {
  char name[] = "/tmp/state-locks-XXXXXX";
  const int fd = static_cast<int>(must(::mkstemp(name), "mkstemp"));
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* shared = new (memory) Shared{};
  const auto holder = static_cast<pid_t>(must(::fork(), "fork"));
  if (holder == 0) hold(fd, *shared);
  if (must(::fork(), "fork") == 0) wait_for_it(fd, *shared);
  if (!soon([=] { return shared->held == 1; })) must(-1, "a record lock");
  return {"locks of processes", [=, turn = 0]() mutable {
            ++turn;
            struct flock seen = range(F_WRLCK, 0, 50);
            report().equal("F_GETLK", ::fcntl(fd, F_GETLK, &seen), 0);
            report().equal("type of a record lock", seen.l_type, F_WRLCK);
            report().equal("start of a record lock", seen.l_start, kStart);
            report().equal("length of a record lock", seen.l_len, kLength);
            report().equal("owner of a record lock", seen.l_pid, holder);
            seen = range(F_WRLCK, 60, 0);
            report().equal("F_GETLK", ::fcntl(fd, F_GETLK, &seen), 0);
            report().equal("type of an open record lock", seen.l_type, F_RDLCK);
            report().equal("start of an open record lock", seen.l_start, 100);
            report().equal("length of an open record lock", seen.l_len, 0);
            report().equal("turns of who waits for a record lock", shared->got, turn - 1);
            shared->release = turn;
            report().expect(soon([&] { return shared->got == turn; }),
                            "who waits for a record lock does not get it");
            report().expect(soon([&] { return shared->held == turn + 1; }),
                            "a record lock is not taken again");
          }};
}

Check description_locks() {
  char name[] = "/tmp/state-locks-XXXXXX";
  const int fd = static_cast<int>(must(::mkstemp(name), "mkstemp"));
  must(::flock(fd, LOCK_SH), "flock");
  lock(fd, F_OFD_SETLK, F_WRLCK, 3, 4);
  const int memory = static_cast<int>(must(::memfd_create("locked", 0), "memfd_create"));
  must(::flock(memory, LOCK_EX), "flock");
  return {"locks of descriptions", [=, path = std::string(name)] {
            const int other = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
            report().equal("flock(LOCK_SH) beside one", ::flock(other, LOCK_SH | LOCK_NB), 0);
            report().equal("flock(LOCK_EX) beside one", ::flock(other, LOCK_EX | LOCK_NB), -1);
            struct flock seen = range(F_RDLCK, 0, 0);
            report().equal("F_OFD_GETLK", ::fcntl(other, F_OFD_GETLK, &seen), 0);
            report().equal("type of an OFD lock", seen.l_type, F_WRLCK);
            report().equal("start of an OFD lock", seen.l_start, 3);
            report().equal("length of an OFD lock", seen.l_len, 4);
            report().equal("owner of an OFD lock", seen.l_pid, -1);
            ::close(other);
            const std::string again = "/proc/self/fd/" + std::to_string(memory);
            const int beside = ::open(again.c_str(), O_RDWR | O_CLOEXEC);
            report().equal("flock of a locked memfd", ::flock(beside, LOCK_SH | LOCK_NB), -1);
            ::close(beside);
          }};
}

}  // namespace

void add_lock_checks(std::vector<Check>& checks) {
  checks.push_back(process_locks());
  checks.push_back(description_locks());
}

}  // namespace state
