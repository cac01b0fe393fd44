// Who gets in, over real sockets, and the store over the wire.
#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "api/remote_store.h"
#include "api/store_service.h"
#include "api/swap_stream.h"
#include "api/tls.h"
#include "api/transport.h"
#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "store/sqlite_store.h"
#include "tls/certificates.h"

namespace godwit::api {
namespace {

tls::Identity identity_of(const tls::Certificate& authority, const std::string& node) {
  const auto own = tls::issue_certificate(authority, node);
  EXPECT_TRUE(own.ok()) << own.status();
  return {authority.certificate_pem, *own};
}

class ApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/godwit-api-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    ASSERT_EQ(::chmod(name, 0755), 0);
    authority_ = *tls::make_authority("test");
    n1_ = identity_of(authority_, "n1");
    n2_ = identity_of(authority_, "n2");
    store_ = *store::SqliteStore::open(folder_ + "/store.db");
    service_ = std::make_unique<StoreService>(store_.get());
    grpc::ServerBuilder builder;
    set_server_options(builder);
    builder.AddListeningPort("127.0.0.1:0", server_credentials(n1_), &port_);
    builder.RegisterService(service_.get());
    ::signal(SIGPIPE, SIG_IGN);  // as every process of ours does
    auto swaps = SwapService::start(store_.get(), n1_, "127.0.0.1");
    ASSERT_TRUE(swaps.ok()) << swaps.status();
    swaps_ = *std::move(swaps);
    builder.RegisterService(swaps_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    address_ = "127.0.0.1:" + std::to_string(port_);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    std::filesystem::remove_all(folder_);
  }
  absl::Status ask(const std::shared_ptr<grpc::Channel>& channel) {
    return RemoteStore(channel, absl::Seconds(5)).list("").status();
  }
  Keeper keeper() const {
    return {peer_channel(n2_, "n1", address_), "n1", "127.0.0.1",
            std::make_shared<const tls::Context>(*tls::Context::make(n2_))};
  }

  std::string folder_, address_;
  int port_ = 0;
  tls::Certificate authority_;
  tls::Identity n1_, n2_;
  std::unique_ptr<store::SqliteStore> store_;
  std::unique_ptr<StoreService> service_;
  std::unique_ptr<SwapService> swaps_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(ApiTest, ANodeOfTheClusterIsServed) {
  EXPECT_TRUE(ask(peer_channel(n2_, "n1", address_)).ok());
}

TEST_F(ApiTest, APlainClientGetsNothing) {
  EXPECT_FALSE(
      ask(grpc::CreateChannel("ipv4:" + address_, grpc::InsecureChannelCredentials())).ok());
}

TEST_F(ApiTest, AClientWithoutACertificateGetsNothing) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = authority_.certificate_pem;
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride("n1");
  EXPECT_FALSE(
      ask(grpc::CreateCustomChannel("ipv4:" + address_, grpc::SslCredentials(options), arguments))
          .ok());
}

TEST_F(ApiTest, ACertificateOfAnotherAuthorityGetsNothing) {
  // The same names, another key: it even believes in our server.
  tls::Identity stranger = identity_of(*tls::make_authority("test"), "n2");
  stranger.authority_pem = authority_.certificate_pem;
  EXPECT_FALSE(ask(peer_channel(stranger, "n1", address_)).ok());
}

TEST_F(ApiTest, AServerThatIsAnotherNodeIsNotBelieved) {
  EXPECT_FALSE(ask(peer_channel(n2_, "n3", address_)).ok());
}

TEST_F(ApiTest, IdentityIsKeptForItsOwnerOnly) {
  const std::string folder = folder_ + "/tls";
  ASSERT_TRUE(tls::save_identity(folder, n1_).ok());
  for (const char* name : {"ca.crt", "node.crt", "node.key"}) {
    struct stat about {};
    ASSERT_EQ(::stat((folder + "/" + name).c_str(), &about), 0);
    EXPECT_EQ(about.st_mode & 0777, 0600u) << name;
  }
  const auto again = tls::load_identity(folder);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->own.key_pem, n1_.own.key_pem);
  EXPECT_FALSE(tls::load_identity(folder_ + "/none").ok());
}

