#include "migration/peer.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <thread>

#include "tls/certificates.h"

namespace godwit::migration {
namespace {

const std::string kToken(32, 't');
const std::string kOther(32, 'x');

Deadline soon() { return Deadline::in(absl::Seconds(10)); }

// With and without TLS: the token's handshake is the same.
class PeerTest : public ::testing::TestWithParam<bool> {
 protected:
  PeerTest() : authority_(*tls::make_authority("test")), n1_(context("n1")), n2_(context("n2")) {
    ::signal(SIGPIPE, SIG_IGN);
  }

  std::shared_ptr<const tls::Context> context(const std::string& node) const {
    if (!GetParam()) return nullptr;
    const tls::Identity identity{authority_.certificate_pem,
                                 *tls::issue_certificate(authority_, node)};
    return std::make_shared<const tls::Context>(*tls::Context::make(identity));
  }
  // Of the source, n1, and of the destination, n2.
  Terms source(const std::string& token = kToken) const {
    return {.token = token, .node = "n2", .tls = n1_};
  }
  Terms destination(const std::string& token = kToken) const {
    return {.token = token, .node = "n1", .tls = n2_};
  }

  struct Met {
    absl::StatusOr<ChannelPtr> source;
    absl::StatusOr<Accepted> accepted;
  };
  static Met meet(const Terms& source, const Terms& destination,
                  absl::Duration patience = absl::Seconds(10)) {
    Met met{absl::UnknownError(""), absl::UnknownError("")};
    auto listener = listen_on("127.0.0.1");
    EXPECT_TRUE(listener.ok()) << listener.status();
    std::thread accepting([&] {
      met.accepted = Acceptor(listener->fd.get(), destination).next(Deadline::in(patience));
    });
    met.source = connect_to_peer("127.0.0.1", listener->port, source, Purpose::kMessages, soon());
    accepting.join();
    return met;
  }
  // Both ends of a connection for messages.
  void meet(ChannelPtr& near, ChannelPtr& far) const {
    Met met = meet(source(), destination());
    ASSERT_TRUE(met.source.ok()) << met.source.status();
    ASSERT_TRUE(met.accepted.ok()) << met.accepted.status();
    EXPECT_EQ(met.accepted->purpose, Purpose::kMessages);
    near = *std::move(met.source);
    far = std::move(met.accepted->channel);
    EXPECT_EQ(near->encrypted(), GetParam());
    EXPECT_EQ(far->encrypted(), GetParam());
  }

