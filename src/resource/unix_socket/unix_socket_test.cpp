#include "resource/unix_socket/unix_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <filesystem>

#include "resource/socket_options/options.h"
#include "resource/socket_options/testing_networks.h"
#include "resource/unix_socket/unix_socket.pb.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using ::testing::HasSubstr;
using testing::Network;
using testing::NetworkCapture;
using testing::NetworkRestore;

struct Name {
  explicit Name(const std::string& name) {
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
  sockaddr_un address{};
  socklen_t size;
};

std::string receive(int fd, size_t size = 100) {
  std::string bytes(size, '\0');
  const ssize_t got = ::recv(fd, bytes.data(), size, MSG_DONTWAIT);
  if (got < 0) return fmt::format("error {}", errno);
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

class UnixSocketTest : public ::testing::Test {
 protected:
  UnixSocketTest() {
    char folder[] = "/tmp/godwit_unix_XXXXXX";
    folder_ = ::mkdtemp(folder);
  }
  ~UnixSocketTest() override { std::filesystem::remove_all(folder_); }
  UniqueFd socket(int type) {
    return network_.in([&] { return UniqueFd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0)); });
  }
  void pair(int type) {
    int fds[2];
    ASSERT_EQ(network_.in([&] { return ::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds); }), 0);
    add(fds[0]);
    add(fds[1]);
  }
  void add(int fd) { fds_.emplace_back(fd); }
  UniqueFd listener(const std::string& name, int type = SOCK_STREAM) {
    UniqueFd fd = socket(type);
    const Name address(name);
    EXPECT_EQ(::bind(fd.get(), address.get(), address.size), 0) << strerror(errno);
    EXPECT_EQ(::listen(fd.get(), 9), 0);
    return fd;
  }
  // The description ids are 1, 2, ... in the order of fds_.
  void capture_all() {
    for (size_t i = 0; i < fds_.size(); ++i) files_.add(fds_[i].get(), i + 1);
    states_.clear();
    for (const bool final_epoch : {false, true}) {
      files_.is_final = final_epoch;
      for (size_t i = 0; i < fds_.size(); ++i) {
        auto state = unix_socket_kind().capture(testing::open_file(fds_[i].get(), i + 1), source_);
        ASSERT_TRUE(state.ok()) << state.status();
        if (!final_epoch) early_.push_back(*state);
        if (final_epoch) states_.push_back(*state);
      }
    }
  }
  // Captures all, closes the source's, restores in another namespace, and captures those again.
  void move() {
    capture_all();
    if (HasFatalFailure()) return;
    fds_.clear();
    restore();
    if (HasFatalFailure()) return;
    FakeCaptureContext again_files;
    NetworkCapture again(there_, again_files);
    for (const auto& [id, fd] : made_.made) again_files.add(fd.get(), id);
    for (size_t i = 0; i < states_.size(); ++i) {
      auto state =
          unix_socket_kind().capture(testing::open_file(made_.made[i + 1].get(), i + 1), again);
      ASSERT_TRUE(state.ok()) << state.status();
      UnixSocketState before, after;
      ASSERT_TRUE(before.ParseFromString(states_[i]) && after.ParseFromString(*state));
      before.mutable_common()->clear_status_flags();
      after.mutable_common()->clear_status_flags();
      EXPECT_EQ(before.DebugString(), after.DebugString());
    }
    EXPECT_EQ(made_.stashed_count(), 0U);
  }
  void restore() {
    made_.is_final = false;
    for (size_t i = 0; i < early_.size(); ++i) {
      auto fd = unix_socket_kind().create(i + 1, early_[i], destination_);
      ASSERT_TRUE(fd.ok()) << fd.status();
      made_.made[i + 1] = *std::move(fd);
    }
    made_.is_final = true;
    for (size_t i = 0; i < states_.size(); ++i) {
      auto same = unix_socket_kind().update(fd(i), early_[i], states_[i], destination_);
      ASSERT_TRUE(same.ok() && *same) << same.status();
    }
    for (size_t i = 0; i < states_.size(); ++i) {
      tracee::Batch batch;
      auto check = unix_socket_kind().finish(fd(i), states_[i], {1}, 3, batch, destination_);
      ASSERT_TRUE(check.ok()) << check.status();
    }
  }
  int fd(size_t index) { return made_.made[index + 1].get(); }
  UnixSocketState state(size_t index) {
    UnixSocketState parsed;
    EXPECT_TRUE(parsed.ParseFromString(states_[index]));
    return parsed;
  }

  Network network_, there_;
  FakeCaptureContext files_;
  FakeRestoreContext made_;
  NetworkCapture source_{network_, files_};
  NetworkRestore destination_{there_, made_};
  std::string folder_;
  std::vector<UniqueFd> fds_;
  std::vector<std::string> early_, states_;
};

