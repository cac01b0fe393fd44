// A service that starts another program in its own process over and over (execve(2)): itself, or
// itself by way of a shell. Each checks that its memory begins as the kernel gives it and stays as
// it was written, and that its process is the first one's.
//
//   execer PID GENERATION    PID 0: the first, which forks a child for the others to have
//
// Anything wrong is printed and ends the service. GENERATION is in /proc/PID/cmdline.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

namespace {

constexpr size_t kWords = size_t{4} << 17;  // 4 MiB
constexpr int kChecks = 6;
uint64_t zeros[kWords];

[[noreturn]] void wrong(const char* what, uint64_t found) {
  std::printf("execer: %s: %llx\n", what, static_cast<unsigned long long>(found));
  std::fflush(stdout);
  std::exit(1);
}

void nap(long milliseconds) {
  timespec left{0, milliseconds * 1'000'000};
  while (::nanosleep(&left, &left) != 0) {
  }
}

uint64_t word(uint64_t generation, size_t i) { return generation << 32 | i; }

// The child is the first program's; its parent's memory is not.
pid_t fork_child() {
  const pid_t child = ::fork();
  if (child < 0) wrong("fork", 0);
  if (child == 0)
    for (;;) nap(100);
  return child;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const auto expected = static_cast<pid_t>(std::atol(argv[1]));
  const auto generation = static_cast<uint64_t>(std::atoll(argv[2]));
  if (expected == 0) {
    fork_child();
    std::puts("ready");
    std::fflush(stdout);
  } else if (expected != ::getpid()) {
    wrong("process id", static_cast<uint64_t>(::getpid()));
  }
  for (size_t i = 0; i < kWords; ++i)
    if (zeros[i] != 0) wrong("memory of another program", zeros[i]);
  // A part of it, so that the next one finds out about what this one leaves.
  const size_t begin = generation % 4 * (kWords / 4);
  for (size_t i = begin; i < begin + kWords / 4; ++i) zeros[i] = word(generation, i);
  std::vector<uint64_t> heap(kWords / 16);
  for (size_t i = 0; i < heap.size(); ++i) heap[i] = word(generation, i);
  for (int check = 0; check < kChecks; ++check) {
    nap(10);
    for (size_t i = 0; i < kWords; ++i) {
      const uint64_t wanted = i >= begin && i < begin + kWords / 4 ? word(generation, i) : 0;
      if (zeros[i] != wanted) wrong("memory", zeros[i]);
    }
    for (size_t i = 0; i < heap.size(); ++i)
      if (heap[i] != word(generation, i)) wrong("heap", heap[i]);
  }
  char self[4096] = {};
  if (::readlink("/proc/self/exe", self, sizeof self - 1) < 0) wrong("readlink", 0);
  if (std::strstr(self, "execer") == nullptr) wrong("executable's link", 0);
  const std::string pid = std::to_string(::getpid());
  const std::string next = std::to_string(generation + 1);
  if (generation % 3 == 2) {
    // Through another executable, which stays for a moment.
    const std::string command = std::string("sleep 0.05; exec ") + self + " " + pid + " " + next;
    ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
  } else {
    ::execl(self, self, pid.c_str(), next.c_str(), nullptr);
  }
  wrong("exec", 0);
}