  tls::Certificate authority_;
  std::shared_ptr<const tls::Context> n1_, n2_;
};
INSTANTIATE_TEST_SUITE_P(Peer, PeerTest, ::testing::Bool());

TEST_P(PeerTest, BothSidesWithTheTokenMeetAndTalk) {
  ChannelPtr ends[2];
  ASSERT_NO_FATAL_FAILURE(meet(ends[0], ends[1]));
  PeerMessages near(std::move(ends[0]));
  PeerMessages far(std::move(ends[1]));
  PeerMessage message;
  message.set_failed("because");
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(near.send(message).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(far.readable());
    const auto received = far.receive(soon());
    ASSERT_TRUE(received.ok()) << received.status();
    EXPECT_EQ(received->failed(), "because");
  }
  EXPECT_FALSE(far.readable());
}

// Although nobody reads it, and although answers went the other way: the kernel would wait 40 ms
// for another one to send the acknowledgement with.
TEST_P(PeerTest, WhatIsSentIsAcknowledgedAtOnce) {
  ChannelPtr ends[2];
  ASSERT_NO_FATAL_FAILURE(meet(ends[0], ends[1]));
  PeerMessages near(std::move(ends[0]));
  PeerMessages far(std::move(ends[1]));
  PeerMessage question, answer;
  question.set_are_you_there(true);
  answer.set_still_here(true);
  int late = 0;  // a delayed acknowledgement takes 40 ms; a busy machine may do so now and then
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(near.send(question).ok());
    const Deadline at_once = Deadline::in(absl::Milliseconds(30));
    const Deadline deadline = Deadline::in(absl::Seconds(5));
    while (!near.acknowledged()) ASSERT_FALSE(deadline.passed()) << "message " << i;
    if (at_once.passed()) ++late;
    EXPECT_FALSE(near.readable());
    EXPECT_TRUE(far.readable());
    ASSERT_TRUE(far.receive(soon()).ok());
    ASSERT_TRUE(far.send(answer).ok());
    ASSERT_TRUE(near.receive(soon()).ok());
  }
  EXPECT_LT(late, 6);
}

TEST_P(PeerTest, AStrangerGetsNothingAndTheRightOneStillComesThrough) {
  auto listener = listen_on("127.0.0.1");
  ASSERT_TRUE(listener.ok()) << listener.status();
  absl::StatusOr<Accepted> accepted = absl::UnknownError("");
  std::thread accepting(
      [&] { accepted = Acceptor(listener->fd.get(), destination()).next(soon()); });
  EXPECT_FALSE(
      connect_to_peer("127.0.0.1", listener->port, source(kOther), Purpose::kStream, soon()).ok());
  // Of a peer without TLS where there is some, or the other way round: neither has anything to say
  // to the other, and the one that listens ends it.
  Terms otherwise = source();
  otherwise.tls = GetParam() ? nullptr : [this] {
    const tls::Identity n1{authority_.certificate_pem, *tls::issue_certificate(authority_, "n1")};
    return std::make_shared<const tls::Context>(*tls::Context::make(n1));
  }();
  EXPECT_FALSE(
      connect_to_peer("127.0.0.1", listener->port, otherwise, Purpose::kStream, soon()).ok());
  const auto right =
      connect_to_peer("127.0.0.1", listener->port, source(), Purpose::kStream, soon());
  accepting.join();
  EXPECT_TRUE(right.ok()) << right.status();
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_EQ(accepted->purpose, Purpose::kStream);
}

TEST_P(PeerTest, AnImpostorDestinationIsNoticed) {
  const Met met = meet(source(), destination(kOther), absl::Milliseconds(500));
  EXPECT_EQ(met.source.status().code(), absl::StatusCode::kUnauthenticated) << met.source.status();
  EXPECT_FALSE(met.accepted.ok());
}

// It knows the token, and has a certificate of the cluster: of another node.
TEST_P(PeerTest, AnotherNodeIsNotTheOneThatIsMeant) {
  if (!GetParam()) return;
  const auto n3 = context("n3");
  Terms impostor = destination();
  impostor.tls = n3;
  const Met as_destination = meet(source(), impostor, absl::Milliseconds(500));
  EXPECT_EQ(as_destination.source.status().code(), absl::StatusCode::kUnauthenticated)
      << as_destination.source.status();
  EXPECT_FALSE(as_destination.accepted.ok());
  impostor = source();
  impostor.tls = n3;
  const Met as_source = meet(impostor, destination(), absl::Milliseconds(500));
  EXPECT_FALSE(as_source.source.ok());
  EXPECT_FALSE(as_source.accepted.ok());
}

// Bytes that a source once said say nothing on a connection of later.
TEST_P(PeerTest, ARecordedConversationIsOfNoUse) {
  auto listener = listen_on("127.0.0.1"), between = listen_on("127.0.0.1");
  ASSERT_TRUE(listener.ok() && between.ok());
  std::string said;
  std::thread relay([&] {
    pollfd waiting{between->fd.get(), POLLIN, 0};
    ::poll(&waiting, 1, 10'000);
    const UniqueFd near(::accept4(between->fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const UniqueFd far(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(listener->port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(far.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    for (;;) {
      std::array<pollfd, 2> both{pollfd{near.get(), POLLIN, 0}, pollfd{far.get(), POLLIN, 0}};
      if (::poll(both.data(), both.size(), 10'000) <= 0) return;
      for (int i = 0; i < 2; ++i) {
        if (both.at(static_cast<size_t>(i)).revents == 0) continue;
        char bytes[4096];
        const ssize_t n = ::recv(both.at(static_cast<size_t>(i)).fd, bytes, sizeof bytes, 0);
        if (n <= 0) return;
        if (i == 0) said.append(bytes, static_cast<size_t>(n));
        ::send(i == 0 ? far.get() : near.get(), bytes, static_cast<size_t>(n), MSG_NOSIGNAL);
      }
    }
  });
  {
    absl::StatusOr<Accepted> accepted = absl::UnknownError("");
    std::thread accepting(
        [&] { accepted = Acceptor(listener->fd.get(), destination()).next(soon()); });
    const auto right =
        connect_to_peer("127.0.0.1", between->port, source(), Purpose::kStream, soon());
    accepting.join();
    EXPECT_TRUE(right.ok() && accepted.ok());
  }
  relay.join();
  ASSERT_GT(said.size(), 70U);
  std::thread replay([&] {
    const UniqueFd again(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(listener->port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(again.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    ::send(again.get(), said.data(), said.size(), MSG_NOSIGNAL);
    char bytes[4096];
    while (::recv(again.get(), bytes, sizeof bytes, 0) > 0) {
    }
  });
  EXPECT_FALSE(
      Acceptor(listener->fd.get(), destination()).next(Deadline::in(absl::Seconds(1))).ok());
  replay.join();
}

TEST(PeerMessagesTest, AnAbsurdLengthIsRefused) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  PeerMessages reader{std::make_unique<tls::Channel>(UniqueFd(ends[0]))};
  const UniqueFd writer(ends[1]);
  const uint32_t length = 0xfffffff0;
  ASSERT_EQ(::send(writer.get(), &length, 4, 0), 4);
  EXPECT_EQ(reader.receive(soon()).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::migration
