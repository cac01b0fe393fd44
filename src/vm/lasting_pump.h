// A Pump whose connection to the other node may break and be made anew: neither end notices, bytes
// only come later. What has not been acknowledged is kept and sent again.
//
//   source -> flow(4) received(8)       on each connection, first
//   dest   -> received(8)               2^64-1: there is no such flow any more
//   both   -> frames: kind(4) size(4), little endian, and
//             1: data(size)   2: received(8), of all its data so far   3: no more data follows
//
// QEMU 7.2 in post-copy waits for a page with its main loop locked, and then nobody can tell it of
// a new connection: so it must not lose the one that it has.
#ifndef GODWIT_VM_LASTING_PUMP_H_
#define GODWIT_VM_LASTING_PUMP_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "tls/channel.h"
#include "vm/fault_around.h"
#include "vm/pump.h"
#include "vm/rpc_gate.h"

namespace godwit::vm {

// What the source says first.
struct FlowHello {
  uint32_t flow = 0;
  uint64_t received = 0;
};
absl::StatusOr<FlowHello> read_hello(tls::Channel& far);
// To a flow that is not known here.
void refuse_flow(tls::Channel& far);

class LastingPump {
 public:
  using Connect = std::function<absl::StatusOr<std::unique_ptr<tls::Channel>>()>;
  struct Options {
    uint32_t flow = 0;
    Connect connect;  // source; null: the other end connects, see attach()
    Traffic* traffic = nullptr;
    bool gated = false;            // what comes from the other node is libvirt's client's: RpcGate
    bool local_may_go = false;     // once lasting, an end of the local client is none of the flow
    bool asked_for_pages = false;  // source: what comes are QEMU's requests, see FaultAround
  };
  // `local` is closed at the end.
  LastingPump(UniqueFd local, Options options);

  // Blocks until both directions have ended, one end breaks, or stop(). False: the connection to
  // the other node broke while it was not to be made anew.
  bool run();
  // Any thread, as all that follow.
  void stop();
  // Destination: a connection to go on with.
  void attach(std::unique_ptr<tls::Channel> far, uint64_t received_there);
  // From here on what breaks is made anew.
  void keep();
  bool connected() const { return connected_; }
  bool finish_held() const { return finish_held_; }
  void open_gate();

 private:
  bool ready_to_go();
  absl::Status greet(tls::Channel& far);
  void adopt();
  void drop_far();
  void begin_again(uint64_t received_there);
  void encode();
  bool take_frames();
  bool take_frame(uint32_t kind, std::string_view body);
  bool send_far();
  bool receive_far();
  bool read_local();
  bool write_local();
  bool over() const;
  void wait(int64_t pause_ns);
  void wake();

  UniqueFd local_;
  Options options_;
  UniqueFd wake_;  // eventfd
  RpcGate gate_;   // of run()'s thread
  FaultAround around_;

  // Towards the other node. unacked_ begins at acked_; up to sent_ it is on this connection.
  std::string unacked_;
  uint64_t acked_ = 0;
  uint64_t sent_ = 0;
  bool local_ended_ = false;
  bool local_gone_ = false;  // nothing can be written to it
  bool end_sent_ = false;
  bool refused_ = false;  // the other end knows the flow no more
  std::string wire_;      // frames on their way out
  size_t wire_sent_ = 0;

  // From there.
  std::string frames_;  // not complete yet
  uint64_t received_ = 0;
  uint64_t told_ = 0;     // of received_, on this connection
  std::string incoming_;  // for the local end
  bool far_ended_ = false;
  bool shut_ = false;

  std::unique_ptr<tls::Channel> far_;  // changed under mutex_, by run()'s thread
  std::mutex mutex_;
  std::unique_ptr<tls::Channel> next_far_;
  uint64_t next_received_ = 0;
  std::atomic<bool> stopped_ = false;
  std::atomic<bool> lasting_ = false;
  std::atomic<bool> connected_ = false;
  std::atomic<bool> finish_held_ = false;
  std::atomic<bool> opening_ = false;
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_LASTING_PUMP_H_
