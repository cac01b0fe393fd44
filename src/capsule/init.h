// pid 1 of a capsule. It has no state to move: at the destination there is another one.
//
// It builds the root, spawns what the shim asks for, reaps orphans, forwards signals that reach
// it to the main process, and ends when the last process of the service has gone; processes that
// were started by exec do not keep a service alive. It dies with the shim (parent-death signal,
// and the end of the socket), and with it, as pid_namespaces(7) says, everything in the capsule.
#ifndef GODWIT_CAPSULE_INIT_H_
#define GODWIT_CAPSULE_INIT_H_

#include "base/unique_fd.h"
#include "capsule/root_fs.h"

namespace godwit::capsule {

struct InitPlan {
  RootPlan root;
  UniqueFd control;      // SOCK_SEQPACKET to the shim: InitRequest, InitReply
  UniqueFd init_cgroup;  // folders
  UniqueFd work_cgroup;
  bool replica = false;  // no reaping and no end before adopt
};

// Runs in the new namespaces; never returns.
[[noreturn]] void run_init(InitPlan plan);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_INIT_H_
