// The shim: one small process per capsule. It makes the capsule's namespaces and init, owns the
// standard streams and the log, keeps the exit status after the service has ended, and serves
// shim.sock. It is nobody's child and in a cgroup of its own, so that it outlives the node daemon.
// If it dies, the capsule dies with it: there is never one that nobody manages.
#ifndef GODWIT_CAPSULE_SHIM_H_
#define GODWIT_CAPSULE_SHIM_H_

#include <string>
#include <vector>

namespace godwit::capsule {

// Arguments after "shim":
//   --state-dir DIR --node NODE --name NAME [--replica] [--mask DIR]...
// Descriptor 3 is a SOCK_SEQPACKET socket to the creator: its first client, told with a ShimReply
// when the capsule is there or why not. Returns in the process that was started once the shim
// proper runs in the background, and in the shim when it ends.
int shim_main(const std::vector<std::string>& args);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_SHIM_H_
