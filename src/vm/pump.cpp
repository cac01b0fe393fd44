#include "vm/pump.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <vector>

namespace godwit::vm {
namespace {

constexpr size_t kBuffer = size_t{256} << 10;

}  // namespace

void Traffic::lift(bool lifted) {
  std::lock_guard lock(mutex_);
  if (pacer_) pacer_->lift(lifted);
}

void Traffic::sent(uint64_t bytes) {
  sent_ += bytes;
  std::lock_guard lock(mutex_);
  if (pacer_) pacer_->charge(bytes);
}

int64_t Traffic::wait_ns() {
  std::lock_guard lock(mutex_);
  return pacer_ ? pacer_->wait_ns() : 0;
}

// One direction.
struct Pump::Way {
  Way(tls::Channel& source, tls::Channel& sink, bool goes_out)
      : from(source), to(sink), out(goes_out), bytes(kBuffer) {}
  tls::Channel& from;
  tls::Channel& to;
  bool out;  // to the other node
  std::vector<char> bytes;
  size_t begin = 0;
  size_t end = 0;
  bool read_all = false;  // its sender has ended
  bool over = false;      // and all of it is sent
  bool full() const { return begin < end; }
};

Pump::Pump(std::unique_ptr<tls::Channel> local, std::unique_ptr<tls::Channel> far, Traffic* traffic)
    : local_(std::move(local)),
      far_(std::move(far)),
      traffic_(traffic),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  far_->read_ahead(kBuffer);
  far_->write_ahead(kBuffer);
}

void Pump::stop() {
  stopped_ = true;
  // Also what the kernel has yet to send must not keep either end waiting.
  ::shutdown(local_->fd(), SHUT_RDWR);
  ::shutdown(far_->fd(), SHUT_RDWR);
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) return;  // it is set already
}

void Pump::hold(bool held) {
  held_ = held;
  const std::lock_guard until_gone(going_);
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) return;
}

Pump::Moved Pump::move(Way& way) {
  const Moved reading = way.out ? Moved::kLocalBroke : Moved::kFarBroke;
  const Moved writing = way.out ? Moved::kFarBroke : Moved::kLocalBroke;
  if (!way.full() && !way.read_all) {
    const iovec room{way.bytes.data(), way.bytes.size()};
    const ssize_t got = way.from.readv({&room, 1});
    if (got < 0 && errno != EAGAIN && errno != EINTR) return reading;
    if (got == 0) way.read_all = true;
    if (got > 0) {
      way.begin = 0;
      way.end = static_cast<size_t>(got);
      if (traffic_ != nullptr && !way.out) traffic_->received(way.end);
    }
  }
  if (way.full()) {
    const iovec rest{way.bytes.data() + way.begin, way.end - way.begin};
    const uint64_t before = way.to.wire_sent();
    const ssize_t taken = way.to.writev({&rest, 1});
    if (taken < 0 && errno != EAGAIN && errno != EINTR) return writing;
    way.begin += static_cast<size_t>(std::max<ssize_t>(taken, 0));
    if (traffic_ != nullptr && way.out) traffic_->sent(way.to.wire_sent() - before);
  }
  if (way.to.unsent() && way.to.flush() != 0 && errno != EAGAIN && errno != EINTR) return writing;
  if (way.read_all && !way.full() && !way.to.unsent() && !way.over) {
    way.over = true;
    way.to.end();
    ::shutdown(way.to.fd(), SHUT_WR);
  }
  return Moved::kWell;
}

bool Pump::run() {
  Way out(*local_, *far_, true);
  Way in(*far_, *local_, false);
  bool broke = false;
  bool alone = false;  // the local end has gone while held
  while (!stopped_) {
    Moved moved = Moved::kWell;
    const int64_t wait_ns = traffic_ == nullptr ? 0 : traffic_->wait_ns();
    {
      const std::lock_guard going(going_);
      if (!held_ && wait_ns == 0) moved = move(out);
    }
    if (moved == Moved::kWell && !alone) moved = move(in);
    if (moved == Moved::kLocalBroke && held_) {
      alone = true;
      moved = Moved::kWell;
    }
    if (moved != Moved::kWell) {
      broke = moved == Moved::kFarBroke && !stopped_;
      break;
    }
    if (out.over && in.over) break;
    const auto wants = [](const Way& way) -> short {
      return way.full() || way.read_all ? 0 : POLLIN;
    };
    const auto waits = [](const Way& way) -> short {
      return way.full() || way.to.unsent() ? POLLOUT : 0;
    };
    const bool paused = held_ || wait_ns > 0;
    std::array<pollfd, 3> polled{{
        {wake_.get(), POLLIN, 0},
        {local_->fd(), static_cast<short>((paused ? 0 : wants(out)) | waits(in)), 0},
        {far_->fd(), static_cast<short>(wants(in) | (paused ? 0 : waits(out))), 0},
    }};
    // An end that has gone would say so again and again to one that asks it for nothing.
    for (pollfd& each : polled)
      if (each.events == 0 || (alone && &each != &polled[0])) each.fd = -1;
    int timeout_ms = -1;
    if (wait_ns > 0) timeout_ms = static_cast<int>(std::min<int64_t>(wait_ns / 1'000'000 + 1, 100));
    if (!in.full() && !alone && far_->unread()) timeout_ms = 0;
    if (!paused && !out.full() && !out.read_all && local_->unread()) timeout_ms = 0;
    if (::poll(polled.data(), polled.size(), timeout_ms) < 0 && errno != EINTR) break;
    if (polled[0].revents != 0) {
      uint64_t count = 0;
      if (::read(wake_.get(), &count, sizeof count) < 0) continue;
    }
  }
  stop();
  return !broke;
}

}  // namespace godwit::vm
