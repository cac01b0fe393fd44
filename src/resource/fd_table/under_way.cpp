// Descriptions that no process has open: they are in messages that nobody has received yet.
#include <fcntl.h>

#include <algorithm>

#include "base/status.h"
#include "resource/fd_table/fd_table.h"
#include "resource/fd_table/reading.h"
#include "resource/same_description.h"
#include "resource/unix_socket/unix_socket.h"

namespace godwit::resource {
namespace {

// Kinds of which nothing is done in a process that has them open.
constexpr std::string_view kAlone[] = {"pipe",         "named_pipe", "eventfd",    "memfd",
                                       "regular_file", "device",     "timerfd",    "signalfd",
                                       "unix_socket",  "tcp_socket", "udp_socket", "pidfd"};
constexpr uint64_t kUnderWay = uint64_t{1} << 61;

}  // namespace

absl::Status Descriptors::add_under_way() {
  for (size_t i = 0; i < descriptions_.size(); ++i) {
    if (descriptions_[i].kind != &unix_socket_kind() || descriptions_[i].file.fd < 0) continue;
    GW_ASSIGN_OR_RETURN(std::vector<UniqueFd> rights, unix_rights_under_way(descriptions_[i].file));
    for (UniqueFd& fd : rights) {
      GW_ASSIGN_OR_RETURN(OpenFile file, file_of({}, -1, fd.get()));
      GW_ASSIGN_OR_RETURN(
          const uint64_t known,
          same_description(fd.get(), file.stat, with_inode(file.stat.st_dev, file.stat.st_ino)));
      if (known != 0) continue;
      if (!S_ISSOCK(file.stat.st_mode)) file.id = kUnderWay | (descriptions_.size() + 1);
      by_inode_[{file.stat.st_dev, file.stat.st_ino}].indexes.push_back(descriptions_.size());
      descriptions_.push_back({std::move(file), std::move(fd), nullptr, std::nullopt, nullptr});
      Description& added = descriptions_.back();
      GW_RETURN_IF_ERROR(look_at_one(added));
      if (added.kind == nullptr) continue;  // capture says so
      if (std::find(std::begin(kAlone), std::end(kAlone), added.kind->name()) == std::end(kAlone))
        return make_error(absl::StatusCode::kUnavailable,
                          "{} is under way in a unix socket (SCM_RIGHTS)", added.file.link);
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::resource
