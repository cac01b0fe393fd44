// Logs: what a service wrote, from its log file on the node that runs it.
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>

#include "api/rpc_status.h"
#include "base/status.h"
#include "capsule/log_file.h"
#include "node/api_service.h"
#include "node/log_carrier.h"

namespace godwit::node {
namespace {

constexpr int kLookAgainMs = 250;

// `after`: lines up to then have been sent; becomes the time of the last one.
bool send_lines(const std::vector<capsule::LogLine>& lines, size_t from, int64_t& after,
                grpc::ServerWriter<api::LogsChunk>& out) {
  const int64_t sent_before = after;
  for (size_t i = from; i < lines.size(); ++i) {
    if (lines[i].unix_ns <= sent_before) continue;
    after = lines[i].unix_ns;
    api::LogsChunk chunk;
    chunk.set_data(lines[i].text + (lines[i].ended ? "\n" : ""));
    chunk.set_stream(static_cast<uint32_t>(lines[i].stream));
    chunk.set_unix_ns(lines[i].unix_ns);
    if (!out.Write(chunk)) return false;
  }
  return true;
}

// Where the last `count` lines begin; parts of one line count as one.
size_t tail_start(const std::vector<capsule::LogLine>& lines, int64_t count) {
  if (count < 0) return 0;
  size_t at = lines.size();
  for (int64_t seen = 0; at > 0; --at) {
    if ((at == lines.size() || lines[at - 1].ended) && seen++ == count) break;
  }
  return at;
}

}  // namespace

grpc::Status ApiService::Logs(grpc::ServerContext* context, const api::LogsRequest* request,
                              grpc::ServerWriter<api::LogsChunk>* out) {
  api::LogsRequest wanted = *request;
  while (!context->IsCancelled()) {
    const auto peer = locate(*context, wanted.name());
    if (!peer.ok()) return api::to_grpc(peer.status());
    bool goes_on_elsewhere = false;
    absl::Status result = absl::OkStatus();
    if (*peer == nullptr) {
      result = logs_here(*context, wanted, *out, goes_on_elsewhere);
    } else {
      const auto call = pass_on(*context);
      const auto there = (*peer)->user->Logs(call.get(), wanted);
      api::LogsChunk chunk;
      while (there->Read(&chunk)) {
        wanted.set_after_unix_ns(chunk.unix_ns());
        out->Write(chunk);
      }
      result = unreachable(api::from_grpc(there->Finish()), **peer);
      goes_on_elsewhere = absl::IsAborted(result) && wanted.follow();
    }
    if (!goes_on_elsewhere) return api::to_grpc(result);
    wanted.set_tail_lines(-1);
  }
  return {grpc::StatusCode::CANCELLED, "cancelled"};
}

absl::Status ApiService::logs_here(grpc::ServerContext& context, api::LogsRequest& request,
                                   grpc::ServerWriter<api::LogsChunk>& out,
                                   bool& goes_on_elsewhere) {
  const capsule::ServicePaths paths = node_.services().paths_of(request.name());
  const std::string path = paths.log();
  UniqueFd changes(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!changes) return errno_status(errno, "inotify_init1()");
  // The folder: the file is replaced when it has become large.
  ::inotify_add_watch(changes.get(), paths.dir.c_str(), IN_MODIFY | IN_CREATE | IN_DELETE_SELF);

  std::vector<capsule::LogLine> lines;
  absl::StatusOr<uint64_t> at = uint64_t{0};
  // The last one is the log itself; the older ones are there only once it has moved or been large.
  for (const std::string& each : log_files(paths)) at = capsule::read_log(each, 0, lines);
  if (!at.ok()) return at.status();
  int64_t after = request.after_unix_ns();
  if (!send_lines(lines, tail_start(lines, request.tail_lines()), after, out))
    return absl::OkStatus();
  while (request.follow() && !context.IsCancelled()) {
    const auto info = node_.services().info(request.name());
    lines.clear();
    const auto next = capsule::read_log(path, *at, lines);
    if (next.ok()) at = next;
    // New by position in the file; two lines may have one time.
    int64_t all = 0;
    if (!send_lines(lines, 0, all, out)) return absl::OkStatus();
    after = std::max(after, all);
    request.set_after_unix_ns(after);
    // In this order: what it wrote last was in the file before it had ended.
    if (!info.ok() || info->state() == capsule::CAPSULE_EXITED) {
      const auto record = node_.records().service(request.name());
      // Also where it has ended by now: what it wrote there is to come.
      goes_on_elsewhere = record.ok() && record->record.owner() != node_.config().name;
      if (goes_on_elsewhere)
        return make_error(absl::StatusCode::kAborted, "service {} has moved", request.name());
      return absl::OkStatus();
    }
    pollfd polled{changes.get(), POLLIN, 0};
    if (::poll(&polled, 1, kLookAgainMs) > 0) {
      char events[4096];
      while (::read(changes.get(), events, sizeof events) > 0) {
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace godwit::node
