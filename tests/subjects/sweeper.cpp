// A service that touches all of its memory, over and over, checks what it reads, and knows how long
// each touch took: what a move does to a program's memory, seen by the program.
//
//   sweeper --port P [--mib M] [--order sequential|random] [--write] [--pause-ns N]
//
// Every connection to port P gets one line of JSON about the time since the connection before, and
// is closed: touches, sweeps (whole passes), bytes_per_s, waits (touches of 5 us and more), and of
// these p50_us, p99_us, max_us. A wrong page ends the process by SIGABRT.
#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr int64_t kWaitNs = 5'000;
constexpr size_t kMostWaits = 4'000'000;

int64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec;
}

struct Options {
  uint16_t port = 0;
  size_t mib = 64;
  bool random = false;
  bool write = false;
  int64_t pause_ns = 0;
};

struct Seen {
  int64_t since_ns = now_ns();
  uint64_t touches = 0;
  uint64_t sweeps = 0;
  std::vector<int64_t> waits;
};

class Sweeper {
 public:
  explicit Sweeper(const Options& options)
      : options_(options), pages_(options.mib * (1 << 20) / kPage), counts_(pages_) {
    void* memory =
        ::mmap(nullptr, pages_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    // Small pages at both ends: each has to come by itself.
    ::madvise(memory, pages_ * kPage, MADV_NOHUGEPAGE);
    words_ = static_cast<volatile uint64_t*>(memory);
    for (size_t page = 0; page < pages_; ++page) {
      for (size_t word = 0; word < kPage / 8; word += 16) at(page, word) = value(page, word);
    }
  }

  [[noreturn]] void run() {
    uint64_t state = 88172645463325252ULL;
    for (size_t step = 0;; ++step) {
      size_t page = step % pages_;
      if (options_.random) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page = state % pages_;
      }
      const int64_t begin = now_ns();
      const uint64_t first = at(page, 0);
      const int64_t took = now_ns() - begin;
      if (first != value(page, 0)) fail(page);
      const size_t word = (step * 16) % (kPage / 8);
      if (at(page, word) != value(page, word)) fail(page);
      if (options_.write) {
        ++counts_[page];
        for (size_t each = 0; each < kPage / 8; each += 16) at(page, each) = value(page, each);
      }
      note(took, page + 1 == pages_);
      while (options_.pause_ns != 0 && now_ns() - begin < options_.pause_ns) {
      }
    }
  }

  std::string take() {
    Seen seen;
    {
      const std::lock_guard lock(mutex_);
      std::swap(seen, seen_);
    }
    const double seconds = static_cast<double>(now_ns() - seen.since_ns) * 1e-9;
    std::sort(seen.waits.begin(), seen.waits.end());
    const auto share = [&](double part) {
      if (seen.waits.empty()) return 0.0;
      const auto last = static_cast<double>(seen.waits.size() - 1);
      return static_cast<double>(seen.waits[static_cast<size_t>(part * last)]) * 1e-3;
    };
    char text[400];
    std::snprintf(text, sizeof text,
                  "{\"touches\": %llu, \"sweeps\": %llu, \"seconds\": %.6f, \"bytes_per_s\": %.0f, "
                  "\"waits\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n",
                  static_cast<unsigned long long>(seen.touches),
                  static_cast<unsigned long long>(seen.sweeps), seconds,
                  static_cast<double>(seen.touches * kPage) / seconds, seen.waits.size(),
                  share(0.5), share(0.99), share(1.0));
    return text;
  }

 private:
  volatile uint64_t& at(size_t page, size_t word) { return words_[page * (kPage / 8) + word]; }
  uint64_t value(size_t page, size_t word) const {
    return (page * 0x9E3779B97F4A7C15ULL) ^ (word << 32) ^ counts_[page] ^ 1;
  }
  [[noreturn]] static void fail(size_t page) {
    std::fprintf(stderr, "sweeper: page %zu is wrong\n", page);
    std::abort();
  }
  void note(int64_t took, bool last) {
    const std::lock_guard lock(mutex_);
    ++seen_.touches;
    if (last) ++seen_.sweeps;
    if (took >= kWaitNs && seen_.waits.size() < kMostWaits) seen_.waits.push_back(took);
  }

  Options options_;
  size_t pages_;
  volatile uint64_t* words_;
  std::vector<uint64_t> counts_;  // how often each was written
  std::mutex mutex_;
  Seen seen_;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--write") {
      options.write = true;
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    if (name == "--port") options.port = static_cast<uint16_t>(std::atoi(value));
    if (name == "--mib") options.mib = static_cast<size_t>(std::atoll(value));
    if (name == "--order") options.random = std::string(value) == "random";
    if (name == "--pause-ns") options.pause_ns = std::atoll(value);
  }
  if (options.port == 0 || options.mib == 0) {
    std::fprintf(stderr, "sweeper: --port and a --mib of 1 or more are needed\n");
    std::exit(2);
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Sweeper sweeper(options);
  std::thread([&sweeper] { sweeper.run(); }).detach();
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in own{};
  own.sin_family = AF_INET;
  own.sin_port = htons(options.port);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&own), sizeof own) != 0 ||
      ::listen(listener, 16) != 0)
    return 1;
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    const std::string text = sweeper.take();
    (void)!::write(client, text.data(), text.size());
    ::close(client);
  }
}