TEST_F(UnixSocketTest, PairsOfEveryTypeMoveWithTheirMessages) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}) {
    const size_t first = fds_.size();
    pair(type);
    for (const char* text : {"one", "two!", "", "three"})
      ASSERT_GE(::send(fds_[first].get(), text, strlen(text), 0), 0);
    ASSERT_EQ(::send(fds_[first + 1].get(), "back", 4, 0), 4);
  }
  move();
  EXPECT_EQ(receive(fd(1)), "onetwo!three");
  EXPECT_EQ(receive(fd(0)), "back");
  for (const size_t end : {3U, 5U})
    for (const char* text : {"one", "two!", "", "three", "error 11"})
      EXPECT_EQ(receive(fd(end)), text);
  ASSERT_EQ(::send(fd(2), "more", 4, 0), 4);
  EXPECT_EQ(receive(fd(3)), "more");
}

TEST_F(UnixSocketTest, CaptureLeavesTheQueueAndThePeekOffset) {
  pair(SOCK_SEQPACKET);
  ASSERT_EQ(::send(fds_[0].get(), "abc", 3, 0), 3);
  ASSERT_EQ(::send(fds_[0].get(), "defg", 4, 0), 4);
  ASSERT_TRUE(set_int_option(fds_[1].get(), SOL_SOCKET, SO_PEEK_OFF, 3).ok());
  capture_all();
  EXPECT_EQ(*get_int_option(fds_[1].get(), SOL_SOCKET, SO_PEEK_OFF), 3);
  EXPECT_EQ(receive(fds_[1].get()), "abc");
  EXPECT_EQ(receive(fds_[1].get()), "defg");
}

TEST_F(UnixSocketTest, FullQueueMoves) {
  pair(SOCK_STREAM);
  std::string sent;
  const std::string block(3000, 'x');
  while (::send(fds_[0].get(), block.data(), block.size(), MSG_DONTWAIT) > 0) sent += block;
  move();
  std::string got;
  while (got.size() < sent.size()) {
    const std::string part = receive(fd(1), 100000);
    ASSERT_FALSE(part.empty());
    got += part;
  }
  EXPECT_GE(got.size(), sent.size());
}

