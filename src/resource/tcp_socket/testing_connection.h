// The fixture of the tests of TCP sockets.
#ifndef GODWIT_RESOURCE_TCP_SOCKET_TESTING_CONNECTION_H_
#define GODWIT_RESOURCE_TCP_SOCKET_TESTING_CONNECTION_H_

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <cstring>

#include "base/clock.h"
#include "resource/socket_options/address.h"
#include "resource/socket_options/options.h"
#include "resource/socket_options/testing_networks.h"
#include "resource/tcp_socket/tcp_socket.h"
#include "resource/tcp_socket/tcp_socket.pb.h"

namespace godwit::resource::testing {
inline constexpr char kMine4[] = "10.9.0.2", kPeer4[] = "10.9.0.1";

inline KernelAddress address(const std::string& ip, int port) {
  InternetAddress text;
  in6_addr bytes{};
  const bool v6 = ip.find(':') != std::string::npos;
  EXPECT_EQ(::inet_pton(v6 ? AF_INET6 : AF_INET, ip.c_str(), &bytes), 1);
  text.set_ip(&bytes, v6 ? 16 : 4);
  text.set_port(static_cast<uint32_t>(port));
  return *decode_address(text, [](auto action) { return action(); });
}

inline std::string pattern(size_t size, int seed) {
  std::string bytes(size, '\0');
  uint32_t x = static_cast<uint32_t>(seed) * 2654435761U + 1;
  for (char& c : bytes) {
    x = x * 1664525 + 1013904223;
    c = static_cast<char>(x >> 24);
  }
  return bytes;
}

// Exactly `size` bytes, or fewer at the end of the stream or of 20 seconds.
inline std::string read_bytes(int fd, size_t size) {
  const Deadline deadline = Deadline::in(absl::Seconds(20));
  std::string got;
  while (got.size() < size && !deadline.passed()) {
    pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&p, 1, deadline.remaining_ms()) <= 0) break;
    char buffer[65536];
    const ssize_t n = ::recv(fd, buffer, std::min(sizeof buffer, size - got.size()), MSG_DONTWAIT);
    if (n == 0) break;
    if (n < 0 && errno != EAGAIN) break;
    if (n > 0) got.append(buffer, static_cast<size_t>(n));
  }
  return got;
}

