#include "vm/pump.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>
#include <thread>

#include "base/clock.h"

namespace godwit::vm {
namespace {

// local end <-> pump <-> far end
struct Pumped {
  explicit Pumped(Traffic* traffic) {
    int one[2], two[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, one), 0);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, two), 0);
    local = UniqueFd(one[0]);
    far = UniqueFd(two[0]);
    pump = std::make_unique<Pump>(std::make_unique<tls::Channel>(UniqueFd(one[1])),
                                  std::make_unique<tls::Channel>(UniqueFd(two[1])), traffic);
    thread = std::thread([this] { well = pump->run(); });
  }
  ~Pumped() {
    pump->stop();
    if (thread.joinable()) thread.join();
  }
  UniqueFd local, far;
  std::unique_ptr<Pump> pump;
  std::thread thread;
  bool well = false;
};

bool readable(int fd, int wait_ms) {
  pollfd one{fd, POLLIN, 0};
  return ::poll(&one, 1, wait_ms) == 1;
}

std::string read_all(int fd) {
  std::string all;
  char bytes[65536];
  for (ssize_t n = 0; (n = ::read(fd, bytes, sizeof bytes)) > 0;)
    all.append(bytes, static_cast<size_t>(n));
  return all;
}

void send(int fd, const std::string& text) {
  ASSERT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

TEST(Pump, CarriesBothWaysUntilBothHaveEnded) {
  Traffic traffic;
  Pumped one(&traffic);
  std::string big(5'000'000, 'x');
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<char>(i * 2654435761u >> 13);
  std::thread writer([&] {
    for (size_t at = 0; at < big.size();) {
      const ssize_t n = ::write(one.local.get(), big.data() + at, big.size() - at);
      ASSERT_GT(n, 0);
      at += static_cast<size_t>(n);
    }
    ::shutdown(one.local.get(), SHUT_WR);
  });
  EXPECT_EQ(read_all(one.far.get()), big);
  writer.join();
  send(one.far.get(), "answer");
  ::shutdown(one.far.get(), SHUT_WR);
  EXPECT_EQ(read_all(one.local.get()), "answer");
  one.thread.join();
  EXPECT_TRUE(one.well);
  EXPECT_EQ(traffic.bytes(), big.size() + 6);
}

TEST(Pump, NothingGoesOutWhileHeld) {
  Pumped one(nullptr);
  send(one.local.get(), "before");
  ASSERT_TRUE(readable(one.far.get(), 5000));
  one.pump->hold(true);
  send(one.local.get(), "held");
  send(one.far.get(), "inwards");
  ASSERT_TRUE(readable(one.local.get(), 5000));  // the other way goes on
  char bytes[16];
  ASSERT_EQ(::read(one.far.get(), bytes, sizeof bytes), 6);
  EXPECT_FALSE(readable(one.far.get(), 50));
  one.pump->hold(false);
  EXPECT_TRUE(readable(one.far.get(), 5000));
}

TEST(Pump, WhatIsHeldIsNotSentByItsEnd) {
  Pumped one(nullptr);
  one.pump->hold(true);
  send(one.local.get(), "held");
  one.pump->stop();
  EXPECT_EQ(read_all(one.far.get()), "");
}

TEST(Pump, LimitsWhatGoesOut) {
  Traffic traffic;
  auto pacer = std::make_unique<pages::Pacer>();
  pacer->set_limit(1 << 20);
  traffic.set_pacer(std::move(pacer));
  Pumped one(&traffic);
  std::thread writer([&] {
    const std::string megabyte(1 << 20, 'x');
    if (::write(one.local.get(), megabyte.data(), megabyte.size()) < 0) return;
    ::shutdown(one.local.get(), SHUT_WR);
  });
  const int64_t begin = monotonic_ns();
  EXPECT_EQ(read_all(one.far.get()).size(), size_t{1} << 20);
  // The last piece goes at once, and is owed.
  EXPECT_GT(monotonic_ns() - begin, 500'000'000);
  writer.join();
}

TEST(Pump, AFarEndThatBreaksIsSaid) {
  Pumped one(nullptr);
  one.far.reset();
  // EPIPE, as a connection that was cut has ETIMEDOUT or ECONNRESET.
  const ssize_t sent = ::send(one.local.get(), "x", 1, MSG_NOSIGNAL);
  ASSERT_TRUE(sent == 1 || errno == EPIPE);
  one.thread.join();
  EXPECT_EQ(read_all(one.local.get()), "");
}

TEST(Pump, StopEndsItAtOnce) {
  Pumped one(nullptr);
  send(one.local.get(), "x");
  ASSERT_TRUE(readable(one.far.get(), 5000));
  one.pump->stop();
  one.thread.join();
  EXPECT_TRUE(one.well);
}

}  // namespace
}  // namespace godwit::vm
