#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>

#include "checks.h"

namespace state {
namespace {

std::string pattern(size_t bytes, unsigned seed) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>('a' + (i * 7 + seed) % 26);
  return text;
}

void expect_content(const char* what, int fd, const std::string& wanted) {
  std::string got(wanted.size() + 100, '\0');
  size_t have = 0;
  while (have < wanted.size()) {
    const ssize_t n = ::recv(fd, got.data() + have, got.size() - have, MSG_DONTWAIT);
    const ssize_t m =
        n < 0 && errno == ENOTSOCK ? ::read(fd, got.data() + have, got.size() - have) : n;
    if (m <= 0) break;
    have += static_cast<size_t>(m);
  }
  got.resize(have);
  report().expect(got == wanted, std::string(what) + ": " + std::to_string(have) +
                                     " bytes, other content than " + std::to_string(wanted.size()));
}

void put(int fd, const std::string& text) { must(::write(fd, text.data(), text.size()), "write"); }

Check pipe_check() {
  int ends[2];
  must(::pipe2(ends, O_NONBLOCK | O_CLOEXEC), "pipe2");
  must(::fcntl(ends[1], F_SETFL, 0), "F_SETFL");
  must(::fcntl(ends[1], F_SETPIPE_SZ, 16384), "F_SETPIPE_SZ");
  const std::string text = pattern(9000, 1);
  put(ends[1], text);
  return {"pipe", [=, read = ends[0], write = ends[1]] {
            report().equal("size of the pipe", ::fcntl(read, F_GETPIPE_SZ), 16384);
            report().equal("O_NONBLOCK of the read end", ::fcntl(read, F_GETFL) & O_NONBLOCK,
                           O_NONBLOCK);
            report().equal("O_NONBLOCK of the write end", ::fcntl(write, F_GETFL) & O_NONBLOCK, 0);
            report().equal("FD_CLOEXEC", ::fcntl(read, F_GETFD), FD_CLOEXEC);
            expect_content("pipe", read, text);
            put(write, text);
          }};
}

Check eventfd_check() {
  const int fd = static_cast<int>(must(::eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK), "eventfd"));
  return {"eventfd", [fd] {
            uint64_t value = 0;
            int turns = 0;
            while (::read(fd, &value, sizeof value) == sizeof value && value == 1 && turns < 9)
              ++turns;
            report().equal("count of the eventfd", turns, 3);
            value = 3;
            must(::write(fd, &value, sizeof value), "write(eventfd)");
          }};
}

Check signalfd_check() {
  const int number = SIGRTMIN + 3;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  must(::pthread_sigmask(SIG_BLOCK, &set, nullptr), "pthread_sigmask");
  const int fd = static_cast<int>(must(::signalfd(-1, &set, SFD_NONBLOCK), "signalfd"));
  const auto send = [number](int value) {
    sigval data{};
    data.sival_int = value;
    must(::sigqueue(::getpid(), number, data), "sigqueue");
  };
  send(41);
  send(42);
  return {"signalfd", [=] {
            for (const int wanted : {41, 42}) {
              signalfd_siginfo info{};
              report().equal("read(signalfd)", ::read(fd, &info, sizeof info), sizeof info);
              report().equal("value in the signalfd", info.ssi_int, wanted);
              report().equal("sender in the signalfd", info.ssi_pid, ::getpid());
              report().equal("code in the signalfd", info.ssi_code, SI_QUEUE);
            }
            send(41);
            send(42);
          }};
}

