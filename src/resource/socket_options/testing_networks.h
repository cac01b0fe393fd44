// For tests of sockets: a peer's network namespace with a bridge, and two more, source and
// destination, which have the same address; one of them is connected at a time. All vanish with
// the object: nothing but descriptors holds them.
//
//        peer: br0 10.9.0.1, fd00:9::1
//             |                |
//          port_a           port_b        (one of them up)
//             |                |
//   source: eth0         destination: eth0     both 10.9.0.2, fd00:9::2, one MAC address
#ifndef GODWIT_RESOURCE_SOCKET_OPTIONS_TESTING_NETWORKS_H_
#define GODWIT_RESOURCE_SOCKET_OPTIONS_TESTING_NETWORKS_H_

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/functional/function_ref.h"
#include "base/unique_fd.h"
#include "resource/testing_contexts.h"

namespace godwit::resource::testing {

class Network {
 public:
  Network() {
    const UniqueFd home = current();
    if (::unshare(CLONE_NEWNET) != 0) std::abort();
    fd_ = current();
    const bool up = run("ip link set lo up");
    if (::setns(home.get(), CLONE_NEWNET) != 0 || !up) std::abort();
  }
  static UniqueFd current() { return kernel::open("/proc/thread-self/ns/net", O_RDONLY).value(); }
  // What the calling thread does in `action`, it does in this namespace.
  template <typename Action>
  auto in(Action action) const {
    struct Visit {
      UniqueFd home = current();
      explicit Visit(int there) {
        if (::setns(there, CLONE_NEWNET) != 0) std::abort();
      }
      ~Visit() {
        if (::setns(home.get(), CLONE_NEWNET) != 0) std::abort();
      }
    } visit(fd_.get());
    return action();
  }
  // As `ip netns` wants it.
  std::string path() const {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
  }
  static bool run(const std::string& command) { return std::system(command.c_str()) == 0; }
  bool ip(const std::string& arguments) const {
    return in([&] { return run("ip " + arguments); });
  }

 private:
  UniqueFd fd_;
};

class Networks {
 public:
  Networks() {
    bool ok = peer.ip("link add br0 type bridge") && peer.ip("addr add 10.9.0.1/24 dev br0") &&
              peer.ip("addr add fd00:9::1/64 dev br0 nodad") && peer.ip("link set br0 up");
    ok = ok && attach(source, "port_a") && attach(destination, "port_b") && connect_source(true);
    if (!ok) std::abort();
  }
  bool connect_source(bool up) const { return port("port_a", up); }
  bool connect_destination(bool up) const { return port("port_b", up); }

  const Network peer, source, destination;

 private:
  bool port(const std::string& name, bool up) const {
    return peer.ip("link set " + name + (up ? " up" : " down"));
  }
  bool attach(const Network& to, const std::string& name) const {
    return peer.ip("link add " + name +
                   " type veth peer name eth0 address 02:00:00:00:00:02 netns " + to.path()) &&
           peer.ip("link set " + name + " master br0") && to.ip("addr add 10.9.0.2/24 dev eth0") &&
           to.ip("addr add fd00:9::2/64 dev eth0 nodad") && to.ip("link set eth0 up");
  }
};

// The fake contexts, with in_capsule() in a network of the test's.
class NetworkCapture final : public CaptureContext {
 public:
  NetworkCapture(const Network& network, FakeCaptureContext& files)
      : network_(network), files_(files) {}
  bool final() const override { return files_.final(); }
  uint64_t description_at(ImagePid tgid, int fd) const override {
    return files_.description_at(tgid, fd);
  }
  std::vector<const OpenFile*> with_inode(dev_t dev, ino_t ino) const override {
    return files_.with_inode(dev, ino);
  }
  ino_t stdio_inode(int stream) const override { return files_.stdio_inode(stream); }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return network_.in(action);
  }
  HostPid init_pid() const override { return files_.init_pid(); }

 private:
  const Network& network_;
  FakeCaptureContext& files_;
};

class NetworkRestore final : public RestoreContext {
 public:
  NetworkRestore(const Network& network, FakeRestoreContext& files)
      : network_(network), files_(files) {}
  bool final() const override { return files_.final(); }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return network_.in(action);
  }
  HostPid init_pid() const override { return files_.init_pid(); }
  int description(uint64_t id) const override { return files_.description(id); }
  void stash(std::string name, UniqueFd fd) override {
    files_.stash(std::move(name), std::move(fd));
  }
  UniqueFd take(std::string_view name) override { return files_.take(name); }
  int stdio(int stream) const override { return files_.stdio(stream); }
  absl::StatusOr<HostPid> host_pid(ImagePid pid) const override { return files_.host_pid(pid); }
  int64_t source_clock_ns() const override { return files_.source_clock_ns(); }
  absl::StatusOr<int> raw_socket(int family) override {
    return raw_sockets_.get(
        family, [this](absl::FunctionRef<absl::Status()> action) { return network_.in(action); });
  }

 private:
  const Network& network_;
  FakeRestoreContext& files_;
  RawSockets raw_sockets_;
};

}  // namespace godwit::resource::testing

#endif  // GODWIT_RESOURCE_SOCKET_OPTIONS_TESTING_NETWORKS_H_
