#include "network/port.h"

#include <fcntl.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "network/lab_fixture.h"

namespace godwit::network {
namespace {

class PortTest : public LabTest {
 protected:
  void SetUp() override {
    LabTest::SetUp();
    make_lab(false);
    capsule_ = must(create_anonymous_netns());
    client_ = must(open_named_netns(lab_->client_netns()));
    port_.emplace(make_port(1, capsule_.get()));
  }
  void TearDown() override {
    remove_port(1);
    port_.reset();
    LabTest::TearDown();
  }
  void running_with_hold() {
    {
      const NetnsScope node = on_node(1);
      must(port_->prepare_hold());
      must(port_->prepare_announce());
    }
    must(port_->set_phase(PortPhase::kSourceRunning));
  }
  UniqueFd capsule_;
  UniqueFd client_;
  std::optional<Port> port_;
};

TEST_F(PortTest, NewPortIsClosedAndSilent) {
  Capture capture(lab_->switch_netns(), "n1");
  const UniqueFd server = bound_socket(capsule_.get(), SOCK_DGRAM, lab_->service_address(0).ip, 9);
  const UniqueFd client =
      connected_socket(client_.get(), SOCK_DGRAM, lab_->service_address(0).ip, 9);
  ::send(client.get(), "x", 1, 0);  // its ARP request meets the gate
  EXPECT_FALSE(readable(server.get(), 100));
  EXPECT_GE(port_->gate().counters().dropped_towards, 1u);
  EXPECT_TRUE(capture.from(port_->spec().mac).empty());
  EXPECT_EQ(port_->gate().counters().held, 0u);

  GW_ASSERT_OK(port_->set_phase(PortPhase::kSourceRunning));
  EXPECT_TRUE(readable(server.get(), 5000));
}

TEST_F(PortTest, CapsuleHasItsAddressesAndMac) {
  const NetnsScope inside = must(NetnsScope::enter(capsule_.get()));
  Netlink netlink = must(Netlink::open());
  const LinkState eth0 = must(netlink.link_state("eth0"));
  EXPECT_EQ(eth0.mac, port_->spec().mac);
  EXPECT_TRUE(eth0.up);
  const std::vector<IpPrefix> addresses = must(netlink.addresses(eth0.ifindex));
  const std::set<IpPrefix> have(addresses.begin(), addresses.end());
  EXPECT_EQ(have, (std::set<IpPrefix>{lab_->service_address(0), lab_->service_address6(0),
                                      link_local_of(eth0.mac)}));
}

TEST_F(PortTest, FrozenPhaseNeedsAHold) {
  GW_ASSERT_OK(port_->set_phase(PortPhase::kSourceRunning));
  EXPECT_EQ(port_->set_phase(PortPhase::kSourceFrozen).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(port_->gate().towards(), GateMode::kPass);
  EXPECT_EQ(port_->set_phase(PortPhase::kRolledBack).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PortTest, HoldLosesNothingAndKeepsOrder) {
  running_with_hold();
  constexpr uint32_t kCount = 3000;
  const IpAddress ip = lab_->service_address(0).ip;
  const UniqueFd server = bound_socket(capsule_.get(), SOCK_DGRAM, ip, 9);
  const int size = 64 << 20;
  ::setsockopt(server.get(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
  const UniqueFd client = connected_socket(client_.get(), SOCK_DGRAM, ip, 9);
  // Once before the freeze: while addresses are resolved the client's kernel keeps 100 frames only.
  const uint32_t first = 0;
  ASSERT_EQ(::send(client.get(), &first, sizeof first, 0), 4);
  ASSERT_TRUE(readable(server.get(), 5000));
  std::atomic<uint32_t> sent{1};
  std::thread sender([&] {
    for (uint32_t i = 1; i < kCount; ++i) {
      ASSERT_EQ(::send(client.get(), &i, sizeof i, 0), 4);
      sent = i + 1;
    }
  });
  uint32_t expected = 0;
  size_t replayed = 0;
  while (sent < kCount) {
    GW_ASSERT_OK(port_->set_phase(PortPhase::kSourceFrozen));
    for (const uint32_t until = std::min(sent + 200, kCount); sent < until;) ::sched_yield();
    const Replay replay = must(port_->replay_and_open());
    EXPECT_TRUE(replay.in_order);
    replayed += replay.frames;
  }
  sender.join();
  (void)must(port_->settle(absl::Milliseconds(5)));
  uint32_t out_of_order = 0;
  uint32_t got = 0;
  for (uint32_t value = 0; readable(server.get(), got == kCount ? 0 : 1000); ++got) {
    ASSERT_EQ(::recv(server.get(), &value, sizeof value, 0), 4);
    if (value != expected) ++out_of_order;
    expected = value + 1;
  }
  EXPECT_EQ(got, kCount);
  EXPECT_EQ(out_of_order, 0u);
  EXPECT_GT(replayed, 100u);
}

// A connection with bulk data across freezes that roll back: the kernel's large (GSO) frames are
// held as frames that fit the wire, nothing is lost, nothing is reset.
TEST_F(PortTest, BulkTcpSurvivesFreezes) {
  running_with_hold();
  Capture from_node(lab_->switch_netns(), "n1");
  const IpAddress ip = lab_->service_address(0).ip;
  const UniqueFd listener = bound_socket(capsule_.get(), SOCK_STREAM, ip, 9);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  UniqueFd client = connected_socket(client_.get(), SOCK_STREAM, ip, 9);
  const UniqueFd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(server);
  constexpr size_t kBytes = size_t{32} << 20;
  constexpr size_t kFreezes = 8;
  std::atomic<size_t> sent{0};
  std::atomic<size_t> freezes{0};
  std::thread sender([&] {
    std::vector<uint32_t> block(16384);
    for (uint32_t at = 0; sent < kBytes;) {
      while (freezes < kFreezes && sent >= freezes * kBytes / kFreezes) ::sched_yield();
      for (uint32_t& word : block) word = at++;
      ASSERT_EQ(::send(client.get(), block.data(), 65536, 0), 65536);
      sent += 65536;
    }
  });
  // A freeze ends when it has held something, however late the sender gets the CPU.
  std::atomic<uint64_t> empty_freezes{0};
  std::thread freezer([&] {
    while (freezes < kFreezes) {
      while (sent < freezes * kBytes / kFreezes) ::sched_yield();
      const uint64_t before = port_->gate().counters().held;
      must(port_->set_phase(PortPhase::kSourceFrozen));
      ++freezes;
      const auto held = [&] { return port_->gate().counters().held > before; };
      for (int waited = 0; !held() && waited < 5000; ++waited) ::poll(nullptr, 0, 1);
      empty_freezes += held() ? 0 : 1;
      must(port_->set_phase(PortPhase::kRolledBack));
    }
  });
  size_t wrong = 0;
  size_t words = 0;
  std::vector<uint32_t> in(16384);
  while (words * 4 < kBytes && readable(server.get(), 10000)) {
    const ssize_t got = ::recv(server.get(), in.data(), 65536, MSG_WAITALL);
    ASSERT_GT(got, 0);
    for (size_t i = 0; i < static_cast<size_t>(got) / 4; ++i, ++words) wrong += in[i] != words;
  }
  sender.join();
  freezer.join();
  EXPECT_EQ(words * 4, kBytes);
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(empty_freezes, 0u);
  EXPECT_EQ(resets_among(from_node.from(port_->spec().mac)), 0u);
}

TEST_F(PortTest, GateAndHoldOutliveTheirMaker) {
  running_with_hold();
  const IpAddress ip = lab_->service_address(0).ip;
  const UniqueFd server = bound_socket(capsule_.get(), SOCK_DGRAM, ip, 9);
  const UniqueFd client = connected_socket(client_.get(), SOCK_DGRAM, ip, 9);
  ::send(client.get(), "a", 1, 0);
  ASSERT_TRUE(readable(server.get(), 5000));
  // A mover that freezes the port and is killed. This process has a copy of the hold.
  const UniqueFd kept(::fcntl(port_->hold_fd(), F_DUPFD_CLOEXEC, 0));
  const pid_t mover = ::fork();
  if (mover == 0) {
    const bool good = port_->set_phase(PortPhase::kSourceFrozen).ok();
    ::kill(::getpid(), good ? SIGKILL : SIGABRT);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(mover, &status, 0), mover);
  ASSERT_EQ(WTERMSIG(status), SIGKILL);
  port_.reset();  // every descriptor of the gate, but not the hold's copy
  ::send(client.get(), "b", 1, 0);
  char buffer[4];
  ASSERT_EQ(::recv(server.get(), buffer, sizeof buffer, 0), 1);
  EXPECT_FALSE(readable(server.get(), 100)) << "the gate opened when its maker died";

  const NetnsScope node = on_node(1);
  port_.emplace(must(Port::open(port_spec(1, capsule_.get()))));
  EXPECT_EQ(port_->gate().towards(), GateMode::kHold);
  EXPECT_EQ(port_->gate().from(), GateMode::kDrop);
  GW_ASSERT_OK(port_->adopt_hold(UniqueFd(::dup(kept.get()))));
  GW_ASSERT_OK(port_->prepare_announce());
  GW_ASSERT_OK(port_->set_phase(PortPhase::kRolledBack));
  ASSERT_TRUE(readable(server.get(), 1000)) << "a held frame was lost";
  EXPECT_EQ(::recv(server.get(), buffer, sizeof buffer, 0), 1);
  EXPECT_EQ(buffer[0], 'b');
}

TEST_F(PortTest, HoldIsTakenOverWithoutItsDescriptor) {
  running_with_hold();
  GW_ASSERT_OK(port_->set_phase(PortPhase::kSourceFrozen));
  port_.reset();
  const NetnsScope node = on_node(1);
  port_.emplace(must(Port::open(port_spec(1, capsule_.get()))));
  GW_ASSERT_OK(port_->prepare_hold());  // frames between are lost, later ones are held again
  const UniqueFd client =
      connected_socket(client_.get(), SOCK_DGRAM, lab_->service_address(0).ip, 9);
  ::send(client.get(), "b", 1, 0);
  ASSERT_TRUE(readable(port_->hold_fd(), 1000));
  GW_ASSERT_OK(port_->set_phase(PortPhase::kActive));
  GW_ASSERT_OK(port_->release_hold());
  GW_ASSERT_OK(port_->release_hold());
  Netlink netlink = must(Netlink::open());
  EXPECT_EQ(netlink.ifindex_of(Port::hold_interface("echo")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(PortTest, SecondPortOfAServiceIsRefusedAndHarmless) {
  const NetnsScope node = on_node(1);
  const UniqueFd other = must(create_anonymous_netns());
  const auto second = Port::create(port_spec(1, other.get()));
  EXPECT_EQ(errno_of(second.status()), EEXIST);
  EXPECT_TRUE(Port::open(port_spec(1, capsule_.get())).ok());
}

TEST_F(PortTest, FailedCreationLeavesNothing) {
  const NetnsScope node = on_node(1);
  PortSpec spec = port_spec(1, must(create_anonymous_netns()).get());
  spec.service = "unlucky";
  spec.pin_dir = "/proc/1/fdinfo/none";  // nothing can be made there
  spec.capsule_netns = capsule_.get();   // has an eth0 already
  EXPECT_FALSE(Port::create(spec).ok());
  const UniqueFd other = must(create_anonymous_netns());
  spec.capsule_netns = other.get();
  EXPECT_FALSE(Port::create(spec).ok());
  Netlink netlink = must(Netlink::open());
  EXPECT_FALSE(netlink.ifindex_of(Port::node_interface("unlucky")).ok());
}

TEST_F(PortTest, FramesFromOutsideAreChecked) {
  Frames frames;
  frames.sizes = {100, 4000000000u};
  frames.bytes = std::string(200, 'x');
  EXPECT_FALSE(port_->inject(frames).ok());
  frames.sizes = {4, 196};
  EXPECT_FALSE(port_->inject(frames).ok());
}

TEST_F(PortTest, NeighboursAreCarried) {
  const IpAddress client_ip = lab_->client_address().ip;
  const MacAddress mac = mac_from_seed("client");
  GW_ASSERT_OK(port_->set_neighbours({{0, client_ip, mac, 2}}));
  const auto known = must(port_->neighbours());
  ASSERT_EQ(known.size(), 1u);
  EXPECT_EQ(known[0].ip, client_ip);
  EXPECT_EQ(known[0].mac, mac);
}

}  // namespace
}  // namespace godwit::network
