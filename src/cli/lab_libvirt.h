// A libvirt daemon of its own for a lab's node: in the node's network namespace, with a mount and a
// UTS namespace of its own, in which libvirt's folders are the node's.
//
//   <run>/<node>/libvirt/run      /run/libvirt: libvirt-sock, pids of the machines
//                       /etc, log /etc/libvirt, /var/log/libvirt
//                       /sockets  /run/godwit/vm, of migrations (node/vm_relay.h)
//   <state>/<node>/libvirt        /var/lib/libvirt
//   <state>/libvirt-cache         /var/cache/libvirt, of all nodes: probing QEMU takes seconds
#ifndef GODWIT_CLI_LAB_LIBVIRT_H_
#define GODWIT_CLI_LAB_LIBVIRT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"

namespace godwit::cli {

struct LabLibvirt {
  std::string netns;
  std::string run;    // the node's folder
  std::string state;  // the node's folder
  std::string cache;
  std::string host_name;
  uint32_t number = 1;

  std::string folder() const { return run + "/libvirt"; }
  std::string socket() const { return folder() + "/run/libvirt-sock"; }
  std::string sockets() const { return folder() + "/sockets"; }
};

// Fine when it runs. kUnimplemented: libvirt or QEMU is not installed.
absl::Status start_libvirt(const LabLibvirt& place, Deadline deadline);
// The node's machines and the daemon. Fine if there are none.
absl::Status stop_libvirt(const LabLibvirt& place, Deadline deadline);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_LAB_LIBVIRT_H_
