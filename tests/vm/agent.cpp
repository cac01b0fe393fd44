// What runs in the test guest, linked statically: answers on TCP port 7000 with what it is sent,
// and keeps memory under load that checks itself.
//
// Port 7001 takes lines: "load MIB MIB_PER_S" begins to rewrite so much memory at that rate, after
// it has filled it; "disk PATH" writes blocks of a device over and over, reading each one back
// before; "check" answers "ok PASSES" or "wrong AT": those of the one that has had fewer.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBlock = size_t{64} << 10;

std::atomic<uint64_t> memory_passes{UINT64_MAX}, disk_passes{UINT64_MAX};  // the most: not begun
std::atomic<int64_t> wrong_at{-1};
uint64_t load_mib = 0, load_rate = 0;
char disk_path[64];

int64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec;
}

void pause_until(int64_t at_ns) {
  const int64_t left = at_ns - now_ns();
  if (left <= 0) return;
  const timespec pause{left / 1'000'000'000, left % 1'000'000'000};
  ::nanosleep(&pause, nullptr);
}

void fill(uint64_t* words, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = seed * 0x9e3779b97f4a7c15ULL + i;
}

bool as_filled(const uint64_t* words, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes / 8; ++i)
    if (words[i] != seed * 0x9e3779b97f4a7c15ULL + i) return false;
  return true;
}

// Each page has what the pass before wrote, or it was changed on the way.
void* load_memory(void*) {
  const size_t pages = load_mib << 8;
  auto* memory = static_cast<char*>(
      ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return nullptr;
  const auto page = [&](size_t i) { return reinterpret_cast<uint64_t*>(memory + i * kPage); };
  for (size_t i = 0; i < pages; ++i) fill(page(i), kPage, i);
  const size_t slice = load_rate << 8;  // pages a second
  for (uint64_t pass = 1;; ++pass) {
    int64_t at = now_ns();
    for (size_t i = 0; i < pages; ++i) {
      if (!as_filled(page(i), kPage, i + (pass - 1) * pages))
        wrong_at = static_cast<int64_t>(i * kPage);
      fill(page(i), kPage, i + pass * pages);
      if (slice > 0 && i % 16 == 0) pause_until(at += 16'000'000'000 / static_cast<int64_t>(slice));
    }
    memory_passes = pass;
  }
}

void* load_disk(void*) {
  const int fd = ::open(disk_path, O_RDWR | O_SYNC | O_DIRECT | O_CLOEXEC);
  if (fd < 0) {
    wrong_at = -2;
    return nullptr;
  }
  alignas(4096) static uint64_t block[kBlock / 8];
  constexpr size_t kBlocks = 64;
  for (uint64_t pass = 0;; ++pass) {
    for (size_t i = 0; i < kBlocks; ++i) {
      const auto at = static_cast<off_t>(i * 16 * kBlock);
      if (pass > 0 && (::pread(fd, block, kBlock, at) != static_cast<ssize_t>(kBlock) ||
                       !as_filled(block, kBlock, i + (pass - 1) * kBlocks)))
        wrong_at = at;
      fill(block, kBlock, i + pass * kBlocks);
      if (::pwrite(fd, block, kBlock, at) != static_cast<ssize_t>(kBlock)) wrong_at = -3;
      pause_until(now_ns() + 5'000'000);
    }
    disk_passes = pass + 1;
  }
}

void begin(void* (*work)(void*), std::atomic<uint64_t>& passes) {
  passes = 0;
  pthread_t thread{};
  ::pthread_create(&thread, nullptr, work, nullptr);
  ::pthread_detach(thread);
}

// A thread's descriptor, as it was given it.
int taken(void* argument) {
  const std::unique_ptr<int> fd(static_cast<int*>(argument));
  return *fd;
}

void* echo(void* argument) {
  const int fd = taken(argument);
  char bytes[4096];
  for (ssize_t n = 0; (n = ::read(fd, bytes, sizeof bytes)) > 0;)
    if (::write(fd, bytes, static_cast<size_t>(n)) != n) break;
  ::close(fd);
  return nullptr;
}

void* obey(void* argument) {
  const int fd = taken(argument);
  char line[128];
  for (ssize_t n = 0; (n = ::read(fd, line, sizeof line - 1)) > 0;) {
    line[n] = 0;
    char answer[64] = "ok\n";
    if (::sscanf(line, "load %lu %lu", &load_mib, &load_rate) == 2)
      begin(load_memory, memory_passes);
    else if (::sscanf(line, "disk %63s", disk_path) == 1)
      begin(load_disk, disk_passes);
    else if (wrong_at >= 0 || wrong_at < -1)
      std::snprintf(answer, sizeof answer, "wrong %ld\n", wrong_at.load());
    else
      std::snprintf(answer, sizeof answer, "ok %lu\n",
                    std::min(memory_passes.load(), disk_passes.load()));
    if (::write(fd, answer, std::strlen(answer)) < 0) break;
  }
  ::close(fd);
  return nullptr;
}

struct Port {
  uint16_t number;
  void* (*serve)(void*);
};

void* listen_at(void* argument) {
  const auto* port = static_cast<const Port*>(argument);
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port->number);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 64) != 0)
    ::_exit(1);
  for (;;) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    pthread_t thread{};
    ::pthread_create(&thread, nullptr, port->serve, new int(fd));
    ::pthread_detach(thread);
  }
}

}  // namespace

int main() {
  static Port commands{7001, obey};
  static Port echoes{7000, echo};
  pthread_t thread{};
  ::pthread_create(&thread, nullptr, listen_at, &commands);
  std::puts("agent: ready");
  std::fflush(stdout);
  listen_at(&echoes);
}
