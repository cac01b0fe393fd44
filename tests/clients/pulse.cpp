// A client that never reopens a connection and checks every answer.
//
//   pulse --protocol echo|redis|memcached|http --host A --port P [--connections N]
//         [--interval-us U] [--bytes B] [--seconds S]
//
// On each connection one request at a time; the next one U microseconds after the one before was
// sent (at once if its answer took longer). The first ones are spread over U microseconds, so that
// many connections are a steady load and no burst every U microseconds. The gap is the time from
// one answer to the next on the same connection. A line on stdin prints a JSON line with what
// happened since the line before; the end of stdin (or of S seconds) prints the totals and ends it.
// Exit code 1 if an answer was wrong or lost.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

namespace {

int64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec;
}

// What is asked next, and whether `reply` answers it: -1 wrong, 0 not complete, 1 right.
class Protocol {
 public:
  virtual ~Protocol() = default;
  virtual std::string next(int connection, uint64_t sequence) = 0;
  virtual int check(const std::string& reply) = 0;

 protected:
  static int compare(const std::string& reply, const std::string& wanted) {
    if (reply.size() > wanted.size()) return -1;
    if (wanted.compare(0, reply.size(), reply) != 0) return -1;
    return reply.size() == wanted.size() ? 1 : 0;
  }
  static std::string value(int connection, uint64_t sequence, size_t bytes) {
    std::string text = std::to_string(connection) + ":" + std::to_string(sequence) + ":";
    uint64_t x = sequence * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(connection);
    while (text.size() < bytes) {
      x ^= x >> 12;
      x ^= x << 25;
      x ^= x >> 27;
      text.push_back(static_cast<char>('a' + x % 26));
    }
    return text;
  }
};

class Echo final : public Protocol {
 public:
  explicit Echo(size_t bytes) : bytes_(std::max<size_t>(16, bytes)) {}
  std::string next(int connection, uint64_t sequence) override {
    wanted_ = value(connection, sequence, bytes_);
    wanted_.resize(bytes_);
    return wanted_;
  }
  int check(const std::string& reply) override { return compare(reply, wanted_); }

 private:
  size_t bytes_;
  std::string wanted_;
};

// Writes a key, reads it back with the next request.
class KeyValue : public Protocol {
 public:
  explicit KeyValue(size_t bytes) : bytes_(bytes) {}
  std::string next(int connection, uint64_t sequence) override {
    key_ = "pulse:" + std::to_string(connection) + ":" + std::to_string(sequence / 2 % 1000);
    if (sequence % 2 == 0) {
      value_ = value(connection, sequence, bytes_);
      wanted_ = stored();
      return set();
    }
    wanted_ = found();
    return get();
  }
  int check(const std::string& reply) override { return compare(reply, wanted_); }

 protected:
  virtual std::string set() const = 0;
  virtual std::string get() const = 0;
  virtual std::string stored() const = 0;
  virtual std::string found() const = 0;
  size_t bytes_;
  std::string key_;
  std::string value_;
  std::string wanted_;
};

class Redis final : public KeyValue {
 public:
  using KeyValue::KeyValue;

 private:
  static std::string bulk(const std::string& text) {
    return "$" + std::to_string(text.size()) + "\r\n" + text + "\r\n";
  }
  std::string set() const override { return "*3\r\n" + bulk("SET") + bulk(key_) + bulk(value_); }
  std::string get() const override { return "*2\r\n" + bulk("GET") + bulk(key_); }
  std::string stored() const override { return "+OK\r\n"; }
  std::string found() const override { return bulk(value_); }
};

class Memcached final : public KeyValue {
 public:
  using KeyValue::KeyValue;

