// A libvirt domain as the daemon sees it, and what its XML says
// (https://libvirt.org/formatdomain.html).
#ifndef GODWIT_VM_DOMAIN_H_
#define GODWIT_VM_DOMAIN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::vm {

enum class DomainState { kInvalid, kRunning, kPaused, kStopped };

struct Disk {
  std::string target;  // "vda"
  std::string kind;    // file, block, network, ...
  std::string source;  // of a file or device; empty: no medium
  std::string format;  // qcow2, raw; empty: not said
  bool read_only = false;
  bool shareable = false;
  bool backed = false;  // by a chain of other images
};

struct Interface {
  std::string mac;     // "52:54:00:00:00:09"
  std::string bridge;  // empty: not on one
  std::string tap;     // the node's end of it while it runs
  bool unplugged = false;
};

struct HostDevice {
  std::string what;  // "hostdev of type pci"
  std::string name;
};

struct DomainSpec {
  std::string name;
  std::string uuid;
  std::string emulation;  // kvm, qemu
  std::string arch;
  std::string machine;  // pc-i440fx-7.2
  std::string emulator;
  uint64_t memory_bytes = 0;
  uint32_t cpus = 0;
  std::string cpu_mode;  // custom, host-model, host-passthrough, maximum; empty: the hypervisor's
  std::string cpu_model;
  std::string cpu_xml;  // <cpu>...</cpu>
  std::vector<Disk> disks;
  std::vector<Interface> interfaces;
  std::vector<HostDevice> host_devices;
  bool video = false;
  bool nvram = false;  // its firmware has variables of its own
  bool tpm = false;
};

// kInvalidArgument: it does not parse, or is not a domain.
absl::StatusOr<DomainSpec> parse_domain(const std::string& xml);

// The major version of the hypervisor that a machine type is of ("pc-i440fx-7.2": 7), and that it
// has at least. 0: the name does not tell.
int machine_version(const std::string& machine);

// <domainCapabilities> (https://libvirt.org/formatdomaincaps.html): whether the hypervisor has all
// of it.
struct HypervisorCapabilities {
  std::string machine;
  uint32_t most_cpus = 0;
  std::vector<std::string> cpu_modes;   // supported
  std::vector<std::string> cpu_models;  // usable="yes" or unknown, of mode custom
};
absl::StatusOr<HypervisorCapabilities> parse_capabilities(const std::string& xml);

}  // namespace godwit::vm

#endif  // GODWIT_VM_DOMAIN_H_
