// A service for tests and benchmarks: an echo server whose memory is checked all the time.
//
//   memory_server --port P [--mib M] [--dirty-pages-per-s D] [--threads T] [--files F]
//                 [--map-changers C] [--fill sparse|words|noise]
//                 [--hot-mib H] [--interruptible 1]
//
// Fills M MiB with a pattern: a few words a page and zeros between them, or text of which a page
// shrinks to a third, or what does not shrink. Then dirties D pages a second in random order, of
// all of it or of its first H MiB, while it verifies each page before it writes it. T further
// threads keep thread-local counters, floating point and vector registers and check them; one that
// finds anything wrong aborts the process. F descriptors on /dev/null and eventfds are held open. C
// threads map, unmap, protect, advise and move memory all the time (map_changer.h). Answers every
// byte on port P unchanged. A wait that ends with EINTR is wrong, for nobody sends it a signal, but
// where another's mover is measured.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "map_changer.h"

namespace {

constexpr size_t kPage = 4096;

int64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec;
}

[[noreturn]] void fail(const char* what, uint64_t where) {
  std::fprintf(stderr, "memory_server: %s is wrong at %llu\n", what,
               static_cast<unsigned long long>(where));
  std::abort();
}

// Every page holds its number and a generation in several words, so that an old, a foreign or a
// torn page is seen.
class Memory {
 public:
  Memory(size_t bytes, const std::string& fill) : pages_(bytes / kPage), generation_(pages_) {
    void* memory = ::mmap(nullptr, pages_ * kPage + kPage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    words_ = static_cast<uint64_t*>(memory);
    uint64_t x = 88172645463325252ULL;
    const auto next = [&x] {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      return x;
    };
    for (size_t page = 0; page < pages_; ++page) {
      auto* at = reinterpret_cast<char*>(words_) + page * kPage;
      if (fill == "noise")
        for (size_t word = 0; word < kPage / 8; ++word) words_[page * (kPage / 8) + word] = next();
      if (fill == "words")
        for (size_t done = 0; done + 32 < kPage;)
          done +=
              static_cast<size_t>(std::snprintf(at + done, 32, "item %llu is in place; ",
                                                static_cast<unsigned long long>(next() % 10000)));
      write(page);
    }
  }
  size_t pages() const { return pages_; }
  void check(size_t page) const {
    const uint64_t* at = words_ + page * (kPage / 8);
    for (const size_t word : {0, 1, 100, 255, 511})
      if (at[word] != mark(page, word)) fail("memory", page);
  }
  void write(size_t page) {
    ++generation_[page];
    uint64_t* at = words_ + page * (kPage / 8);
    for (const size_t word : {0, 1, 100, 255, 511}) at[word] = mark(page, word);
  }

 private:
  uint64_t mark(size_t page, size_t word) const {
    return (page * 0x9e3779b97f4a7c15ULL) ^ (uint64_t{generation_[page]} << 20) ^ word ^ 1;
  }
  size_t pages_;
  std::vector<uint32_t> generation_;
  uint64_t* words_ = nullptr;
};

thread_local uint64_t thread_counter = 0;

// Integers in thread-local storage, doubles and vectors in registers, checked against each other.
void check_registers(uint64_t seed) {
  thread_counter = seed;
  uint64_t expected = seed;
  double sum = static_cast<double>(seed);
  timespec nap{0, 2'000'000};
  int64_t last = now_ns();
  for (;;) {
    double registers[8];
    for (int i = 0; i < 8; ++i) registers[i] = sum + i;
    for (int turn = 0; turn < 1000; ++turn)
      for (double& one : registers) one = one * 1.0 + 1.0;
    for (int i = 0; i < 8; ++i)
      if (registers[i] != sum + i + 1000.0) fail("a register", static_cast<uint64_t>(i));
    ++thread_counter;
    ++expected;
    if (thread_counter != expected) fail("thread-local memory", expected);
    const int64_t now = now_ns();
    if (now < last) fail("CLOCK_MONOTONIC", static_cast<uint64_t>(last - now));
    last = now;
    ::nanosleep(&nap, nullptr);
  }
}

void dirty(Memory& memory, uint64_t pages_per_s, uint64_t hot_pages) {
  uint64_t x = 88172645463325252ULL;
  const int64_t begin = now_ns();
  uint64_t done = 0;
  for (;;) {
    const auto due = static_cast<uint64_t>(static_cast<double>(now_ns() - begin) * 1e-9 *
                                           static_cast<double>(pages_per_s));
    for (; done < due; ++done) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      const size_t page = x % hot_pages;
      memory.check(page);
      memory.write(page);
    }
    timespec nap{0, 1'000'000};
    ::nanosleep(&nap, nullptr);
  }
}

void serve(uint16_t port, bool interruptible) {
  const int listener = ::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 4096) != 0) {
    std::perror("memory_server: listen");
    std::exit(1);
  }
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  std::puts("ready");
  std::fflush(stdout);
  std::vector<epoll_event> events(256);
  char bytes[65536];
  for (;;) {
    const int ready = ::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), -1);
    if (ready < 0 && errno == EINTR && interruptible) continue;
    if (ready < 0) fail("epoll_wait", static_cast<uint64_t>(errno));
    for (int i = 0; i < ready; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == listener) {
        const int client = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) continue;
        ::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        event.data.fd = client;
        ::epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
        continue;
      }
      const ssize_t n = ::recv(fd, bytes, sizeof bytes, 0);
      if (n < 0 && errno == EAGAIN) continue;
      if (n <= 0 || ::send(fd, bytes, static_cast<size_t>(n), MSG_NOSIGNAL) != n) ::close(fd);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t port = 7000;
  uint64_t mib = 16;
  uint64_t dirty_pages = 0;
  uint64_t threads = 0;
  uint64_t files = 0;
  uint64_t map_changers = 0;
  uint64_t hot_mib = 0;
  std::string fill = "sparse";
  uint64_t interruptible = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (name == "--port")
      port = value;
    else if (name == "--mib")
      mib = value;
    else if (name == "--dirty-pages-per-s")
      dirty_pages = value;
    else if (name == "--threads")
      threads = value;
    else if (name == "--files")
      files = value;
    else if (name == "--map-changers")
      map_changers = value;
    else if (name == "--hot-mib")
      hot_mib = value;
    else if (name == "--fill")
      fill = argv[i + 1];
    else if (name == "--interruptible")
      interruptible = value;
    else
      return 2;
  }
  Memory memory(mib << 20, fill);
  for (uint64_t i = 0; i < files; ++i)
    if ((i % 2 == 0 ? ::open("/dev/null", O_RDWR) : ::eventfd(static_cast<unsigned>(i), 0)) < 0) {
      std::perror("memory_server: --files");
      return 1;
    }
  std::vector<std::thread> workers;
  uint64_t hot_pages = hot_mib * (1 << 20) / kPage;
  if (hot_pages == 0 || hot_pages > memory.pages()) hot_pages = memory.pages();
  if (dirty_pages > 0) workers.emplace_back([&] { dirty(memory, dirty_pages, hot_pages); });
  for (uint64_t i = 0; i < threads; ++i) workers.emplace_back(check_registers, i * 1000);
  for (uint64_t i = 0; i < map_changers; ++i) workers.emplace_back(change_maps, i + 1);
  serve(static_cast<uint16_t>(port), interruptible != 0);
}