 private:
  std::string length() const { return std::to_string(value_.size()); }
  std::string set() const override {
    return "set " + key_ + " 0 0 " + length() + "\r\n" + value_ + "\r\n";
  }
  std::string get() const override { return "get " + key_ + "\r\n"; }
  std::string stored() const override { return "STORED\r\n"; }
  std::string found() const override {
    return "VALUE " + key_ + " 0 " + length() + "\r\n" + value_ + "\r\nEND\r\n";
  }
};

// Any 200 answer whose body has its announced length and equals the first one of all.
class Http final : public Protocol {
 public:
  std::string next(int, uint64_t) override {
    return "GET /pulse HTTP/1.1\r\nHost: service\r\n\r\n";
  }
  int check(const std::string& reply) override {
    const size_t end = reply.find("\r\n\r\n");
    if (end == std::string::npos) return reply.size() > 16384 ? -1 : 0;
    if (reply.compare(0, 12, "HTTP/1.1 200") != 0) return -1;
    std::string head = reply.substr(0, end);
    std::transform(head.begin(), head.end(), head.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const size_t at = head.find("content-length:");
    if (at == std::string::npos) return -1;
    const size_t length = std::strtoull(head.c_str() + at + 15, nullptr, 10);
    const size_t got = reply.size() - end - 4;
    if (got < length) return 0;
    if (got > length) return -1;
    std::string body = reply.substr(end + 4);
    if (first_.empty()) first_ = body;
    return body == first_ ? 1 : -1;
  }

 private:
  std::string first_;
};

struct Options {
  std::string protocol = "echo";
  std::string host;
  std::string port;
  int connections = 1;
  int64_t interval_ns = 200'000;
  size_t bytes = 64;
  int64_t seconds = 0;
};

struct Connection {
  int fd = -1;
  std::unique_ptr<Protocol> protocol;
  uint64_t sequence = 0;
  std::string unsent;
  std::string reply;
  bool waiting = false;
  bool watched_for_room = false;  // EPOLLOUT
  int64_t sent_ns = 0;
  int64_t answered_ns = 0;
  bool dead = false;
};

struct Window {
  uint64_t checked = 0;
  uint64_t wrong = 0;
  uint64_t lost = 0;  // requests whose connection broke
  int64_t longest_gap_ns = 0;
  std::vector<uint32_t> latencies_us;
};

void print(Window& window, uint64_t wrong, uint64_t lost, uint64_t checked, int alive,
           int64_t waiting_ns) {
  std::sort(window.latencies_us.begin(), window.latencies_us.end());
  const auto at = [&](double p) -> uint32_t {
    if (window.latencies_us.empty()) return 0;
    return window
        .latencies_us[static_cast<size_t>(p * static_cast<double>(window.latencies_us.size() - 1))];
  };
  std::printf(
      "{\"checked\": %llu, \"wrong\": %llu, \"lost\": %llu, \"alive\": %d, \"waiting_us\": %.1f, "
      "\"longest_gap_us\": %.1f, \"p50_us\": %u, \"p99_us\": %u, \"total_checked\": %llu, "
      "\"total_wrong\": %llu, "
      "\"total_lost\": %llu, \"reopened\": 0}\n",
      static_cast<unsigned long long>(window.checked),
      static_cast<unsigned long long>(window.wrong), static_cast<unsigned long long>(window.lost),
      alive, static_cast<double>(waiting_ns) / 1000.0,
      static_cast<double>(window.longest_gap_ns) / 1000.0, at(0.5), at(0.99),
      static_cast<unsigned long long>(checked), static_cast<unsigned long long>(wrong),
      static_cast<unsigned long long>(lost));
  std::fflush(stdout);
}

int open_connection(const Options& options) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* list = nullptr;
  if (::getaddrinfo(options.host.c_str(), options.port.c_str(), &hints, &list) != 0) return -1;
  const int fd = ::socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int result = fd < 0 ? -1 : ::connect(fd, list->ai_addr, list->ai_addrlen);
  ::freeaddrinfo(list);
  if (result != 0) {
    std::perror("pulse: connect");
    if (fd >= 0) ::close(fd);
    return -1;
  }
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

class Client {
 public:
  explicit Client(Options options) : options_(std::move(options)) {}

