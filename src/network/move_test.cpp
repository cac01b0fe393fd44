// A capsule's port moves between nodes under traffic, without a program: what a real service does
// is played by two UDP sockets, of which the second takes over what the first had not answered.
#include <atomic>
#include <cstdio>
#include <thread>

#include "network/lab_fixture.h"

namespace godwit::network {
namespace {

constexpr uint16_t kPort = 7;
constexpr uint32_t kGreeting = ~uint32_t{0};

// A datagram with a number every 200 us on one flow, whether or not answers come.
class Client {
 public:
  Client(int netns, const IpAddress& server)
      : socket_(connected_socket(netns, SOCK_DGRAM, server, kPort)), thread_([this] { run(); }) {}
  ~Client() { stop(); }
  void stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }
  uint32_t answered() const { return answered_; }
  uint32_t sent() const { return sent_; }
  uint32_t out_of_order() const { return out_of_order_; }
  int64_t longest_gap_ns() const { return longest_gap_ns_; }
  void reset_gap() { reset_gap_ = true; }

 private:
  void run() {
    int64_t next = monotonic_ns();
    int64_t last = next;
    uint32_t expected = 0;
    // One that does not count, until it is answered: while addresses are resolved kernels drop.
    for (bool known = false; !known && !stopping_;) {
      ::send(socket_.get(), &kGreeting, sizeof kGreeting, 0);
      known = readable(socket_.get(), 1000);
    }
    next = monotonic_ns();
    const auto receive = [&] {
      uint32_t value = 0;
      while (::recv(socket_.get(), &value, sizeof value, MSG_DONTWAIT) == 4) {
        const int64_t now = monotonic_ns();
        if (value == kGreeting) continue;
        if (reset_gap_.exchange(false)) longest_gap_ns_ = 0;
        longest_gap_ns_ = std::max(longest_gap_ns_.load(), now - last);
        last = now;
        if (value != expected) ++out_of_order_;
        expected = value + 1;
        ++answered_;
      }
    };
    while (!stopping_) {
      if (monotonic_ns() >= next) {
        const uint32_t value = sent_;
        ::send(socket_.get(), &value, sizeof value, 0);
        ++sent_;
        // No burst to catch up after a time without the CPU: it would overflow socket buffers.
        next = std::max(next + 200'000, monotonic_ns());
      }
      pollfd waiting{socket_.get(), POLLIN, 0};
      const int64_t left = std::max<int64_t>(next - monotonic_ns(), 0);
      const timespec timeout{0, left};
      ::ppoll(&waiting, 1, &timeout, nullptr);
      receive();
    }
    const Deadline deadline = Deadline::in(absl::Seconds(3));
    while (answered_ < sent_ && !deadline.passed()) {
      readable(socket_.get(), 10);
      receive();
    }
  }

  UniqueFd socket_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> reset_gap_{false};
  std::atomic<uint32_t> sent_{0};
  std::atomic<uint32_t> answered_{0};
  std::atomic<uint32_t> out_of_order_{0};
  std::atomic<int64_t> longest_gap_ns_{0};
  std::thread thread_;
};

// Answers on one socket until it is frozen.
class Service {
 public:
  explicit Service(UniqueFd socket) : socket_(std::move(socket)) {}
  ~Service() { freeze(); }
  void run() {
    stopping_ = false;
    thread_ = std::thread([this] {
      while (!stopping_) {
        if (readable(socket_.get(), 1)) answer(socket_.get());
      }
    });
  }
  void freeze() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }
  // What waits in this one's queue is answered by `other`: the state that moves.
  void hand_over(Service& other) { other.answer(socket_.get()); }

 private:
  void answer(int from) {
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    uint32_t value = 0;
    while (::recvfrom(from, &value, sizeof value, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&peer),
                      &length) == 4) {
      ::sendto(socket_.get(), &value, sizeof value, 0, reinterpret_cast<sockaddr*>(&peer), length);
      length = sizeof peer;
    }
  }
  UniqueFd socket_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

class Spans {
 public:
  void mark(const char* name) {
    const int64_t now = monotonic_ns();
    text_ += fmt::format("{} {:.0f}, ", name, static_cast<double>(now - last_) / 1000);
    last_ = now;
  }
  void restart() { last_ = monotonic_ns(); }
  const std::string& text() const { return text_; }