TEST_F(UnixSocketTest, ShutdownsAndClosedPeersMove) {
  pair(SOCK_STREAM);
  ASSERT_EQ(::send(fds_[0].get(), "end", 3, 0), 3);
  ASSERT_EQ(::send(fds_[1].get(), "go on", 5, 0), 5);
  ASSERT_EQ(::shutdown(fds_[0].get(), SHUT_WR), 0);
  pair(SOCK_STREAM);
  ASSERT_EQ(::send(fds_[3].get(), "bye", 3, 0), 3);
  fds_.pop_back();  // the peer closes
  pair(SOCK_STREAM);
  ASSERT_EQ(::send(fds_[3].get(), "never read", 10, 0), 10);
  fds_.pop_back();
  pair(SOCK_DGRAM);
  ASSERT_EQ(::shutdown(fds_[4].get(), SHUT_WR), 0);
  move();
  EXPECT_EQ(receive(fd(1)), "end");
  EXPECT_EQ(receive(fd(1)), "");
  EXPECT_EQ(receive(fd(0)), "go on");
  EXPECT_EQ(::send(fd(0), "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(::send(fd(1), "y", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(receive(fd(2)), "bye");
  EXPECT_EQ(receive(fd(2)), "");
  EXPECT_EQ(*get_int_option(fd(3), SOL_SOCKET, SO_ERROR), ECONNRESET);
  EXPECT_EQ(::send(fd(4), "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(::send(fd(5), "x", 1, MSG_NOSIGNAL), 1);
}

TEST_F(UnixSocketTest, ListenersAndTheirConnectionsMove) {
  const std::string path = folder_ + "/service.sock", gone = folder_ + "/gone.sock";
  for (const std::string& name : {path, std::string("\0abstract", 9), gone}) {
    fds_.push_back(listener(name));
    const int listening = fds_.back().get();
    UniqueFd client = socket(SOCK_STREAM);
    const Name address(name);
    ASSERT_EQ(network_.in([&] { return ::connect(client.get(), address.get(), address.size); }), 0);
    add(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_EQ(::send(client.get(), "request", 7, 0), 7);
    fds_.push_back(std::move(client));
  }
  ASSERT_EQ(::unlink(gone.c_str()), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  ASSERT_EQ(::chown(path.c_str(), 12, 34), 0);
  // One connection whose listener was closed.
  fds_.erase(fds_.begin() + 6);
  move();
  struct stat file {};
  ASSERT_EQ(::lstat(path.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode, mode_t{S_IFSOCK | 0640});
  EXPECT_EQ(file.st_uid, 12U);
  EXPECT_EQ(file.st_gid, 34U);
  EXPECT_EQ(::lstat(gone.c_str(), &file), -1);
  EXPECT_EQ(state(0).backlog(), 9U);
  EXPECT_EQ(state(1).name(), path);
  EXPECT_EQ(state(2).remote_name(), path);
  EXPECT_EQ(unix_socket_kind().describe(states_[3]), "unix stream @abstract listen");
  for (const size_t accepted : {1U, 4U, 6U}) EXPECT_EQ(receive(fd(accepted)), "request");
  // New clients reach the moved listeners.
  for (const auto& [listening, name] :
       {std::pair(size_t{0}, path), std::pair(size_t{3}, std::string("\0abstract", 9))}) {
    const UniqueFd client = there_.in([] { return UniqueFd(::socket(AF_UNIX, SOCK_STREAM, 0)); });
    const Name address(name);
    EXPECT_EQ(there_.in([&] { return ::connect(client.get(), address.get(), address.size); }), 0)
        << strerror(errno);
    const UniqueFd accepted(::accept4(fd(listening), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_TRUE(accepted);
  }
}

TEST_F(UnixSocketTest, PeerCredentialsOfAnotherUserMove) {
  int fds[2];
  // Of this thread only, as the raw calls are.
  ASSERT_EQ(::syscall(SYS_setresgid, -1, 55, -1), 0);
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 44, -1), 0);
  const int made = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 0, -1), 0);
  ASSERT_EQ(::syscall(SYS_setresgid, -1, 0, -1), 0);
  ASSERT_EQ(made, 0);
  add(fds[0]);
  add(fds[1]);
  // Made in our own network namespace: there it is asked for.
  for (size_t i = 0; i < 2; ++i) files_.add(fds_[i].get(), i + 1);
  for (size_t i = 0; i < 2; ++i)
    states_.push_back(
        *unix_socket_kind().capture(testing::open_file(fds_[i].get(), i + 1), files_));
  early_ = states_;
  restore();
  ucred credentials{};
  socklen_t size = sizeof credentials;
  ASSERT_EQ(::getsockopt(fd(0), SOL_SOCKET, SO_PEERCRED, &credentials, &size), 0);
  EXPECT_EQ(credentials.uid, 44U);
  EXPECT_EQ(credentials.gid, 55U);
  EXPECT_EQ(::geteuid(), 0U);
  EXPECT_EQ(::getegid(), 0U);
}

TEST_F(UnixSocketTest, CredentialsOfMessagesMove) {
  pair(SOCK_STREAM);
  ASSERT_TRUE(set_int_option(fds_[1].get(), SOL_SOCKET, SO_PASSCRED, 1).ok());
  ASSERT_EQ(::send(fds_[0].get(), "mine", 4, 0), 4);
  move();
  EXPECT_EQ(state(1).queue(0).pid(), ::getpid());
  EXPECT_TRUE(state(1).queue(0).has_credentials());
}

TEST_F(UnixSocketTest, NamedDatagramSocketsMove) {
  const std::string path = folder_ + "/log";
  fds_.push_back(socket(SOCK_DGRAM));
  const Name address(path);
  ASSERT_EQ(::bind(fds_[0].get(), address.get(), address.size), 0);
  for (int i = 0; i < 2; ++i) {
    fds_.push_back(socket(SOCK_DGRAM));
    ASSERT_EQ(
        network_.in([&] { return ::connect(fds_.back().get(), address.get(), address.size); }), 0);
    ASSERT_EQ(::send(fds_.back().get(), "line", 4, 0), 4);
  }
  move();
  EXPECT_EQ(receive(fd(0)), "line");
  EXPECT_EQ(receive(fd(0)), "line");
  EXPECT_EQ(receive(fd(0)), "error 11");
  ASSERT_EQ(::send(fd(2), "again", 5, 0), 5);
  EXPECT_EQ(receive(fd(0)), "again");
}

TEST_F(UnixSocketTest, OptionsMove) {
  pair(SOCK_DGRAM);
  const int fd_before = fds_[0].get();
  for (const auto& [name, value] :
       {std::pair(SO_PASSCRED, 1), std::pair(SO_RCVLOWAT, 5), std::pair(SO_PEEK_OFF, 2),
        std::pair(SO_SNDBUF, 40000), std::pair(SO_RCVBUF, 50000), std::pair(SO_TIMESTAMP, 1),
        std::pair(SO_REUSEADDR, 1), std::pair(SO_PASSSEC, 1)})
    ASSERT_TRUE(set_int_option(fd_before, SOL_SOCKET, name, value).ok() || name == SO_PASSSEC);
  const timeval time{2, 500000};
  ASSERT_EQ(::setsockopt(fd_before, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
  ASSERT_EQ(::fchown(fd_before, 5, 6), 0);
  move();
  EXPECT_EQ(*get_int_option(fd(0), SOL_SOCKET, SO_PASSCRED), 1);
  EXPECT_EQ(*get_int_option(fd(0), SOL_SOCKET, SO_RCVBUF), 100000);
}

TEST_F(UnixSocketTest, WhatCannotMoveIsRefusedByName) {
  pair(SOCK_STREAM);
  const OpenFile mine = files_.add(fds_[0].get(), 1);  // the other end is not in the tree
  std::vector<Refusal> refusals;
  ASSERT_TRUE(unix_socket_kind().precheck(mine, source_, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "unix.outside");
  EXPECT_EQ(unix_socket_kind().capture(mine, source_).status().code(),
            absl::StatusCode::kFailedPrecondition);

  const OpenFile other = files_.add(fds_[1].get(), 2);
  ASSERT_TRUE(kernel::send_with_fds(fds_[1].get(), "fd", {0}).ok());
  const auto state = unix_socket_kind().capture(mine, source_);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(message_of(state.status())), HasSubstr("SCM_RIGHTS"));
  EXPECT_EQ(kernel::receive_with_fds(fds_[0].get(), 10)->fds.size(), 1U);  // still there

  fds_.push_back(listener(std::string("\0waiting", 8)));
  const UniqueFd client = socket(SOCK_STREAM);
  const Name address(std::string("\0waiting", 8));
  ASSERT_EQ(network_.in([&] { return ::connect(client.get(), address.get(), address.size); }), 0);
  EXPECT_EQ(unix_socket_kind().capture(files_.add(fds_[2].get(), 3), source_).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(unix_socket_kind().capture(files_.add(client.get(), 4), source_).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace godwit::resource
