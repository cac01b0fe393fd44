#include <gtest/gtest.h>
#include <openssl/err.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "tls/certificates.h"
#include "tls/channel.h"
#include "tls/context.h"
#include "tls/handshake.h"
#include "tls/record.h"

namespace godwit::tls {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(10);
Deadline soon() { return Deadline::in(kPatience); }

struct Ends {
  UniqueFd near, far;
};
Ends socket_pair(int flags = SOCK_NONBLOCK) {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::string text_of(size_t bytes, unsigned seed = 1) {
  std::string text(bytes, '\0');
  for (char& each : text) {
    seed = seed * 1664525 + 1013904223;
    each = static_cast<char>(seed >> 24);
  }
  return text;
}

// Until it is done or has failed.
absl::Status finish(Handshake& handshake, int fd) {
  const Deadline deadline = soon();
  while (!deadline.passed()) {
    GW_ASSIGN_OR_RETURN(const bool done, handshake.step());
    if (done) return absl::OkStatus();
    pollfd one{fd, static_cast<short>(handshake.wants_write() ? POLLOUT : POLLIN), 0};
    ::poll(&one, 1, deadline.remaining_ms());
  }
  return absl::DeadlineExceededError("handshake");
}

class TlsTest : public ::testing::Test {
 protected:
  TlsTest()
      : authority_(*make_authority("test")),
        n1_(*Context::make(identity(authority_, "n1"))),
        n2_(*Context::make(identity(authority_, "n2"))) {
    ::signal(SIGPIPE, SIG_IGN);
  }

  static Identity identity(const Certificate& authority, const std::string& node) {
    return {authority.certificate_pem, *issue_certificate(authority, node)};
  }
  struct Met {
    absl::StatusOr<std::unique_ptr<Channel>> connected;
    absl::StatusOr<std::unique_ptr<Channel>> accepted;
  };
  static absl::StatusOr<std::unique_ptr<Channel>> shake(const Context& own, Side side, UniqueFd fd,
                                                        const std::string& peer) {
    GW_ASSIGN_OR_RETURN(const auto handshake, Handshake::begin(own, side, fd.get(), peer));
    GW_RETURN_IF_ERROR(finish(*handshake, fd.get()));
    GW_ASSIGN_OR_RETURN(const Session session, handshake->session());
    return std::make_unique<Channel>(std::move(fd), session);
  }
  static Met meet(const Context& connects, const std::string& means, const Context& accepts,
                  const std::string& expects) {
    Ends ends = socket_pair();
    Met met{absl::UnknownError(""), absl::UnknownError("")};
    std::thread accepting(
        [&] { met.accepted = shake(accepts, Side::kAccepted, std::move(ends.far), expects); });
    met.connected = shake(connects, Side::kConnected, std::move(ends.near), means);
    accepting.join();
    return met;
  }
  void meet(std::unique_ptr<Channel>& near, std::unique_ptr<Channel>& far) {
    Met met = meet(n1_, "n2", n2_, "n1");
    ASSERT_TRUE(met.connected.ok()) << met.connected.status();
    ASSERT_TRUE(met.accepted.ok()) << met.accepted.status();
    near = *std::move(met.connected);
    far = *std::move(met.accepted);
  }
  // As `from` sends it and nobody has read it yet.
  static std::string on_the_wire(Channel& from, Channel& to, std::string_view text) {
    EXPECT_TRUE(from.write_all(text, kPatience).ok());
    std::string bytes(text.size() + 4096, '\0');
    const ssize_t n = ::recv(to.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
    return bytes;
  }
  static void inject(Channel& from, std::string_view bytes) {
    ASSERT_EQ(::send(from.fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  static int read_errno(Channel& from) {
    std::string text(4096, '\0');
    const iovec room{text.data(), text.size()};
    const ssize_t n = from.readv({&room, 1});
    return n < 0 ? errno : n == 0 ? 0 : -1;
  }

  Certificate authority_;
  Context n1_, n2_;
};

TEST_F(TlsTest, WhatIsWrittenIsReadInPiecesOfAnySize) {
  for (const size_t ahead : {size_t{0}, size_t{100'000}}) {
    std::unique_ptr<Channel> near, far;
    ASSERT_NO_FATAL_FAILURE(meet(near, far));
    if (ahead > 0) {
      near->write_ahead(ahead);
      far->read_ahead(ahead);
    }
    near->update_key_after(7);  // some generations
    const std::string sent = text_of(3'000'000);
    std::thread writing([&] {
      size_t at = 0;
      for (size_t size = 1; at < sent.size(); size = size * 3 % 100'003) {
        const size_t some = std::min(size, sent.size() - at), half = some / 2;
        char* p = const_cast<char*>(sent.data()) + at;
        const iovec parts[] = {{p, half}, {p + half, 0}, {p + half, some - half}};
        ASSERT_TRUE(near->write_all(parts, kPatience).ok());
        at += some;
      }
    });
    std::string got;
    for (size_t size = 1; got.size() < sent.size(); size = size * 5 % 70'001) {
      std::string piece(std::min(size, sent.size() - got.size()), '\0');
      ASSERT_TRUE(far->read_all(std::span(piece.data(), piece.size()), soon()).ok());
      got += piece;
    }
    writing.join();
    EXPECT_TRUE(got == sent);
    EXPECT_FALSE(far->unread());
    EXPECT_GT(near->wire_sent(), sent.size());
    near.reset();
    EXPECT_EQ(read_errno(*far), 0) << "its end was said";
  }
}

// The other end is OpenSSL from the first byte to the last: these are TLS 1.3's records.
TEST_F(TlsTest, OpenSslUnderstandsIt) {
  Ends ends = socket_pair(0);
  const std::string there = text_of(1'000'000), back = text_of(500'000, 2);
  std::thread other([&] {
    const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(n2_.get()), &SSL_free);
    SSL_set_fd(ssl.get(), ends.far.get());
    ASSERT_EQ(SSL_accept(ssl.get()), 1) << last_error();
    std::string got(there.size(), '\0');
    for (size_t at = 0; at < got.size();) {
      const int n = SSL_read(ssl.get(), got.data() + at, static_cast<int>(got.size() - at));
      ASSERT_GT(n, 0) << last_error();
      at += static_cast<size_t>(n);
    }
    EXPECT_TRUE(got == there);
    for (const bool first : {true, false}) {
      const auto half = static_cast<int>(back.size() / 2);
      ASSERT_EQ(SSL_write(ssl.get(), back.data() + (first ? 0 : half), half), half);
      if (!first) continue;
      ASSERT_EQ(SSL_key_update(ssl.get(), SSL_KEY_UPDATE_NOT_REQUESTED), 1);
    }
    char none = 0;
    EXPECT_EQ(SSL_read(ssl.get(), &none, 1), 0);
    EXPECT_EQ(SSL_get_error(ssl.get(), 0), SSL_ERROR_ZERO_RETURN);
    SSL_shutdown(ssl.get());
  });
  auto near = shake(n1_, Side::kConnected, std::move(ends.near), "n2");
  ASSERT_TRUE(near.ok()) << near.status();
  (*near)->update_key_after(20);
  EXPECT_TRUE((*near)->write_all(there, kPatience).ok());
  std::string got(back.size(), '\0');
  EXPECT_TRUE((*near)->read_all(std::span(got.data(), got.size()), soon()).ok());
  EXPECT_TRUE(got == back);
  (*near)->end();
  char none = 0;
  EXPECT_FALSE((*near)->read_all(std::span(&none, 1), soon()).ok());
  EXPECT_EQ(read_errno(**near), 0);
  other.join();
}

TEST_F(TlsTest, AChangedByteIsNoticedWhereverItIs) {
  for (const size_t at : {0U, 1U, 3U, 4U, 5U, 60U, 121U}) {
    std::unique_ptr<Channel> near, far;
    ASSERT_NO_FATAL_FAILURE(meet(near, far));
    std::string bytes = on_the_wire(*near, *far, text_of(100));
    ASSERT_EQ(bytes.size(), 100 + kOverhead);
    bytes.at(at) = static_cast<char>(bytes.at(at) ^ (at == 4 ? 1 : 0x40));
    inject(*near, bytes);
    // A length that says that more is to come: it comes.
    inject(*near, std::string(kMaxRecord, 'x'));
    EXPECT_EQ(read_errno(*far), EBADMSG) << at;
    EXPECT_EQ(read_errno(*far), EBADMSG) << "and stays so";
  }
}

TEST_F(TlsTest, NothingIsTakenTwiceOrOutOfOrderOrFromElsewhere) {
  std::unique_ptr<Channel> near, far, other_near, other_far;
  ASSERT_NO_FATAL_FAILURE(meet(near, far));
  ASSERT_NO_FATAL_FAILURE(meet(other_near, other_far));
  const std::string first = on_the_wire(*near, *far, "first");
  const std::string second = on_the_wire(*near, *far, "second");
  const std::string other = on_the_wire(*other_near, *other_far, "first");
  inject(*near, first);
  std::string got(5, '\0');
  ASSERT_TRUE(far->read_all(std::span(got.data(), got.size()), soon()).ok());
  inject(*near, first);  // once more
  EXPECT_EQ(read_errno(*far), EBADMSG);
  ASSERT_NO_FATAL_FAILURE(meet(near, far));
  on_the_wire(*near, *far, "first");
  inject(*near, on_the_wire(*near, *far, "second"));  // the first one is missing
  EXPECT_EQ(read_errno(*far), EBADMSG);
  inject(*other_near, first);  // recorded on another connection
  EXPECT_EQ(read_errno(*other_far), EBADMSG);
}

TEST_F(TlsTest, AnEndThatNobodySaidIsNoEnd) {
  for (const bool within : {false, true}) {
    std::unique_ptr<Channel> near, far;
    ASSERT_NO_FATAL_FAILURE(meet(near, far));
    if (within) inject(*near, on_the_wire(*near, *far, "some text").substr(0, 12));
    ::shutdown(near->fd(), SHUT_WR);
    EXPECT_EQ(read_errno(*far), ECONNABORTED);
    EXPECT_EQ(Channel::failure(ECONNABORTED, "x").code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(TlsTest, OnlyTheNodeThatIsMeant) {
  const auto stranger = Context::make(identity(*make_authority("test"), "n2"));
  ASSERT_TRUE(stranger.ok());
  for (const Context* accepts : {&*stranger, static_cast<const Context*>(&n1_)}) {
    Met met = meet(n1_, "n2", *accepts, "n1");
    EXPECT_EQ(met.connected.status().code(), absl::StatusCode::kUnauthenticated)
        << met.connected.status();
    EXPECT_FALSE(met.accepted.ok());
  }
  for (const Context* connects : {&*stranger, static_cast<const Context*>(&n2_)}) {
    Met met = meet(*connects, "n2", n2_, "n1");
    EXPECT_FALSE(met.accepted.ok());
    if (connects == &n2_) {
      EXPECT_EQ(met.accepted.status().code(), absl::StatusCode::kUnauthenticated)
          << met.accepted.status();
    }
    // It is told by what it reads first, if it has not seen through the other end itself.
    if (!met.connected.ok()) continue;
    char none = 0;
    EXPECT_FALSE((*met.connected)->read_all(std::span(&none, 1), soon()).ok());
    EXPECT_EQ(read_errno(**met.connected), EACCES);
  }
}

TEST_F(TlsTest, WhoeverSpeaksNoTlsIsNotListenedTo) {
  Ends ends = socket_pair();
  const std::string hello = "GWPEER1" + std::string(40, '\0');
  ASSERT_EQ(::send(ends.near.get(), hello.data(), hello.size(), 0), 47);
  const auto accepted = shake(n2_, Side::kAccepted, std::move(ends.far), "n1");
  EXPECT_EQ(accepted.status().code(), absl::StatusCode::kUnavailable) << accepted.status();
}

TEST_F(TlsTest, AConnectionGoesOnElsewhere) {
  std::unique_ptr<Channel> near, far;
  ASSERT_NO_FATAL_FAILURE(meet(near, far));
  std::string got(5, '\0');
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(near->write_all("there", kPatience).ok());
    ASSERT_TRUE(far->read_all(std::span(got.data(), got.size()), soon()).ok());
    ASSERT_TRUE(far->write_all("again", kPatience).ok());
    ASSERT_TRUE(near->read_all(std::span(got.data(), got.size()), soon()).ok());
    auto handed = std::move(*far).hand_over();
    ASSERT_TRUE(handed.ok()) << handed.status();
    auto taken = Channel::take_over(std::move(handed->fd), handed->session);
    ASSERT_TRUE(taken.ok()) << taken.status();
    far = *std::move(taken);
  }
  EXPECT_FALSE(Channel::take_over(UniqueFd(), "no session").ok());
  // Not in the middle of something.
  inject(*near, on_the_wire(*near, *far, "there").substr(0, 7));
  EXPECT_EQ(read_errno(*far), EAGAIN);
  EXPECT_FALSE(std::move(*far).hand_over().ok());
}

// After a message that was read whole, poll(2) tells the truth.
TEST_F(TlsTest, WithoutReadingAheadNothingIsTakenFromTheSocketEarly) {
  std::unique_ptr<Channel> near, far;
  ASSERT_NO_FATAL_FAILURE(meet(near, far));
  ASSERT_TRUE(near->write_all("first", kPatience).ok());
  ASSERT_TRUE(near->write_all("second", kPatience).ok());
  std::string got(5, '\0');
  ASSERT_TRUE(far->read_all(std::span(got.data(), got.size()), soon()).ok());
  EXPECT_FALSE(far->unread());
  pollfd one{far->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&one, 1, 0), 1);
}

TEST_F(TlsTest, AFullSocketIsNoError) {
  std::unique_ptr<Channel> near, far;
  ASSERT_NO_FATAL_FAILURE(meet(near, far));
  near->write_ahead(1'000'000);
  const std::string text = text_of(1'000'000);
  const iovec all{const_cast<char*>(text.data()), text.size()};
  ssize_t taken = 0;
  size_t sum = 0;
  while ((taken = near->writev({&all, 1})) > 0) sum += static_cast<size_t>(taken);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_TRUE(near->unsent());
  EXPECT_EQ(near->write_all("x", absl::Milliseconds(20)).code(),
            absl::StatusCode::kDeadlineExceeded);
  std::thread reading([&] {
    std::string got(sum, '\0');
    EXPECT_TRUE(far->read_all(std::span(got.data(), got.size()), soon()).ok());
    for (size_t at = 0; at < sum; at += text.size())
      EXPECT_TRUE(std::string_view(got).substr(at, text.size()) == text);
  });
  const Deadline deadline = soon();
  while (near->flush() != 0 && !deadline.passed()) {
    pollfd one{near->fd(), POLLOUT, 0};
    ::poll(&one, 1, deadline.remaining_ms());
  }
  reading.join();
}

TEST(ChannelTest, PlainIsTheSocketItself) {
  Ends ends = socket_pair();
  Channel near(std::move(ends.near));
  auto far = std::make_unique<Channel>(std::move(ends.far));
  ASSERT_TRUE(near.write_all("text", kPatience).ok());
  std::string got(4, '\0');
  ASSERT_TRUE(far->read_all(std::span(got.data(), got.size()), soon()).ok());
  EXPECT_EQ(got, "text");
  EXPECT_EQ(near.wire_sent(), 4U);
  EXPECT_EQ(far->read_all(std::span(got.data(), 1), Deadline::in(absl::Milliseconds(1))).code(),
            absl::StatusCode::kDeadlineExceeded);
  const auto handed = std::move(*far).hand_over();
  ASSERT_TRUE(handed.ok());
  EXPECT_TRUE(handed->session.empty());
}

}  // namespace
}  // namespace godwit::tls