  int run() {
    ::prctl(PR_SET_TIMERSLACK, 1);
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    connections_.resize(static_cast<size_t>(options_.connections));
    for (uint32_t i = 0; i < connections_.size(); ++i) {
      Connection& one = connections_[i];
      one.fd = open_connection(options_);
      if (one.fd < 0) return 2;
      one.protocol = make();
      if (!one.protocol) return 2;
      watch(EPOLL_CTL_ADD, one.fd, EPOLLIN, i);
    }
    // What cannot be waited for (a file, /dev/null) is at its end.
    if (options_.seconds == 0 && !watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, kStdin)) done_ = true;
    const int64_t begin = now_ns();
    for (uint32_t i = 0; i < connections_.size(); ++i)
      due_.emplace(begin + options_.interval_ns * i / options_.connections, i);
    const int64_t end = options_.seconds > 0 ? begin + options_.seconds * 1'000'000'000 : 0;
    while (!done_ && (end == 0 || now_ns() < end)) step();
    finish_waiting();
    report();
    return total_wrong_ + total_lost_ == 0 ? 0 : 1;
  }

 private:
  std::unique_ptr<Protocol> make() const {
    if (options_.protocol == "echo") return std::make_unique<Echo>(options_.bytes);
    if (options_.protocol == "redis") return std::make_unique<Redis>(options_.bytes);
    if (options_.protocol == "memcached") return std::make_unique<Memcached>(options_.bytes);
    if (options_.protocol == "http") return std::make_unique<Http>();
    std::fprintf(stderr, "pulse: unknown protocol %s\n", options_.protocol.c_str());
    return nullptr;
  }

  static constexpr uint32_t kStdin = UINT32_MAX;

  bool watch(int operation, int fd, uint32_t events, uint32_t number) const {
    epoll_event event{};
    event.events = events;
    event.data.u32 = number;
    return ::epoll_ctl(epoll_, operation, fd, &event) == 0;
  }

