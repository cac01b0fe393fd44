// Bytes between a unix socket of libvirt or QEMU here and a connection to the other node, both ways
// until one end closes, or somebody says stop.
//
//   QEMU, libvirt  <-- unix socket, plain -->  pump  <-- channel, TLS -->  the other node's pump
//
// A thread each (run()). What is not read here waits in the sockets, so that whoever sends is held
// back as by a slow link, and QEMU's own measurements are right.
#ifndef GODWIT_VM_PUMP_H_
#define GODWIT_VM_PUMP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"
#include "pages/pacer.h"
#include "tls/channel.h"

namespace godwit::vm {

// Limits and counts what all pumps of one migration send. Any thread.
class Traffic {
 public:
  void set_pacer(std::unique_ptr<pages::Pacer> pacer) { pacer_ = std::move(pacer); }
  // Nothing is limited from here on, or is again.
  void lift(bool lifted);
  // `bytes` went to the other node.
  void sent(uint64_t bytes);
  void received(uint64_t bytes) { received_ += bytes; }
  // For how long nothing may go; 0: no longer.
  int64_t wait_ns();

  uint64_t bytes() const { return sent_ + received_; }

 private:
  std::mutex mutex_;
  std::unique_ptr<pages::Pacer> pacer_;  // null: no limit
  std::atomic<uint64_t> sent_ = 0;
  std::atomic<uint64_t> received_ = 0;
};

class Pump {
 public:
  // `traffic`: null: neither limited nor counted. It must outlive this.
  Pump(std::unique_ptr<tls::Channel> local, std::unique_ptr<tls::Channel> far, Traffic* traffic);

  // Blocks until both directions have ended, one end breaks, or stop(). False: the connection to
  // the other node broke.
  bool run();
  // Any thread: both connections are closed at once.
  void stop();

  // From when this returns nothing goes from the local end to the far one while held, not even what
  // was read before; and the far one does not notice if the local one goes.
  void hold(bool held);

 private:
  struct Way;
  enum class Moved { kWell, kLocalBroke, kFarBroke };
  Moved move(Way& way);

  std::unique_ptr<tls::Channel> local_;
  std::unique_ptr<tls::Channel> far_;
  Traffic* traffic_;
  UniqueFd wake_;  // eventfd
  std::atomic<bool> stopped_ = false;
  std::mutex going_;  // taken while bytes go from the local end to the far one
  std::atomic<bool> held_ = false;
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_PUMP_H_
