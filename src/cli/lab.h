// A lab: nodes with daemons and a client, on one machine, in network namespaces. For `lab` and for
// tests.
//
//   /run/godwit/lab/spec        how it was brought up
//                  /ca/         its own small authority
//                  /<node>/     node.sock, store.db (n1), tls/, node.log, pid, libvirt/
//   /var/lib/godwit/lab/<node>/ state: services with their layers
//
// /run/godwit/lab is a tmpfs: a commit waits for the store's fsync. $GODWIT_LAB=x makes a second
// lab beside it, in /run/godwit/lab-x.
#ifndef GODWIT_CLI_LAB_H_
#define GODWIT_CLI_LAB_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "network/lab.h"

namespace godwit::cli {

// Idempotent: what is up stays, daemons that have died are started again. `libvirt`: each node has
// a libvirt daemon of its own (lab_libvirt.h). `more`: options of `godwit node` for those that are
// started.
absl::Status lab_up(const network::LabSpec& spec, bool libvirt = false,
                    const std::vector<std::string>& more = {});
// Everything of it: services, daemons, namespaces, mounts, folders, cgroups. Fine if there is none.
absl::Status lab_down();
// The lab that is up; kNotFound.
absl::StatusOr<network::LabSpec> lab_spec();
// Replaces this process by `argv` in the network namespace of "n1", "client" or "sw".
absl::Status lab_exec(const std::string& host, const std::vector<std::string>& argv);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_LAB_H_
