// What a daemon is told when it starts, and where its things are.
#ifndef GODWIT_NODE_NODE_CONFIG_H_
#define GODWIT_NODE_NODE_CONFIG_H_

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace godwit::node {

constexpr char kDefaultSocket[] = "/run/godwit/node.sock";
constexpr char kDefaultState[] = "/var/lib/godwit";
constexpr uint16_t kDefaultPort = 7400;
// Where virtual machines' migrations have their sockets, as libvirt and QEMU see it: they get one
// path for both ends, so it is the same on all nodes.
constexpr char kVmSockets[] = "/run/godwit/vm";

// A lab's daemons: sockets and stores in memory below run, state with the services' layers below
// state, one folder a node. $GODWIT_LAB names another lab than the usual one, beside it.
struct LabPlace {
  std::string id = "gw";  // of its network namespaces: "gw-n1"
  std::string run = "/run/godwit/lab";
  std::string state = "/var/lib/godwit/lab";

  static LabPlace current() {
    LabPlace place;
    const char* named = std::getenv("GODWIT_LAB");
    if (named == nullptr || *named == 0) return place;
    place.id = named;
    place.run += "-" + place.id;
    place.state += "-" + place.id;
    return place;
  }
  std::string socket(std::string_view node) const {
    return run + "/" + std::string(node) + "/node.sock";
  }
};

struct NodeConfig {
  std::string name;
  // Names the cgroup of its services and its folder of pinned gates: unique on this machine, where
  // several nodes may be. "": the name.
  std::string local_name;
  std::string state_dir = kDefaultState;  // absolute
  std::string socket = kDefaultSocket;
  std::string listen_host;  // where other nodes reach this one
  uint16_t listen_port = kDefaultPort;
  std::string tls_dir;   // "": <state_dir>/tls
  bool data_tls = true;  // movers' connections to other nodes
  // Of all that its migrations send in their rounds and afterwards; 0: no limit.
  int64_t bandwidth_bytes_per_s = 0;
  // Exactly one of the two: keeps the cluster's store, or uses the one of another node.
  std::string store_path;               // SQLite file
  std::string join_node, join_address;  // name, "HOST:PORT"
  // Network of the services.
  std::string bridge = "gw0";
  std::string subnet = "10.77.0.0/16";
  std::string pool;     // "FIRST-LAST"; "": upper half of the subnet
  std::string subnet6;  // "": services have no IPv6 address
  std::string gateway;  // of either family, several with commas; "": none
  uint32_t mtu = 1500;
  // Virtual machines.
  std::string libvirt_socket;           // of libvirt's daemon; "": where it usually is
  std::string vm_sockets = kVmSockets;  // as this daemon sees it
  int ready_fd = -1;                    // "ready\n" is written there, then it is closed

  std::string tls() const { return tls_dir.empty() ? state_dir + "/tls" : tls_dir; }
  std::string listen_address() const { return listen_host + ":" + std::to_string(listen_port); }
  const std::string& local() const { return local_name.empty() ? name : local_name; }
  std::string bandwidth_file() const { return "/run/godwit/bandwidth-" + local(); }
  std::string pin_dir() const { return "/run/godwit/bpf-" + local(); }
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_NODE_CONFIG_H_
