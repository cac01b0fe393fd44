#include "api/swap_stream.h"

#include <chrono>
#include <utility>

#include "api/rpc_status.h"
#include "base/clock.h"
#include "base/status.h"

namespace godwit::api {
namespace {

// How late a deadline may be noticed.
constexpr auto kWatchEvery = std::chrono::milliseconds(100);

}  // namespace

grpc::Status SwapService::Swaps(grpc::ServerContext*,
                                grpc::ServerReaderWriter<SwapReply, SwapRequest>* stream) {
  if (store_ == nullptr)
    return {grpc::StatusCode::FAILED_PRECONDITION, "this node does not keep the store"};
  SwapRequest request;
  while (stream->Read(&request)) {
    SwapReply reply;
    if (!request.key().empty()) {
      const auto revision =
          store_->compare_and_swap(request.key(), request.expected_revision(), request.value());
      if (revision.ok()) reply.set_revision(*revision);
      reply.set_code(static_cast<int>(revision.status().code()));
      reply.set_error(std::string(message_of(revision.status())));
    }
    if (!stream->Write(reply)) break;
  }
  return grpc::Status::OK;
}

SwapStream::SwapStream(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout)
    : timeout_(timeout), stub_(GodwitSwaps::NewStub(channel)) {
  stream_ = stub_->Swaps(&context_);
  watcher_ = std::thread([this] { watch(); });
}

SwapStream::~SwapStream() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  context_.TryCancel();
  if (!finished_) stream_->Finish();
  watcher_.join();
}

absl::StatusOr<std::unique_ptr<SwapStream>> SwapStream::open(
    const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout) {
  std::unique_ptr<SwapStream> stream(new SwapStream(channel, timeout));
  GW_RETURN_IF_ERROR(stream->ask(SwapRequest()).status());
  return stream;
}

absl::StatusOr<store::Revision> SwapStream::compare_and_swap(const std::string& key,
                                                             store::Revision expected,
                                                             const std::string& value) {
  SwapRequest request;
  request.set_key(key);
  request.set_expected_revision(expected);
  request.set_value(value);
  GW_ASSIGN_OR_RETURN(const SwapReply reply, ask(request));
  if (reply.code() != 0)
    return absl::Status(static_cast<absl::StatusCode>(reply.code()), reply.error());
  return reply.revision();
}

absl::StatusOr<SwapReply> SwapStream::ask(const SwapRequest& request) {
  if (finished_) return absl::UnavailableError("the stream to the store has ended");
  give_up_at_ns_ = monotonic_ns() + absl::ToInt64Nanoseconds(timeout_);
  SwapReply reply;
  const bool answered = stream_->Write(request) && stream_->Read(&reply);
  give_up_at_ns_ = 0;
  if (answered) return reply;
  finished_ = true;
  return make_error(absl::StatusCode::kUnavailable,
                    "the node that keeps the store does not answer: {}",
                    stream_->Finish().error_message());
}

void SwapStream::watch() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kWatchEvery, [this] { return ending_; })) {
    const int64_t give_up = give_up_at_ns_;
    if (give_up != 0 && monotonic_ns() > give_up) context_.TryCancel();
  }
}

}  // namespace godwit::api