  void step() {
    const int64_t now = now_ns();
    int64_t next = now + 100'000'000;
    while (!due_.empty() && due_.top().first <= now) {
      const uint32_t number = due_.top().second;
      due_.pop();
      if (!connections_[number].dead) ask(number, connections_[number], now);
    }
    if (!due_.empty()) next = std::min(next, due_.top().first);
    const int64_t wait = std::max<int64_t>(0, next - now_ns());
    const timespec timeout{wait / 1'000'000'000, wait % 1'000'000'000};
    epoll_event events[64];
    const int ready = ::epoll_pwait2(epoll_, events, 64, &timeout, nullptr);
    for (int i = 0; i < ready; ++i) {
      const uint32_t number = events[i].data.u32;
      if (number == kStdin) {
        command();
        continue;
      }
      if ((events[i].events & EPOLLOUT) != 0) flush(number, connections_[number]);
      if ((events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0)
        take(number, connections_[number]);
    }
  }

  void ask(uint32_t number, Connection& one, int64_t now) {
    one.unsent = one.protocol->next(static_cast<int>(number), one.sequence++);
    one.reply.clear();
    one.waiting = true;
    one.sent_ns = now;
    if (one.answered_ns == 0) one.answered_ns = now;
    flush(number, one);
  }

  void flush(uint32_t number, Connection& one) {
    if (one.dead) return;
    const ssize_t n =
        ::send(one.fd, one.unsent.data(), one.unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0)
      one.unsent.erase(0, static_cast<size_t>(n));
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
      return broken(one, "send");
    const bool waits = !one.unsent.empty();
    if (waits == one.watched_for_room) return;
    one.watched_for_room = waits;
    watch(EPOLL_CTL_MOD, one.fd, waits ? EPOLLIN | EPOLLOUT : EPOLLIN, number);
  }

  void take(uint32_t number, Connection& one) {
    if (one.dead) return;
    char bytes[65536];
    const ssize_t n = ::recv(one.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return broken(one, n == 0 ? "closed by the service" : "recv");
    one.reply.append(bytes, static_cast<size_t>(n));
    const bool asked = one.waiting;
    const int verdict = asked ? one.protocol->check(one.reply) : -1;
    if (verdict == 0) return;
    const int64_t now = now_ns();
    ++window_.checked;
    ++total_checked_;
    if (verdict < 0) {
      ++window_.wrong;
      ++total_wrong_;
      std::fprintf(stderr, "pulse: wrong answer: %.200s\n", one.reply.c_str());
    }
    window_.longest_gap_ns = std::max(window_.longest_gap_ns, now - one.answered_ns);
    if (window_.latencies_us.size() < 4'000'000)
      window_.latencies_us.push_back(static_cast<uint32_t>((now - one.sent_ns) / 1000));
    one.answered_ns = now;
    one.waiting = false;
    if (asked) due_.emplace(std::max(now, one.sent_ns + options_.interval_ns), number);
  }

  void broken(Connection& one, const char* why) {
    std::fprintf(stderr, "pulse: connection broken: %s: %s\n", why, std::strerror(errno));
    one.dead = true;
    ::epoll_ctl(epoll_, EPOLL_CTL_DEL, one.fd, nullptr);
    ++window_.lost;
    ++total_lost_;
  }

  void command() {
    char bytes[256];
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (n <= 0) {
      done_ = true;
      return;
    }
    for (ssize_t i = 0; i < n; ++i)
      if (bytes[i] == '\n') report();
  }

  // Requests that are on their way must be answered too.
  void finish_waiting() {
    const int64_t deadline = now_ns() + 3'000'000'000;
    for (uint32_t i = 0; i < connections_.size(); ++i) {
      Connection& one = connections_[i];
      while (one.waiting && !one.dead && now_ns() < deadline) {
        pollfd wait{one.fd, POLLIN, 0};
        if (::poll(&wait, 1, 100) > 0) take(i, one);
      }
      if (one.waiting && !one.dead) broken(one, "no answer within 3 s");
    }
  }

  void report() {
    const auto alive = std::count_if(connections_.begin(), connections_.end(),
                                     [](const Connection& one) { return !one.dead; });
    int64_t waiting_ns = 0;  // of the request that has waited longest for its answer
    for (const Connection& one : connections_)
      if (one.waiting && !one.dead) waiting_ns = std::max(waiting_ns, now_ns() - one.sent_ns);
    print(window_, total_wrong_, total_lost_, total_checked_, static_cast<int>(alive), waiting_ns);
    window_ = Window{};
  }

  Options options_;
  std::vector<Connection> connections_;
  int epoll_ = -1;
  // When a connection asks next; those that wait for an answer are not in it.
  using Due = std::pair<int64_t, uint32_t>;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  Window window_;
  uint64_t total_checked_ = 0;
  uint64_t total_wrong_ = 0;
  uint64_t total_lost_ = 0;
  bool done_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* value = argv[i + 1];
    if (name == "--protocol")
      options.protocol = value;
    else if (name == "--host")
      options.host = value;
    else if (name == "--port")
      options.port = value;
    else if (name == "--connections")
      options.connections = std::atoi(value);
    else if (name == "--interval-us")
      options.interval_ns = std::atoll(value) * 1000;
    else if (name == "--bytes")
      options.bytes = std::strtoull(value, nullptr, 10);
    else if (name == "--seconds")
      options.seconds = std::atoll(value);
    else {
      std::fprintf(stderr, "pulse: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  if (options.host.empty() || options.port.empty()) {
    std::fprintf(stderr, "pulse: --host and --port are needed\n");
    return 2;
  }
  return Client(std::move(options)).run();
}