 private:
  int64_t last_ = monotonic_ns();
  std::string text_;
};

class MoveTest : public LabTest {
 protected:
  // Moves the port from node `from` to node `to` while a client asks, and checks all promises.
  void move(uint32_t from, uint32_t to, const IpAddress& ip) {
    const UniqueFd client_netns = must(open_named_netns(lab_->client_netns()));
    const UniqueFd old_netns = must(create_anonymous_netns());
    Port old_port = make_port(from, old_netns.get());
    Service old_service(bound_socket(old_netns.get(), SOCK_DGRAM, ip, kPort));
    old_service.run();
    must(old_port.set_phase(PortPhase::kSourceRunning));
    Client client(client_netns.get(), ip);
    wait_answers(client, 200);

    // Prepare. Nothing with the capsule's MAC may leave the destination.
    Capture at_destination(lab_->switch_netns(), fmt::format("n{}", to));
    Capture at_source(lab_->switch_netns(), fmt::format("n{}", from));
    UniqueFd new_netns = must(create_anonymous_netns());
    Spans prepare;
    Port new_port = make_port(to, new_netns.get());
    prepare.mark("create");
    {
      const NetnsScope node = on_node(to);
      must(new_port.prepare_hold());
      prepare.mark("hold");
      must(new_port.prepare_announce());
      prepare.mark("announce socket");
    }
    {
      const NetnsScope node = on_node(from);
      must(old_port.prepare_hold());
      must(old_port.prepare_announce());
    }
    must(new_port.set_neighbours(must(old_port.neighbours())));
    must(new_port.set_phase(PortPhase::kDestinationPrepared));
    Service new_service(bound_socket(new_netns.get(), SOCK_DGRAM, ip, kPort));
    wait_answers(client, client.answered() + 500);
    EXPECT_TRUE(at_destination.from(new_port.spec().mac).empty());
    client.reset_gap();

    Spans freeze;
    old_service.freeze();
    freeze.restart();
    must(old_port.set_phase(PortPhase::kSourceFrozen));
    freeze.mark("source frozen");
    must(new_port.set_phase(PortPhase::kDestinationFrozen));
    freeze.mark("announce");
    Frames held;
    (void)must(old_port.drain(held));
    freeze.mark("drain");
    old_service.hand_over(new_service);
    freeze.restart();
    must(new_port.inject(held));
    freeze.mark("inject");
    const Replay replay = must(new_port.replay_and_open());
    freeze.mark("replay and open");
    new_service.run();
    must(old_port.set_phase(PortPhase::kSourceCommitted));
    freeze.mark("source down");
    Frames late;
    (void)must(old_port.drain(late));
    must(new_port.inject(late));
    old_service.hand_over(new_service);
    freeze.restart();
    must(new_port.release_hold());
    freeze.mark("release");
    (void)at_source.from(new_port.spec().mac);
    remove_port(from);
    wait_answers(client, client.answered() + 500);
    client.stop();
    EXPECT_EQ(client.answered(), client.sent());
    EXPECT_EQ(client.out_of_order(), 0u);
    // The emptied end stays silent; at the new one there is no reset either.
    EXPECT_TRUE(at_source.from(new_port.spec().mac).empty());
    EXPECT_EQ(resets_among(at_destination.from(new_port.spec().mac)), 0u);
    std::printf("[us] %s| %sheld %zu + %zu replayed + %zu late of %u; client's gap %.2f ms\n",
                prepare.text().c_str(), freeze.text().c_str(), held.count(), replay.frames,
                late.count(), client.sent(), static_cast<double>(client.longest_gap_ns()) / 1e6);
    remove_port(to);
  }

  void wait_answers(const Client& client, uint32_t count) {
    const Deadline deadline = Deadline::in(absl::Seconds(10));
    while (client.answered() < count) {
      if (deadline.passed()) throw std::runtime_error("the client gets no answers");
      ::poll(nullptr, 0, 1);
    }
  }
};

TEST_F(MoveTest, LanIpv4) {
  make_lab(false);
  for (const uint32_t from : {1u, 2u, 1u}) move(from, 3 - from, lab_->service_address(0).ip);
}

TEST_F(MoveTest, LanIpv6) {
  make_lab(false);
  for (const uint32_t from : {1u, 2u, 1u}) move(from, 3 - from, lab_->service_address6(0).ip);
}

TEST_F(MoveTest, OverlayIpv4) {
  make_lab(true);
  for (const uint32_t from : {1u, 2u}) move(from, 3 - from, lab_->service_address(0).ip);
}

TEST_F(MoveTest, OverlayIpv6) {
  make_lab(true, 3);
  must(lab_->route_client_through(3));  // neither source nor destination
  for (const uint32_t from : {1u, 2u}) move(from, 3 - from, lab_->service_address6(0).ip);
}

}  // namespace
}  // namespace godwit::network
