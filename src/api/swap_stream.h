// Both ends of GodwitSwaps (swap_stream.proto).
#ifndef GODWIT_API_SWAP_STREAM_H_
#define GODWIT_API_SWAP_STREAM_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "api/swap_stream.grpc.pb.h"
#include "store/store.h"

namespace godwit::api {

class SwapService : public GodwitSwaps::Service {
 public:
  // `store` is null on a node that keeps none; it must outlive this.
  explicit SwapService(store::Store* store) : store_(store) {}
  grpc::Status Swaps(grpc::ServerContext* context,
                     grpc::ServerReaderWriter<SwapReply, SwapRequest>* stream) override;

 private:
  store::Store* store_;
};

// A stream to the keeper. One thread uses it.
class SwapStream {
 public:
  // Opens it and waits for a first answer, so that everything on the way is warm.
  static absl::StatusOr<std::unique_ptr<SwapStream>> open(
      const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout);
  ~SwapStream();
  SwapStream(const SwapStream&) = delete;
  SwapStream& operator=(const SwapStream&) = delete;

  // As Store::compare_and_swap(). After kUnavailable it is of no more use.
  absl::StatusOr<store::Revision> compare_and_swap(const std::string& key, store::Revision expected,
                                                   const std::string& value);

 private:
  SwapStream(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout);
  absl::StatusOr<SwapReply> ask(const SwapRequest& request);
  void watch();

  const absl::Duration timeout_;
  grpc::ClientContext context_;
  std::unique_ptr<GodwitSwaps::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<SwapRequest, SwapReply>> stream_;
  bool finished_ = false;
  // A stream's calls have no deadline of their own: a thread cancels it when one is over.
  std::atomic<int64_t> give_up_at_ns_ = 0;  // 0: nobody waits
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  std::thread watcher_;
};

}  // namespace godwit::api

#endif  // GODWIT_API_SWAP_STREAM_H_
