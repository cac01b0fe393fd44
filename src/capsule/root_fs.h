// The capsule's file system, built inside its new mount namespace:
//
//   /            overlayfs: rootfs (or the host's "/") below, layer/upper above
//   /proc        of the capsule's pid namespace
//   /sys         of the capsule's network namespace, read-only
//   /dev         tmpfs with null zero full random urandom tty ptmx fd stdin stdout stderr
//   /dev/pts     devpts of its own
//   /dev/shm     layer/shm, so that its files belong to what moves
//   /dev/mqueue  of the capsule's ipc namespace
//   binds        shared with the host, never moved
//
// With the host's "/" as rootfs, its other file systems on local disks (a /usr or /home partition)
// are bound read-only at their places: the layer is above "/" alone, and a write there must fail
// rather than be lost at a move. Virtual and network file systems of the host are not brought in.
// The node's state folder is covered: a service must not see its own layer from below.
#ifndef GODWIT_CAPSULE_ROOT_FS_H_
#define GODWIT_CAPSULE_ROOT_FS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "capsule/capsule.pb.h"
#include "capsule/paths.h"

namespace godwit::capsule {

struct RootPlan {
  const CapsuleSpec* spec = nullptr;
  ServicePaths paths;
  std::vector<std::string> masked;  // absolute host paths, covered by an empty folder
  // /etc/hostname, hosts and resolv.conf are written for a new service only; a replica's came
  // with its layer.
  bool write_etc = true;
};

// Called once by init, alone in a new mount namespace. Afterwards "/" and the working directory
// are the capsule's and nothing of the host's tree is reachable but the binds.
absl::Status enter_root(const RootPlan& plan);

// Binds, rootfs and names, without changing anything: what would enter_root() refuse?
absl::Status check_root(const CapsuleSpec& spec);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_ROOT_FS_H_