Check timerfd_check() {
  const int far = static_cast<int>(must(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), "timerfd"));
  itimerspec time{{5, 7000}, {3600, 0}};
  must(::timerfd_settime(far, 0, &time, nullptr), "timerfd_settime");
  const int near =
      static_cast<int>(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd"));
  time = {{0, 10'000'000}, {0, 10'000'000}};
  must(::timerfd_settime(near, 0, &time, nullptr), "timerfd_settime");
  const long long begin = clock_ms(CLOCK_MONOTONIC);
  uint64_t ticks = 0;
  return {"timerfd", [=]() mutable {
            itimerspec now{};
            must(::timerfd_gettime(far, &now), "timerfd_gettime");
            report().equal("interval (ns)", now.it_interval.tv_nsec, 7000);
            report().equal("interval (s)", now.it_interval.tv_sec, 5);
            const long long gone = (clock_ms(CLOCK_MONOTONIC) - begin) / 1000;
            const long long off = 3600 - gone - now.it_value.tv_sec;
            report().expect(off >= 0 && off <= 1,
                            "the timerfd ends " + std::to_string(off) + " s from when it should");
            pollfd wait{near, POLLIN, 0};
            report().equal("poll(timerfd)", ::poll(&wait, 1, 1000), 1);
            uint64_t more = 0;
            report().equal("read(timerfd)", ::read(near, &more, sizeof more), 8);
            ticks += more;
            const long long wanted = (clock_ms(CLOCK_MONOTONIC) - begin) / 10;
            report().expect(
                std::llabs(wanted - static_cast<long long>(ticks)) <= 3,
                "ticks of the timerfd: " + std::to_string(ticks) + " of " + std::to_string(wanted));
          }};
}

Check memfd_check() {
  const int fd =
      static_cast<int>(must(::memfd_create("state\xfc", MFD_ALLOW_SEALING), "memfd_create"));
  must(::ftruncate(fd, 20000), "ftruncate");
  auto* memory =
      static_cast<char*>(::mmap(nullptr, 20000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  const std::string text = pattern(20000, 5);
  std::memcpy(memory, text.data(), text.size());
  must(::fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), "F_ADD_SEALS");
  must(::lseek(fd, 777, SEEK_SET), "lseek");
  return {"memfd", [=] {
            report().equal("seals", ::fcntl(fd, F_GET_SEALS), F_SEAL_GROW);
            report().equal("offset of the memfd", ::lseek(fd, 0, SEEK_CUR), 777);
            report().equal("memcmp", std::memcmp(memory, text.data(), text.size()), 0);
            char one = 0;
            memory[4097] = static_cast<char>(memory[4097] ^ 1);
            report().equal("pread(memfd)", ::pread(fd, &one, 1, 4097), 1);
            report().equal("the mapping and its memfd", one, memory[4097]);
            memory[4097] = static_cast<char>(memory[4097] ^ 1);
          }};
}

Check unix_check() {
  int stream[2], datagram[2];
  must(::socketpair(AF_UNIX, SOCK_STREAM, 0, stream), "socketpair");
  must(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagram), "socketpair");
  const std::string there = pattern(5000, 2), back = pattern(300, 3);
  const auto fill = [=, s0 = stream[0], s1 = stream[1], d0 = datagram[0]] {
    put(s0, there);
    put(s1, back);
    for (size_t i = 1; i <= 3; ++i) put(d0, pattern(i * 10, 4));
  };
  fill();
  return {"unix sockets", [=, s0 = stream[0], s1 = stream[1], d1 = datagram[1]] {
            expect_content("unix stream there", s1, there);
            expect_content("unix stream back", s0, back);
            char bytes[100];
            for (long i = 1; i <= 3; ++i)
              report().equal("length of a datagram", ::recv(d1, bytes, sizeof bytes, 0), i * 10);
            ucred peer{};
            socklen_t length = sizeof peer;
            ::getsockopt(s0, SOL_SOCKET, SO_PEERCRED, &peer, &length);
            report().equal("SO_PEERCRED", peer.pid, ::getpid());
            fill();
          }};
}

sockaddr_in loopback(int fd) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  must(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
  socklen_t length = sizeof address;
  must(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), "getsockname");
  return address;
}

