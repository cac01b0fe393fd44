// Both ends of swap_stream.proto.
#ifndef GODWIT_API_SWAP_STREAM_H_
#define GODWIT_API_SWAP_STREAM_H_

#include <grpcpp/channel.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "api/swap_stream.grpc.pb.h"
#include "api/tls.h"
#include "base/unique_fd.h"
#include "store/store.h"
#include "tls/certificates.h"

namespace godwit::api {

// The keeper's: a port of its own, and a thread for each connection, of which there is one for each
// migration under way. Its end ends them.
class SwapService final : public GodwitSwaps::Service {
 public:
  // `store` is null on a node that keeps none; it must outlive this. `host`: where to listen.
  static absl::StatusOr<std::unique_ptr<SwapService>> start(store::Store* store,
                                                            const tls::Identity& identity,
                                                            const std::string& host);
  ~SwapService() override;
  grpc::Status OpenSwaps(grpc::ServerContext* context, const OpenSwapsRequest* request,
                         OpenSwapsReply* reply) override;

 private:
  struct Connection {
    UniqueFd fd;
    std::thread thread;
    std::atomic<bool> ended = false;
  };
  SwapService(store::Store* store, tls::Context context)
      : store_(store), context_(std::move(context)) {}
  void accept_loop();
  absl::Status serve(int fd);

  store::Store* store_;
  tls::Context context_;
  UniqueFd listener_;
  uint16_t port_ = 0;
  std::atomic<bool> ending_ = false;
  std::mutex mutex_;                   // of the descriptors in it
  std::list<Connection> connections_;  // the accepting thread's
  std::thread accepting_;
};

// A node that keeps the store, and the way to it.
struct Keeper {
  std::shared_ptr<grpc::Channel> channel;
  std::string node;
  std::string host;
  // Ours; made once, since parsing keys takes 2 ms.
  std::shared_ptr<const tls::Context> context;
};

// A connection to the keeper. One thread uses it.
class SwapStream {
 public:
  // Opens it and waits for a first answer, so that everything on the way is warm.
  static absl::StatusOr<std::unique_ptr<SwapStream>> open(const Keeper& keeper,
                                                          absl::Duration timeout);

  // As Store::compare_and_swap(). After kUnavailable it is of no more use.
  absl::StatusOr<store::Revision> compare_and_swap(const std::string& key, store::Revision expected,
                                                   const std::string& value);

 private:
  SwapStream() = default;
  absl::StatusOr<SwapReply> ask(const SwapRequest& request);

  std::unique_ptr<TlsConnection> connection_;  // null: it has failed
};

}  // namespace godwit::api

#endif  // GODWIT_API_SWAP_STREAM_H_
