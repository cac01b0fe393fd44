#include "migration/peer.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

namespace godwit::migration {
namespace {

const std::string kToken(32, 't');
const std::string kOther(32, 'x');

Deadline soon() { return Deadline::in(absl::Seconds(10)); }

// Both ends of a connection for messages.
void meet(UniqueFd& source, UniqueFd& other) {
  auto listener = listen_on("127.0.0.1");
  ASSERT_TRUE(listener.ok()) << listener.status();
  absl::StatusOr<Accepted> accepted = absl::UnknownError("");
  std::thread destination([&] { accepted = Acceptor(listener->fd.get(), kToken).next(soon()); });
  auto fd = connect_to_peer("127.0.0.1", listener->port, kToken, Purpose::kMessages, soon());
  destination.join();
  ASSERT_TRUE(fd.ok()) << fd.status();
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_EQ(accepted->purpose, Purpose::kMessages);
  source = *std::move(fd);
  other = std::move(accepted->fd);
}

TEST(PeerTest, BothSidesWithTheTokenMeetAndTalk) {
  UniqueFd ends[2];
  ASSERT_NO_FATAL_FAILURE(meet(ends[0], ends[1]));
  PeerMessages source(std::move(ends[0]));
  PeerMessages other(std::move(ends[1]));
  PeerMessage message;
  message.set_failed("because");
  ASSERT_TRUE(source.send(message).ok());
  const auto received = other.receive(soon());
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(received->failed(), "because");
}

// Although nobody reads it, and although answers went the other way: the kernel would wait 40 ms
// for another one to send the acknowledgement with.
TEST(PeerTest, WhatIsSentIsAcknowledgedAtOnce) {
  UniqueFd ends[2];
  ASSERT_NO_FATAL_FAILURE(meet(ends[0], ends[1]));
  PeerMessages source(std::move(ends[0]));
  PeerMessages other(std::move(ends[1]));
  PeerMessage question, answer;
  question.set_are_you_there(true);
  answer.set_still_here(true);
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(source.send(question).ok());
    const Deadline deadline = Deadline::in(absl::Milliseconds(30));
    while (!source.acknowledged()) ASSERT_FALSE(deadline.passed()) << "message " << i;
    EXPECT_FALSE(source.readable());
    EXPECT_TRUE(other.readable());
    ASSERT_TRUE(other.receive(soon()).ok());
    ASSERT_TRUE(other.send(answer).ok());
    ASSERT_TRUE(source.receive(soon()).ok());
  }
}

TEST(PeerTest, AStrangerGetsNothingAndTheRightOneStillComesThrough) {
  auto listener = listen_on("127.0.0.1");
  ASSERT_TRUE(listener.ok()) << listener.status();
  absl::StatusOr<Accepted> accepted = absl::UnknownError("");
  std::thread destination([&] { accepted = Acceptor(listener->fd.get(), kToken).next(soon()); });
  const auto stranger =
      connect_to_peer("127.0.0.1", listener->port, kOther, Purpose::kStream, soon());
  EXPECT_FALSE(stranger.ok());
  const auto right = connect_to_peer("127.0.0.1", listener->port, kToken, Purpose::kStream, soon());
  destination.join();
  EXPECT_TRUE(right.ok()) << right.status();
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_EQ(accepted->purpose, Purpose::kStream);
}

TEST(PeerTest, AnImpostorDestinationIsNoticed) {
  auto listener = listen_on("127.0.0.1");
  ASSERT_TRUE(listener.ok()) << listener.status();
  std::thread impostor([&] {
    (void)Acceptor(listener->fd.get(), kOther).next(Deadline::in(absl::Milliseconds(500)));
  });
  const auto fd = connect_to_peer("127.0.0.1", listener->port, kToken, Purpose::kStream, soon());
  EXPECT_FALSE(fd.ok());
  EXPECT_EQ(fd.status().code(), absl::StatusCode::kUnauthenticated) << fd.status();
  impostor.join();
}

TEST(PeerTest, AnAbsurdLengthIsRefused) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  PeerMessages reader{UniqueFd(ends[0])};
  const UniqueFd writer(ends[1]);
  const uint32_t length = 0xfffffff0;
  ASSERT_EQ(::send(writer.get(), &length, 4, 0), 4);
  EXPECT_EQ(reader.receive(soon()).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace godwit::migration