TEST_F(ApiTest, TheStoreKeepsItsMeaningOverTheWire) {
  RemoteStore remote(peer_channel(n2_, "n1", address_), absl::Seconds(5));
  EXPECT_EQ(remote.get("a").status().code(), absl::StatusCode::kNotFound);
  const std::string odd("\0\xff\n", 3);
  const auto made = remote.compare_and_swap("a", store::kMustNotExist, odd);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(remote.get("a")->value, odd);
  EXPECT_EQ(remote.get("a")->revision, *made);
  EXPECT_EQ(remote.compare_and_swap("a", store::kMustNotExist, "x").status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(remote.list("")->size(), 1u);
  EXPECT_EQ(remote.remove("a", *made + 1).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(remote.remove("a", *made).ok());
}

TEST_F(ApiTest, AStreamOfSwapsMeansTheSame) {
  const auto stream = SwapStream::open(keeper(), absl::Seconds(5));
  ASSERT_TRUE(stream.ok()) << stream.status();
  const auto made = (*stream)->compare_and_swap("a", store::kMustNotExist, "x");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(store_->get("a")->revision, *made);
  EXPECT_EQ((*stream)->compare_and_swap("a", store::kMustNotExist, "y").status().code(),
            absl::StatusCode::kAborted);
  // Its own answer, not the stream's end.
  EXPECT_TRUE((*stream)->compare_and_swap("a", *made, "y").ok());
  EXPECT_EQ(store_->get("a")->value, "y");
}

TEST_F(ApiTest, ManySwapStreamsAtOnce) {
  std::vector<std::thread> clients;
  std::atomic<int> won = 0;
  const Keeper to = keeper();
  for (int i = 0; i < 20; ++i)
    clients.emplace_back([&] {
      const auto stream = SwapStream::open(to, absl::Seconds(20));
      ASSERT_TRUE(stream.ok()) << stream.status();
      if ((*stream)->compare_and_swap("one", store::kMustNotExist, "x").ok()) ++won;
    });
  for (std::thread& each : clients) each.join();
  EXPECT_EQ(won, 1);
}

TEST_F(ApiTest, AStreamOfSwapsNeedsAKeeper) {
  server_->Shutdown();
  auto none = SwapService::start(nullptr, n1_, "127.0.0.1");
  ASSERT_TRUE(none.ok()) << none.status();
  grpc::ServerBuilder builder;
  set_server_options(builder);
  builder.AddListeningPort("127.0.0.1:0", server_credentials(n1_), &port_);
  builder.RegisterService(none->get());
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port_);
  const auto keeps_none = SwapStream::open(keeper(), absl::Seconds(5));
  EXPECT_EQ(keeps_none.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(keeps_none.status().message()).find("does not keep"), std::string::npos);
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

TEST_F(ApiTest, OnlyNodesOfTheClusterMaySwap) {
  grpc::ClientContext call;
  OpenSwapsReply reply;
  ASSERT_TRUE(
      GodwitSwaps::NewStub(keeper().channel)->OpenSwaps(&call, OpenSwapsRequest(), &reply).ok());
  const auto port = static_cast<uint16_t>(reply.port());
  const auto swap_as = [&](const tls::Identity& who, const std::string& keeper) -> absl::Status {
    GW_ASSIGN_OR_RETURN(const tls::Context context, tls::Context::make(who));
    GW_ASSIGN_OR_RETURN(const auto connection, TlsConnection::connect(context, "127.0.0.1", port,
                                                                      keeper, absl::Seconds(5)));
    SwapRequest request;
    request.set_key("a");
    GW_RETURN_IF_ERROR(connection->send(request));
    SwapReply answer;
    return connection->receive(answer);
  };
  EXPECT_TRUE(swap_as(n2_, "n1").ok()) << swap_as(n2_, "n1");
  EXPECT_FALSE(swap_as(n2_, "n3").ok()) << "the keeper is another node";
  tls::Identity stranger = identity_of(*tls::make_authority("test"), "n2");
  stranger.authority_pem = authority_.certificate_pem;
  EXPECT_FALSE(swap_as(stranger, "n1").ok()) << "another authority's certificate";
  const UniqueFd plain(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(plain.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::send(plain.get(), "\x04\0\0\0abcd", 8, MSG_NOSIGNAL), 8);
  // An alert at most (RFC 8446, 6), and the end.
  std::array<char, 64> rest{};
  pollfd one{plain.get(), POLLIN, 0};
  size_t came = 0;
  for (ssize_t got = 1; got > 0;) {
    ASSERT_EQ(::poll(&one, 1, 5000), 1);
    got = ::recv(plain.get(), rest.data(), rest.size(), 0);
    if (got > 0) came += static_cast<size_t>(got);
  }
  EXPECT_LE(came, 7u);
}

TEST_F(ApiTest, AStreamWhoseKeeperHasGoneIsUnavailable) {
  const auto stream = SwapStream::open(keeper(), absl::Seconds(5));
  ASSERT_TRUE(stream.ok()) << stream.status();
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
  swaps_.reset();
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ((*stream)->compare_and_swap("a", store::kMustNotExist, "x").status().code(),
              absl::StatusCode::kUnavailable);
}

TEST_F(ApiTest, AKeeperThatIsGoneIsUnavailable) {
  RemoteStore remote(peer_channel(n2_, "n1", address_), absl::Seconds(2));
  ASSERT_TRUE(remote.list("").ok());
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
  const absl::Status after = remote.list("").status();
  EXPECT_TRUE(absl::IsUnavailable(after) || absl::IsDeadlineExceeded(after)) << after;
}

TEST_F(ApiTest, TheUnixSocketLetsRootInAndNobodyElse) {
  const std::string path = folder_ + "/node.sock";
  auto socket = UserSocket::listen(path);
  ASSERT_TRUE(socket.ok()) << socket.status();
  (*socket)->serve(server_.get());
  EXPECT_TRUE(ask(user_channel(path)).ok());
  EXPECT_EQ(UserSocket::listen(path).status().code(), absl::StatusCode::kAlreadyExists);
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";

  // Not even when the file's mode lets the other user connect.
  ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(9);
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    std::strncpy(to.sun_path, path.c_str(), sizeof to.sun_path - 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) ::_exit(8);
    // A served connection would begin with the server's SETTINGS frame; this one just ends.
    char byte = 0;
    ::_exit(::read(fd, &byte, 1) == 0 ? 0 : 7);
  }
  int wait_status = 0;
  ::waitpid(child, &wait_status, 0);
  EXPECT_EQ(wait_status, 0);
}

// What the wire and the disk cost a commit, for docs/performance.md: not asserted.
TEST_F(ApiTest, CommitOverTheWireIsTimed) {
  const auto channel = peer_channel(n2_, "n1", address_);
  RemoteStore remote(channel, absl::Seconds(5));
  const auto stream = SwapStream::open(keeper(), absl::Seconds(5));
  ASSERT_TRUE(stream.ok()) << stream.status();
  auto revision = remote.compare_and_swap("k", store::kMustNotExist, "v");
  ASSERT_TRUE(revision.ok());
  const auto time = [](const char* what, const std::function<absl::Status()>& once) {
    std::vector<int64_t> times;
    for (int i = 0; i < 200; ++i) {
      const int64_t begin = monotonic_ns();
      ASSERT_TRUE(once().ok());
      times.push_back((monotonic_ns() - begin) / 1000);
    }
    std::sort(times.begin(), times.end());
    RecordProperty(std::string(what) + "_median_us", std::to_string(times[100]));
    std::printf("%-44s median %ld us, p90 %ld us\n", what, static_cast<long>(times[100]),
                static_cast<long>(times[180]));
  };
  const auto swap_by = [&](auto& by) {
    return [&] {
      revision = by.compare_and_swap("k", *revision, "v");
      return revision.status();
    };
  };
  time("compare-and-swap, one call", swap_by(remote));
  time("compare-and-swap, on a stream", swap_by(**stream));
  time("compare-and-swap, in the same process", swap_by(*store_));
  time("a call that changes nothing", [&] { return remote.get("k").status(); });
}

}  // namespace
}  // namespace godwit::api
