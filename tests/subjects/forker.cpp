// A service whose threads fork all the time, some children for long, and which knows what
// descriptors each of its processes has: those that it started with.
//
//   forker [THREADS]
//
// One child in eight lives for four seconds; there are at most 16 of these. Before it ends it
// compares its descriptors with the parent's at the beginning. Anything wrong is printed and ends
// the service.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

namespace {

constexpr int kMaxLong = 16;
constexpr int kWrong = 3;

std::vector<int> known;
std::atomic<int> living{0};

// In a child of a process with threads: no allocation, no locks.
void complain(const char* what, int number) {
  char link[64] = "?";
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", number);
  const ssize_t n = ::readlink(path, link, sizeof link - 1);
  if (n > 0) link[n] = '\0';
  char text[160];
  const int size = std::snprintf(text, sizeof text, "forker: %s %d: %s\n", what, number, link);
  if (::write(2, text, static_cast<size_t>(size)) < 0) ::_exit(kWrong);
}

// No more than those below 64: there are a handful.
bool descriptors_are_as_known() {
  for (int number = 0; number < 64; ++number) {
    const bool there = ::dup2(number, number) == number;
    bool wanted = false;
    for (const int one : known) wanted = wanted || one == number;
    if (there == wanted) continue;
    complain(there ? "a descriptor too many" : "a descriptor is missing", number);
    return false;
  }
  return true;
}

[[noreturn]] void live(bool for_long) {
  if (!for_long) ::_exit(0);
  timespec left{4, 0};
  while (::nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
  ::_exit(descriptors_are_as_known() ? 0 : kWrong);
}

void reap(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  std::fprintf(stderr, "forker: child %d ended with %#x\n", child, static_cast<unsigned>(status));
  std::abort();
}

void fork_for_ever() {
  std::vector<pid_t> long_living;
  const timespec nap{0, 500'000};
  for (uint64_t turn = 0;; ++turn) {
    const bool for_long = turn % 8 == 7 && living < kMaxLong;
    const pid_t child = ::fork();
    if (child < 0) std::abort();
    if (child == 0) live(for_long);
    if (!for_long) {
      reap(child);
    } else {
      ++living;
      long_living.push_back(child);
    }
    for (size_t i = 0; i < long_living.size();) {
      siginfo_t info{};
      ::waitid(P_PID, static_cast<id_t>(long_living[i]), &info, WEXITED | WNOHANG | WNOWAIT);
      if (info.si_pid == 0) {
        ++i;
        continue;
      }
      reap(long_living[i]);
      --living;
      long_living.erase(long_living.begin() + static_cast<std::ptrdiff_t>(i));
    }
    ::nanosleep(&nap, nullptr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int number = 0; number < 64; ++number)
    if (::dup2(number, number) == number) known.push_back(number);
  const int threads = argc > 1 ? std::atoi(argv[1]) : 3;
  std::puts("ready");
  std::fflush(stdout);
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) workers.emplace_back(fork_for_ever);
  for (;;) ::pause();
}