inline bool wait_until(absl::FunctionRef<bool()> condition) {
  const Deadline deadline = Deadline::in(absl::Seconds(20));
  while (!condition()) {
    if (deadline.passed()) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

inline int tcp_state(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
  return info.tcpi_state;
}

inline int bytes_in(int fd, unsigned long request) {
  int bytes = -1;
  EXPECT_EQ(::ioctl(fd, request, &bytes), 0);
  return bytes;
}

// Knows what an option watch tells.
class WatchedCapture final : public CaptureContext {
 public:
  explicit WatchedCapture(CaptureContext& rest) : rest_(rest) {}
  bool is_final = false;
  bool changed = false;
  bool final() const override { return is_final; }
  uint64_t description_at(ImagePid tgid, int fd) const override {
    return rest_.description_at(tgid, fd);
  }
  std::vector<const OpenFile*> with_inode(dev_t dev, ino_t ino) const override {
    return rest_.with_inode(dev, ino);
  }
  ino_t stdio_inode(int stream) const override { return rest_.stdio_inode(stream); }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return rest_.in_capsule(action);
  }
  HostPid init_pid() const override { return rest_.init_pid(); }
  bool options_changed(uint64_t, uint16_t, uint16_t) const override { return changed; }

 private:
  CaptureContext& rest_;
};

class TcpSocketTest : public ::testing::Test {
 protected:
  UniqueFd listener(const std::string& ip, int port, bool at_source = true) {
    UniqueFd fd = socket_in(at_source ? networks_.source : networks_.destination, ip);
    const int one = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    const KernelAddress a = address(ip, port);
    EXPECT_EQ(::bind(fd.get(), a.get(), a.size), 0) << strerror(errno);
    EXPECT_EQ(::listen(fd.get(), 77), 0);
    return fd;
  }
  UniqueFd socket_in(const Network& network, const std::string& ip) {
    return network.in([&] {
      return UniqueFd(::socket(ip.find(':') != std::string::npos ? AF_INET6 : AF_INET,
                               SOCK_STREAM | SOCK_CLOEXEC, 0));
    });
  }
  // A connection into the capsule: `mine` is the accepted end.
  void connect(const std::string& ip, int port) {
    const UniqueFd listening = listener(ip, port);
    peer_ = socket_in(networks_.peer, ip);
    const KernelAddress to = address(ip, port);
    ASSERT_EQ(::connect(peer_.get(), to.get(), to.size), 0) << strerror(errno);
    mine_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(mine_);
  }

  absl::StatusOr<std::string> capture(int fd) {
    return tcp_socket_kind().capture(open_file(fd), source_);
  }
  TcpSocketState parsed(const std::string& state) {
    TcpSocketState message;
    EXPECT_TRUE(message.ParseFromString(state));
    return message;
  }
  // Early with the state of a round, then with the final one, as the engine does.
  UniqueFd restore(const std::string& early, const std::string& final_state) {
    restore_files_.is_final = false;
    auto fd = tcp_socket_kind().create(1, early, destination_);
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (!fd.ok()) return UniqueFd();
    restore_files_.is_final = true;
    auto updated = tcp_socket_kind().update(fd->get(), early, final_state, destination_);
    EXPECT_TRUE(updated.ok() && *updated) << updated.status();
    return *std::move(fd);
  }
  void finish(int fd, const std::string& state) {
    const absl::Status completed = tcp_socket_kind().complete(fd, state, destination_);
    EXPECT_TRUE(completed.ok()) << completed;
    tracee::Batch batch;
    auto check = tcp_socket_kind().finish(fd, state, {1}, 5, batch, destination_);
    EXPECT_TRUE(check.ok()) << check.status();
  }
  // Moves mine_ to the destination and proves that its state is the same there.
  void move() {
    capture_files_.is_final = false;
    auto early = capture(mine_.get());
    ASSERT_TRUE(early.ok()) << early.status();
    ASSERT_TRUE(networks_.connect_source(false));
    capture_files_.is_final = true;
    auto state = capture(mine_.get());
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = parsed(*state);
    SCOPED_TRACE(tcp_socket_kind().describe(*state));
    UniqueFd there = restore(*early, *state);
    ASSERT_TRUE(there);
    finish(there.get(), *state);
    // Again, and compared: only clocks have moved on, and what was unsent may now be sent.
    auto again = capture(there.get());
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_TRUE(tcp_end_capture(there.get()).ok());
    TcpSocketState first = state_, second = parsed(*again);
    for (TcpSocketState* s : {&first, &second}) {
      s->mutable_connection()->clear_timestamp_offset();
      s->mutable_connection()->clear_unsent();
      s->mutable_connection()->clear_round_trip_us();
      s->mutable_connection()->clear_fin_unsent();
      s->mutable_common()->clear_status_flags();
    }
    EXPECT_TRUE(first.connection().receive_queue() == second.connection().receive_queue());
    EXPECT_TRUE(first.connection().send_queue() == second.connection().send_queue());
    for (TcpSocketState* s : {&first, &second}) {
      s->mutable_connection()->clear_receive_queue();
      s->mutable_connection()->clear_send_queue();
    }
    // A closed window may have opened meanwhile (the kernel accounts the restored queue anew); it
    // never shrinks (RFC 9293, 3.8.6).
    EXPECT_GE(second.connection().receive_window(), first.connection().receive_window());
    if (first.connection().receive_window() == 0)
      second.mutable_connection()->clear_receive_window();
    // A FIN changes the state before it is acknowledged, with which the window's beginning goes on.
    const bool fin_arrived = state_.state() == TCP_STATE_CLOSE_WAIT ||
                             state_.state() == TCP_STATE_LAST_ACK ||
                             state_.state() == TCP_STATE_CLOSING;
    const uint32_t gone_on =
        second.connection().receive_window_seq() - first.connection().receive_window_seq();
    if (fin_arrived && gone_on == 1)
      first.mutable_connection()->set_receive_window_seq(second.connection().receive_window_seq());
    EXPECT_EQ(first.DebugString(), second.DebugString());
    tcp_info info{};
    socklen_t size = sizeof info;
    ASSERT_EQ(::getsockopt(there.get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    // Lost data is sent again soon, not after the 3 seconds of a connection without history.
    EXPECT_TRUE(info.tcpi_unacked == 0 || info.tcpi_rto < 1'000'000U) << info.tcpi_rto;
    mine_ = std::move(there);  // the source's, in repair mode, closes without a word
    ASSERT_TRUE(networks_.connect_destination(true));
  }
  // What the source sends goes to a station that does not exist; what it gets still arrives.
  void lose_what_is_sent() {
    ASSERT_TRUE(networks_.source.ip(
        "neigh replace 10.9.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
  }
  void expect_flow(size_t bytes = 300000) {
    for (const auto& [from, to] :
         {std::pair(mine_.get(), peer_.get()), std::pair(peer_.get(), mine_.get())}) {
      const std::string sent = pattern(bytes, from);
      std::string got;
      size_t at = 0;
      while (at < sent.size()) {
        const ssize_t n =
            ::send(from, sent.data() + at, std::min<size_t>(20000, sent.size() - at), MSG_NOSIGNAL);
        ASSERT_GT(n, 0) << strerror(errno);
        got += read_bytes(to, static_cast<size_t>(n));
        at += static_cast<size_t>(n);
      }
      ASSERT_EQ(got.size(), sent.size());
      ASSERT_TRUE(got == sent);
    }
  }

  Networks networks_;
  FakeCaptureContext capture_files_;
  FakeRestoreContext restore_files_;
  NetworkCapture source_{networks_.source, capture_files_};
  NetworkRestore destination_{networks_.destination, restore_files_};
  UniqueFd mine_, peer_;
  TcpSocketState state_;
};

}  // namespace godwit::resource::testing

#endif  // GODWIT_RESOURCE_TCP_SOCKET_TESTING_CONNECTION_H_
