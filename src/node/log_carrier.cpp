#include "node/log_carrier.h"

#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <unistd.h>

#include <cerrno>

#include "api/rpc_status.h"
#include "base/status.h"
#include "capsule/log_file.h"
#include "kernel/syscalls.h"
#include "node/peers.h"

namespace godwit::node {
namespace {

constexpr size_t kPart = 256 * 1024;
constexpr absl::Duration kTimeout = absl::Minutes(2);
// A log that has been everywhere does not grow for ever.
constexpr size_t kMostBytes = 2 * capsule::kMaxLogBytes;

std::string moved_log(const capsule::ServicePaths& paths) { return paths.log() + ".moved"; }

}  // namespace

std::vector<std::string> log_files(const capsule::ServicePaths& paths) {
  return {moved_log(paths), paths.log() + ".1", paths.log()};
}

absl::Status send_log(const capsule::ServicePaths& paths, const std::string& service,
                      api::GodwitPeer::Stub& to) {
  std::string all;
  for (const std::string& path : log_files(paths)) {
    const auto text = kernel::read_file(path, kMostBytes);
    if (text.ok()) all += *text;
  }
  if (all.size() > kMostBytes) {
    const size_t line = all.find('\n', all.size() - kMostBytes);
    all.erase(0, line == std::string::npos ? 0 : line + 1);
  }
  grpc::ClientContext context;
  set_timeout(context, kTimeout);
  api::Empty reply;
  const auto stream = to.PutLog(&context, &reply);
  api::LogPart part;
  part.set_service(service);
  bool open = stream->Write(part);
  for (size_t at = 0; open && at < all.size(); at += kPart) {
    part.clear_service();
    part.set_data(all.substr(at, kPart));
    open = stream->Write(part);
  }
  stream->WritesDone();
  return api::from_grpc(stream->Finish());
}

absl::Status receive_log(const Services& services, grpc::ServerReader<api::LogPart>& parts) {
  api::LogPart part;
  if (!parts.Read(&part))
    return make_error(absl::StatusCode::kInvalidArgument, "the log of which service?");
  GW_RETURN_IF_ERROR(capsule::check_name(part.service()));
  const capsule::ServicePaths paths = services.paths_of(part.service());
  const std::string unfinished = moved_log(paths) + ".new";
  GW_ASSIGN_OR_RETURN(const UniqueFd fd,
                      kernel::open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  size_t written = 0;
  while (parts.Read(&part)) {
    written += part.data().size();
    const auto size = static_cast<ssize_t>(part.data().size());
    if (written > kMostBytes || ::write(fd.get(), part.data().data(), part.data().size()) != size) {
      const int error = written > kMostBytes ? EFBIG : errno;
      ::unlink(unfinished.c_str());
      return errno_status(error, fmt::format("write({})", unfinished));
    }
  }
  if (::rename(unfinished.c_str(), moved_log(paths).c_str()) != 0)
    return errno_status(errno, fmt::format("rename({})", unfinished));
  return absl::OkStatus();
}

}  // namespace godwit::node
