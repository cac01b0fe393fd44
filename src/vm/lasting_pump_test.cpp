#include "vm/lasting_pump.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace godwit::vm {
namespace {

std::pair<UniqueFd, UniqueFd> pair_of_sockets() {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Two ends, and a network between them that can be cut.
class LastingPumpTest : public testing::Test {
 protected:
  void SetUp() override {
    auto [here, in_source] = pair_of_sockets();
    auto [there, in_destination] = pair_of_sockets();
    here_ = std::move(here);
    there_ = std::move(there);
    LastingPump::Options options;
    options.flow = 1;
    options.connect = [this] { return connect(); };
    source_ = std::make_unique<LastingPump>(std::move(in_source), std::move(options));
    LastingPump::Options accepting;
    accepting.flow = 1;
    destination_ = std::make_unique<LastingPump>(std::move(in_destination), std::move(accepting));
  }
  void start() {
    first_ = std::thread([this] { source_well_ = source_->run(); });
    second_ = std::thread([this] { destination_well_ = destination_->run(); });
  }
  void join() {
    first_.join();
    // As a relay that is ended by its daemon.
    destination_->stop();
    second_.join();
  }
  absl::StatusOr<std::unique_ptr<tls::Channel>> connect() {
    std::lock_guard lock(mutex_);
    if (down_) return absl::UnavailableError("cut");
    auto [near, far] = pair_of_sockets();
    cut_fd_.reset(::dup(near.get()));
    std::thread([this, fd = far.release()] {
      auto channel = std::make_unique<tls::Channel>(UniqueFd(fd));
      const auto hello = read_hello(*channel);
      if (hello.ok()) destination_->attach(std::move(channel), hello->received);
    }).detach();
    ++connected_;
    return std::make_unique<tls::Channel>(std::move(near));
  }
  void cut(bool down) {
    std::lock_guard lock(mutex_);
    down_ = down;
    if (cut_fd_) ::shutdown(cut_fd_.get(), SHUT_RDWR);
  }
  void send_all(size_t bytes, int cuts) {
    std::string block(4096, '\0');
    for (size_t i = 0; i < bytes / 4096; ++i) {
      for (char& each : block)
        each = static_cast<char>(i * 7 + static_cast<size_t>(&each - &block[0]));
      ASSERT_EQ(::send(here_.get(), block.data(), block.size(), MSG_NOSIGNAL), 4096);
      if (cuts > 0 && i % (bytes / 4096 / static_cast<size_t>(cuts) + 1) == 100) cut(false);
    }
    ::shutdown(here_.get(), SHUT_WR);
  }
  void expect_all(size_t bytes) {
    std::string block(4096, '\0');
    for (size_t i = 0; i < bytes / 4096; ++i) {
      ASSERT_EQ(::recv(there_.get(), block.data(), block.size(), MSG_WAITALL), 4096) << i;
      for (size_t k = 0; k < block.size(); ++k)
        ASSERT_EQ(block[k], static_cast<char>(i * 7 + k)) << i;
    }
    char more = 0;
    EXPECT_EQ(::recv(there_.get(), &more, 1, 0), 0);
  }

  UniqueFd here_, there_, cut_fd_;
  std::mutex mutex_;
  bool down_ = false;
  int connected_ = 0;
  bool source_well_ = false, destination_well_ = false;
  std::unique_ptr<LastingPump> source_, destination_;
  std::thread first_, second_;
};

TEST_F(LastingPumpTest, CarriesBothWaysUntilBothHaveEnded) {
  start();
  std::thread sending([&] { send_all(8 << 20, 0); });
  expect_all(8 << 20);
  sending.join();
  ASSERT_EQ(::send(there_.get(), "back", 4, 0), 4);
  ::shutdown(there_.get(), SHUT_WR);
  char back[8];
  EXPECT_EQ(::recv(here_.get(), back, 4, MSG_WAITALL), 4);
  EXPECT_EQ(::recv(here_.get(), back, 4, 0), 0);
  join();
  EXPECT_TRUE(source_well_);
  EXPECT_EQ(connected_, 1);
}

TEST_F(LastingPumpTest, LosesNothingWhenTheConnectionBreaks) {
  source_->keep();
  destination_->keep();
  start();
  std::thread sending([&] { send_all(32 << 20, 9); });
  expect_all(32 << 20);
  sending.join();
  EXPECT_GT(connected_, 3);
  ::shutdown(there_.get(), SHUT_WR);
  char none = 0;
  EXPECT_EQ(::recv(here_.get(), &none, 1, 0), 0);
  join();
  EXPECT_TRUE(source_well_);
}

TEST_F(LastingPumpTest, WaitsWhileThereIsNoConnection) {
  source_->keep();
  destination_->keep();
  start();
  ASSERT_EQ(::send(here_.get(), "a", 1, 0), 1);
  char byte = 0;
  ASSERT_EQ(::recv(there_.get(), &byte, 1, 0), 1);
  cut(true);
  ASSERT_EQ(::send(here_.get(), "b", 1, 0), 1);
  for (const Deadline deadline = Deadline::in(absl::Seconds(10)); source_->connected();) {
    ASSERT_FALSE(deadline.passed());
    ::usleep(1000);
  }
  EXPECT_EQ(::recv(there_.get(), &byte, 1, MSG_DONTWAIT), -1);
  cut(false);
  ASSERT_EQ(::recv(there_.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'b');
  source_->stop();
  join();
}

TEST_F(LastingPumpTest, EndsWithTheConnectionUnlessItIsToBeKept) {
  start();
  ASSERT_EQ(::send(here_.get(), "a", 1, 0), 1);
  char byte = 0;
  ASSERT_EQ(::recv(there_.get(), &byte, 1, 0), 1);
  cut(true);
  join();
  EXPECT_FALSE(source_well_);
  EXPECT_EQ(::recv(here_.get(), &byte, 1, 0), 0) << "the local end is told";
}

}  // namespace
}  // namespace godwit::vm
