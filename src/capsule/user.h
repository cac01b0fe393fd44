// Who a program of the capsule runs as, by the capsule's own /etc/passwd and /etc/group
// (passwd(5), group(5)). getpwnam(3) would load the host's name services into pid 1.
#ifndef GODWIT_CAPSULE_USER_H_
#define GODWIT_CAPSULE_USER_H_

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace godwit::capsule {

struct User {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;  // supplementary
  std::string home = "/";
};

// `spec` is "", "name", "uid", "name:group", "uid:gid". A number needs no entry in the files; a
// name does. With a group given there are no supplementary groups.
absl::StatusOr<User> resolve_user(std::string_view spec, std::string_view passwd,
                                  std::string_view group);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_USER_H_
