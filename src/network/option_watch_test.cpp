#include "network/option_watch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "base/status.h"
#include "network/netns.h"

namespace godwit::network {
namespace {

int set_option(int fd, int level, int name) {
  const int one = 1;
  return ::setsockopt(fd, level, name, &one, sizeof one);
}

// Both ends of a connection inside the calling thread's namespace.
struct Connection {
  UniqueFd client, server;
  uint16_t client_port = 0, server_port = 0;
};

Connection connect_by_loopback() {
  Connection made;
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(listener.get(), any, size), 0) << strerror(errno);
  EXPECT_EQ(::listen(listener.get(), 5), 0);
  EXPECT_EQ(::getsockname(listener.get(), any, &size), 0);
  made.server_port = ntohs(address.sin_port);
  made.client.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(made.client.get(), any, size), 0) << strerror(errno);
  made.server.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(made.server);
  EXPECT_EQ(::getsockname(made.client.get(), any, &size), 0);
  made.client_port = ntohs(address.sin_port);
  return made;
}

class OptionWatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto netns = create_anonymous_netns();
    ASSERT_TRUE(netns.ok()) << netns.status();
    netns_ = *std::move(netns);
    auto scope = NetnsScope::enter(netns_.get());
    ASSERT_TRUE(scope.ok()) << scope.status();
    scope_.emplace(*std::move(scope));
    ASSERT_EQ(std::system("ip link set lo up"), 0);
  }
  void begin() {
    auto socket = OptionWatch::fresh_socket();
    ASSERT_TRUE(socket.ok()) << socket.status();
    auto watch = OptionWatch::begin(*std::move(socket));
    ASSERT_TRUE(watch.ok()) << watch.status();
    watch_ = *std::move(watch);
  }
  bool changed(const Connection& c) const { return watch_->changed(c.server_port, c.client_port); }
  bool changed_client(const Connection& c) const {
    return watch_->changed(c.client_port, c.server_port);
  }

  UniqueFd netns_;
  std::optional<NetnsScope> scope_;
  std::unique_ptr<OptionWatch> watch_;
};

TEST_F(OptionWatchTest, TellsAcceptedAndConnectedSocketsApart) {
  const Connection a = connect_by_loopback(), b = connect_by_loopback();
  begin();
  EXPECT_FALSE(changed(a) || changed_client(a) || changed(b) || changed_client(b));
  ASSERT_EQ(set_option(a.server.get(), IPPROTO_TCP, TCP_NODELAY), 0);
  EXPECT_TRUE(changed(a));
  EXPECT_FALSE(changed_client(a) || changed(b) || changed_client(b));
  ASSERT_EQ(set_option(b.client.get(), SOL_SOCKET, SO_KEEPALIVE), 0);
  EXPECT_TRUE(changed_client(b));
  EXPECT_FALSE(changed(b));
}

TEST_F(OptionWatchTest, ASocketWithoutPeerMayHaveBecomeAny) {
  const Connection a = connect_by_loopback();
  begin();
  const UniqueFd fresh(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(set_option(fresh.get(), SOL_SOCKET, SO_KEEPALIVE), 0);
  EXPECT_TRUE(changed(a));
}

TEST_F(OptionWatchTest, ASysctlMayBeWhatAnOptionFollows) {
  const Connection a = connect_by_loopback();
  begin();
  EXPECT_FALSE(watch_->defaults_changed());
  ASSERT_TRUE(write_net_sysctl("ipv4/tcp_keepalive_time", "1234").ok());
  EXPECT_TRUE(watch_->defaults_changed());
  EXPECT_FALSE(changed(a));
}

TEST_F(OptionWatchTest, OtherNamespacesDoNotCount) {
  const Connection a = connect_by_loopback();
  begin();
  scope_.reset();
  const UniqueFd elsewhere(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(set_option(elsewhere.get(), SOL_SOCKET, SO_KEEPALIVE), 0);
  EXPECT_FALSE(changed(a));
}

TEST_F(OptionWatchTest, OtherProtocolsDoNotCount) {
  const Connection a = connect_by_loopback();
  begin();
  const UniqueFd datagrams(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(set_option(datagrams.get(), SOL_SOCKET, SO_BROADCAST), 0);
  EXPECT_FALSE(changed(a));
}

// More than a page goes through unchanged: the program sees its first page only.
TEST_F(OptionWatchTest, LargeValuesReachTheKernel) {
  const Connection a = connect_by_loopback();
  begin();
  std::string value(20000, '\0');
  value[0] = 1;
  EXPECT_EQ(::setsockopt(a.server.get(), SOL_SOCKET, SO_KEEPALIVE, value.data(),
                         static_cast<socklen_t>(value.size())),
            0)
      << strerror(errno);
  int set = 0;
  socklen_t size = sizeof set;
  ASSERT_EQ(::getsockopt(a.server.get(), SOL_SOCKET, SO_KEEPALIVE, &set, &size), 0);
  EXPECT_EQ(set, 1);
  EXPECT_TRUE(changed(a));
}

// As a socket that a mover made: its cgroup is gone since.
TEST_F(OptionWatchTest, SocketsOfACgroupThatIsGone) {
  std::string root;
  std::ifstream mounts("/proc/self/mounts");
  for (std::string device, where, type, rest; mounts >> device >> where >> type;
       std::getline(mounts, rest))
    if (type == "cgroup2") root = where;
  ASSERT_FALSE(root.empty());
  const std::string folder = root + "/godwit-option-watch-" + std::to_string(::getpid());
  ASSERT_EQ(::mkdir(folder.c_str(), 0755), 0) << strerror(errno);
  Connection made;
  // A child whose descriptors are ours: it is in the cgroup when the sockets are made.
  const int child =
      static_cast<int>(::syscall(SYS_clone, CLONE_FILES | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
  if (child == 0) {
    std::ofstream(folder + "/cgroup.procs") << ::getpid() << std::endl;
    const Connection inside = connect_by_loopback();
    ::dup2(inside.client.get(), 700);
    ::dup2(inside.server.get(), 701);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(::rmdir(folder.c_str()), 0) << strerror(errno);
  ASSERT_EQ(status, 0);
  made.client.reset(700);
  made.server.reset(701);
  sockaddr_in address{};
  socklen_t size = sizeof address;
  ASSERT_EQ(::getsockname(700, reinterpret_cast<sockaddr*>(&address), &size), 0);
  made.client_port = ntohs(address.sin_port);
  ASSERT_EQ(::getsockname(701, reinterpret_cast<sockaddr*>(&address), &size), 0);
  made.server_port = ntohs(address.sin_port);
  begin();
  EXPECT_FALSE(changed(made));
  ASSERT_EQ(set_option(701, IPPROTO_TCP, TCP_NODELAY), 0);
  EXPECT_TRUE(changed(made));
}

}  // namespace
}  // namespace godwit::network