Check inet_check() {
  const int listener = static_cast<int>(must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  const sockaddr_in to = loopback(listener);
  must(::listen(listener, 5), "listen");
  const int near = static_cast<int>(must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  must(::connect(near, reinterpret_cast<const sockaddr*>(&to), sizeof to), "connect");
  const int far = static_cast<int>(must(::accept(listener, nullptr, nullptr), "accept"));
  const int udp = static_cast<int>(must(::socket(AF_INET, SOCK_DGRAM, 0), "socket"));
  const sockaddr_in self = loopback(udp);
  const std::string text = pattern(3000, 6);
  const auto fill = [=] {
    put(near, text);
    put(far, text);
    must(::sendto(udp, text.data(), 500, 0, reinterpret_cast<const sockaddr*>(&self), sizeof self),
         "sendto");
    (void)soon([&] {
      char bytes[4000];
      return ::recv(far, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT) == 3000 &&
             ::recv(near, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT) == 3000;
    });
  };
  fill();
  return {"tcp and udp on loopback", [=] {
            expect_content("tcp there", far, text);
            expect_content("tcp back", near, text);
            expect_content("udp", udp, text.substr(0, 500));
            fill();
          }};
}

// Two sockets with what two senders have sent: one that was connected to the first afterwards, by
// IPv4, and one that hears both, by IPv6.
Check udp_check() {
  const auto open = [](int family) {
    const int fd = static_cast<int>(must(::socket(family, SOCK_DGRAM, 0), "socket"));
    sockaddr_in6 self{};
    self.sin6_family = static_cast<sa_family_t>(family);
    if (family == AF_INET6) self.sin6_addr = in6addr_loopback;
    if (family == AF_INET)
      (void)loopback(fd);
    else
      must(::bind(fd, reinterpret_cast<const sockaddr*>(&self), sizeof self), "bind");
    return fd;
  };
  const auto name_of = [](int fd) {
    sockaddr_in6 name{};
    socklen_t length = sizeof name;
    must(::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length), "getsockname");
    return name;
  };
  struct Group {
    int to, first, second;
  };
  const auto fill = [=](const Group& group, bool both) {
    const sockaddr_in6 to = name_of(group.to);
    for (size_t i = 0; i < 40; ++i)
      must(::sendto(both && i % 2 == 1 ? group.second : group.first, pattern(i * 50, 8).data(),
                    i * 50, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to),
           "sendto");
  };
  const Group four{open(AF_INET), open(AF_INET), open(AF_INET)};
  const Group six{open(AF_INET6), open(AF_INET6), open(AF_INET6)};
  fill(four, true);
  fill(six, true);
  const sockaddr_in6 first = name_of(four.first);
  must(::connect(four.to, reinterpret_cast<const sockaddr*>(&first), sizeof first), "connect");
  const auto check = [=](const Group& group, bool both) {
    for (size_t i = 0; i < 40; ++i) {
      char bytes[3000];
      sockaddr_in6 from{};
      socklen_t length = sizeof from;
      const ssize_t got = ::recvfrom(group.to, bytes, sizeof bytes, MSG_DONTWAIT,
                                     reinterpret_cast<sockaddr*>(&from), &length);
      report().equal("length of a datagram", got, static_cast<long long>(i * 50));
      if (got < 0) return;
      const sockaddr_in6 wanted = name_of(both && i % 2 == 1 ? group.second : group.first);
      report().expect(std::memcmp(&from, &wanted, length) == 0, "sender of a datagram");
      report().expect(std::string(bytes, static_cast<size_t>(got)) == pattern(i * 50, 8),
                      "content of a datagram");
    }
  };
  return {"udp queues", [=, connected = false]() mutable {
            check(four, !connected);
            check(six, true);
            connected = true;
            fill(four, false);
            fill(six, true);
          }};
}

Check file_check() {
  char name[] = "/tmp/state_check\xfc.XXXXXX";  // a name is bytes, not a text
  const int fd = static_cast<int>(must(::mkstemp(name), "mkstemp"));
  put(fd, pattern(10000, 7));
  must(::lseek(fd, 1234, SEEK_SET), "lseek");
  const int same = static_cast<int>(must(::dup(fd), "dup"));
  const int append = static_cast<int>(must(::open(name, O_WRONLY | O_APPEND), "open"));
  const int directory = static_cast<int>(must(::open("/usr", O_RDONLY | O_DIRECTORY), "open"));
  const int null = static_cast<int>(must(::open("/dev/null", O_RDWR), "open"));
  auto* shared =
      static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  auto* own = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  own[5000] = '!';
  return {"files", [=, path = std::string(name)] {
            report().equal("offset", ::lseek(fd, 0, SEEK_CUR), 1234);
            must(::lseek(same, 1235, SEEK_SET), "lseek");
            report().equal("offset shared by dup", ::lseek(fd, 0, SEEK_CUR), 1235);
            must(::lseek(same, 1234, SEEK_SET), "lseek");
            report().equal("O_APPEND", ::fcntl(append, F_GETFL) & O_APPEND, O_APPEND);
            struct stat by_path {
            }, by_fd{};
            ::stat(path.c_str(), &by_path);
            ::fstat(fd, &by_fd);
            report().equal("inode by path and by descriptor",
                           static_cast<long long>(by_path.st_ino),
                           static_cast<long long>(by_fd.st_ino));
            report().equal("a directory", ::faccessat(directory, "bin", F_OK, 0), 0);
            report().equal("/dev/null", ::write(null, "x", 1), 1);
            report().equal("a private page", own[5000], '!');
            shared[10] = static_cast<char>(shared[10] ^ 1);
            char one = 0;
            report().equal("pread", ::pread(fd, &one, 1, 10), 1);
            report().equal("a shared mapping and its file", one, shared[10]);
            report().equal("an untouched private page", own[10], one);
            shared[10] = static_cast<char>(shared[10] ^ 1);
          }};
}

Check epoll_check() {
  const int epoll = static_cast<int>(must(::epoll_create1(0), "epoll_create1"));
  int once[2], level[2];
  must(::pipe(once), "pipe");
  must(::pipe(level), "pipe");
  put(once[1], "x");
  put(level[1], "x");
  epoll_event event{};
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.u64 = 0x1122334455667788ULL;
  must(::epoll_ctl(epoll, EPOLL_CTL_ADD, once[0], &event), "epoll_ctl");
  report().equal("epoll_wait", ::epoll_wait(epoll, &event, 1, 100), 1);  // disarms it
  event.events = EPOLLIN;
  event.data.u64 = 0x99aabbccddeeff00ULL;
  must(::epoll_ctl(epoll, EPOLL_CTL_ADD, level[0], &event), "epoll_ctl");
  return {"epoll", [epoll, fd = once[0]] {
            epoll_event events[4];
            report().equal("ready of the epoll set", ::epoll_wait(epoll, events, 4, 100), 1);
            report().expect(events[0].data.u64 == 0x99aabbccddeeff00ULL, "data of an epoll entry");
            epoll_event again{};
            again.events = EPOLLIN | EPOLLONESHOT;
            again.data.u64 = 0x1122334455667788ULL;
            report().equal("EPOLL_CTL_MOD", ::epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &again), 0);
            report().equal("ready after arming again", ::epoll_wait(epoll, events, 4, 100), 2);
          }};
}

}  // namespace

void add_descriptor_checks(std::vector<Check>& checks) {
  checks.push_back(pipe_check());
  checks.push_back(eventfd_check());
  checks.push_back(signalfd_check());
  checks.push_back(timerfd_check());
  checks.push_back(memfd_check());
  checks.push_back(unix_check());
  checks.push_back(inet_check());
  checks.push_back(udp_check());
  checks.push_back(file_check());
  checks.push_back(epoll_check());
}

}  // namespace state
