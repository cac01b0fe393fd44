// Network namespaces: entering one for a scope, and the named ones of iproute2 (a file of
// /run/netns with the namespace's nsfs inode mounted on it: ip-netns(8)).
#ifndef GODWIT_NETWORK_NETNS_H_
#define GODWIT_NETWORK_NETNS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::network {

// The calling thread is in another network namespace while this lives. Only the thread that made
// it may destroy it. If the way back fails (it cannot while the descriptor is open and the thread
// keeps CAP_SYS_ADMIN) the process aborts: going on in the wrong namespace would be worse.
class NetnsScope {
 public:
  static absl::StatusOr<NetnsScope> enter(int netns_fd);
  static absl::StatusOr<NetnsScope> enter_named(const std::string& name);
  NetnsScope(NetnsScope&&) = default;
  NetnsScope& operator=(NetnsScope&&) = delete;
  ~NetnsScope();

 private:
  explicit NetnsScope(UniqueFd back) : back_(std::move(back)) {}
  UniqueFd back_;
};

absl::StatusOr<UniqueFd> current_netns();
absl::StatusOr<UniqueFd> open_named_netns(const std::string& name);
// A new namespace without a name; it lives while somebody holds it.
absl::StatusOr<UniqueFd> create_anonymous_netns();

// As `ip netns add`: also usable by `ip netns exec` afterwards. kAlreadyExists when the name is
// taken.
absl::Status create_named_netns(const std::string& name);
// As `ip netns del`; OK when there is none. The last name deleted also takes the mount of
// /run/netns on itself away, which only `ip netns add` and the function above make.
absl::Status delete_named_netns(const std::string& name);
// Names that start with `prefix`, sorted.
std::vector<std::string> named_netns(const std::string& prefix);

// Writes "/proc/sys/net/<key>" of the calling thread's network namespace: procfs resolves that
// folder by the reader's namespace, not by the mount's.
absl::Status write_net_sysctl(const std::string& key, const std::string& value);
// The same; OK when the kernel has no such key.
absl::Status write_net_sysctl_if_present(const std::string& key, const std::string& value);

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_NETNS_H_
