// A service that puts other memory in place of what it has mapped, once, at a signal: where a
// private mapping of a file was, longer than the file, memory of its own follows, which is written
// then and never again.
//
//   map_replacer
//
// SIGUSR1: there and back. It prints "ready" and what it has done, checks all the time, and ends
// when something is wrong.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 64;
constexpr size_t kFilePages = 4;
constexpr uint64_t kAddress = 0x0100'0000'0000;

volatile std::sig_atomic_t asked = 0;

[[noreturn]] void wrong(const char* what, size_t page) {
  std::printf("map_replacer: %s, page %zu\n", what, page);
  std::fflush(stdout);
  std::exit(1);
}

uint64_t* map(int file) {
  const int flags = MAP_PRIVATE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
  void* at = ::mmap(reinterpret_cast<void*>(kAddress), kPages * kPage, PROT_READ | PROT_WRITE,
                    flags, file, 0);
  if (at == MAP_FAILED) wrong("mmap", 0);
  return static_cast<uint64_t*>(at);
}

}  // namespace

int main() {
  char path[] = "/tmp/map_replacer.XXXXXX";
  const int file = ::mkstemp(path);
  if (file < 0 || ::ftruncate(file, kFilePages * kPage) != 0) wrong("the file", 0);
  struct sigaction action {};
  action.sa_handler = [](int) { asked = asked + 1; };
  ::sigaction(SIGUSR1, &action, nullptr);
  uint64_t* words = map(file);
  int turns = 0;
  std::puts("ready");
  std::fflush(stdout);
  for (;;) {
    if (asked != turns) {
      ++turns;
      words = map(turns % 2 == 0 ? file : -1);
      for (size_t page = 0; turns % 2 == 1 && page < kPages; ++page)
        words[page * kPage / sizeof *words] = static_cast<uint64_t>(turns) << 32 | page;
      std::printf("replaced %d\n", turns);
      std::fflush(stdout);
    }
    for (size_t page = 0; page < (turns % 2 == 1 ? kPages : kFilePages); ++page)
      if (words[page * kPage / sizeof *words] !=
          (turns % 2 == 1 ? static_cast<uint64_t>(turns) << 32 | page : 0))
        wrong("what was written is not there", page);
    timespec left{0, 2'000'000};
    ::nanosleep(&left, nullptr);
  }
}
