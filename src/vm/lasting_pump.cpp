#include "vm/lasting_pump.h"

#include <endian.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/status.h"

namespace godwit::vm {
namespace {

constexpr uint32_t kData = 1;
constexpr uint32_t kReceived = 2;
constexpr uint32_t kEnd = 3;
constexpr size_t kFrameHead = 8;
constexpr size_t kMostData = size_t{128} << 10;
// More waits in the sockets, so that whoever sends is held back as by a slow link.
constexpr size_t kMostUnacked = size_t{512} << 10;
constexpr size_t kMostIncoming = size_t{512} << 10;
constexpr uint64_t kTellEvery = size_t{128} << 10;
constexpr uint64_t kNoSuchFlow = UINT64_MAX;
constexpr absl::Duration kGreetWait = absl::Seconds(5);
constexpr int kPauseMs = 100;  // between two tries to connect

template <typename Word>
void append(std::string& bytes, Word word) {
  if constexpr (sizeof word == 4)
    word = htole32(word);
  else
    word = htole64(word);
  bytes.append(reinterpret_cast<const char*>(&word), sizeof word);
}

template <typename Word>
Word word_in(std::string_view bytes) {
  Word word = 0;
  std::memcpy(&word, bytes.data(), sizeof word);
  if constexpr (sizeof word == 4)
    return le32toh(word);
  else
    return le64toh(word);
}

bool only_later(ssize_t done) { return done < 0 && (errno == EAGAIN || errno == EINTR); }

}  // namespace

absl::StatusOr<FlowHello> read_hello(tls::Channel& far) {
  std::array<char, 12> bytes{};
  GW_RETURN_IF_ERROR(far.read_all(bytes, Deadline::in(kGreetWait)));
  const std::string_view view(bytes.data(), bytes.size());
  return FlowHello{word_in<uint32_t>(view), word_in<uint64_t>(view.substr(4))};
}

void refuse_flow(tls::Channel& far) {
  std::string bytes;
  append(bytes, kNoSuchFlow);
  far.write_all(bytes, kGreetWait).IgnoreError();
}

LastingPump::LastingPump(UniqueFd local, Options options)
    : local_(std::move(local)),
      options_(std::move(options)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void LastingPump::wake() {
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) return;  // it is set already
}

void LastingPump::stop() {
  stopped_ = true;
  ::shutdown(local_.get(), SHUT_RDWR);
  {
    std::lock_guard lock(mutex_);
    if (far_) ::shutdown(far_->fd(), SHUT_RDWR);
  }
  wake();
}

void LastingPump::keep() {
  lasting_ = true;
  wake();
}

void LastingPump::open_gate() {
  opening_ = true;
  wake();
}

void LastingPump::attach(std::unique_ptr<tls::Channel> far, uint64_t received_there) {
  {
    std::lock_guard lock(mutex_);
    next_far_ = std::move(far);
    next_received_ = received_there;
    // What it has is dead, even if that is not known yet.
    if (far_) ::shutdown(far_->fd(), SHUT_RDWR);
  }
  wake();
}

void LastingPump::drop_far() {
  connected_ = false;
  std::lock_guard lock(mutex_);
  far_.reset();
}

// What the other end has is not sent again; the rest is.
void LastingPump::begin_again(uint64_t received_there) {
  const uint64_t most = acked_ + unacked_.size();
  const uint64_t there = std::clamp(received_there, acked_, most);
  unacked_.erase(0, there - acked_);
  acked_ = sent_ = there;
  wire_.clear();
  wire_sent_ = 0;
  frames_.clear();
  told_ = received_;
  end_sent_ = false;
  connected_ = true;
}

// Destination: takes what attach() gave.
void LastingPump::adopt() {
  std::unique_ptr<tls::Channel> far;
  uint64_t there = 0;
  {
    std::lock_guard lock(mutex_);
    far = std::move(next_far_);
    there = next_received_;
  }
  if (!far) return;
  std::string answer;
  append(answer, received_);
  if (!far->write_all(answer, kGreetWait).ok()) return;
  far->read_ahead(kMostIncoming);
  {
    std::lock_guard lock(mutex_);
    far_ = std::move(far);
    if (stopped_) ::shutdown(far_->fd(), SHUT_RDWR);
  }
  begin_again(there);
}

absl::Status LastingPump::greet(tls::Channel& far) {
  std::string hello;
  append(hello, options_.flow);
  append(hello, received_);
  GW_RETURN_IF_ERROR(far.write_all(hello, kGreetWait));
  std::array<char, 8> answer{};
  GW_RETURN_IF_ERROR(far.read_all(answer, Deadline::in(kGreetWait)));
  const auto there = word_in<uint64_t>(std::string_view(answer.data(), answer.size()));
  if (there == kNoSuchFlow) return absl::NotFoundError("it has ended there");
  begin_again(there);
  return absl::OkStatus();
}

// A connection, if there can be one now. False: there has to be one, and there never will.
//
// What lasts stays open here even if the other end has given up: whoever settles the migration
// decides what becomes of QEMU.
bool LastingPump::ready_to_go() {
  if (far_) return true;
  if (refused_) return !local_ended_ && !local_gone_;
  if (!options_.connect) {
    adopt();
    return true;
  }
  auto connected = options_.connect();
  absl::Status greeted = connected.status();
  if (connected.ok()) greeted = greet(**connected);
  refused_ = absl::IsNotFound(greeted);
  if (refused_) return lasting_;
  if (!greeted.ok()) return lasting_;
  (*connected)->read_ahead(kMostIncoming);
  std::lock_guard lock(mutex_);
  far_ = *std::move(connected);
  if (stopped_) ::shutdown(far_->fd(), SHUT_RDWR);
  return true;
}

void LastingPump::encode() {
  if (received_ - told_ >= kTellEvery || (received_ != told_ && incoming_.empty())) {
    append(wire_, kReceived);
    append(wire_, uint32_t{8});
    append(wire_, received_);
    told_ = received_;
  }
  const uint64_t end = acked_ + unacked_.size();
  if (sent_ < end) {
    const size_t size = std::min<size_t>(kMostData, end - sent_);
    append(wire_, kData);
    append(wire_, static_cast<uint32_t>(size));
    wire_.append(unacked_, sent_ - acked_, size);
    sent_ += size;
  } else if (local_ended_ && !end_sent_) {
    append(wire_, kEnd);
    append(wire_, uint32_t{0});
    end_sent_ = true;
  }
}

// False: the connection broke.
bool LastingPump::send_far() {
  if (wire_sent_ == wire_.size()) {
    wire_.clear();
    wire_sent_ = 0;
    encode();
  }
  const uint64_t before = far_->wire_sent();
  if (wire_sent_ < wire_.size()) {
    const iovec rest{wire_.data() + wire_sent_, wire_.size() - wire_sent_};
    const ssize_t taken = far_->writev({&rest, 1});
    if (taken < 0 && !only_later(taken)) return false;
    wire_sent_ += static_cast<size_t>(std::max<ssize_t>(taken, 0));
  }
  if (far_->unsent() && far_->flush() != 0 && errno != EAGAIN && errno != EINTR) return false;
  if (options_.traffic != nullptr) options_.traffic->sent(far_->wire_sent() - before);
  return true;
}

bool LastingPump::take_frame(uint32_t kind, std::string_view body) {
  switch (kind) {
    case kData:
      received_ += body.size();
      if (options_.traffic != nullptr) options_.traffic->received(body.size());
      if (local_gone_) return true;
      if (!options_.gated) {
        incoming_.append(options_.asked_for_pages ? around_.pass(body) : std::string(body));
        return true;
      }
      incoming_.append(gate_.pass(body));
      finish_held_ = gate_.held();
      return !gate_.broken();
    case kReceived: {
      if (body.size() != 8) return false;
      const auto there = word_in<uint64_t>(body);
      if (there < acked_ || there > sent_) return false;
      unacked_.erase(0, there - acked_);
      acked_ = there;
      return true;
    }
    case kEnd:
      far_ended_ = true;
      return body.empty();
    default:
      return false;
  }
}

bool LastingPump::take_frames() {
  size_t at = 0;
  bool well = true;
  while (well && frames_.size() - at >= kFrameHead) {
    const std::string_view rest = std::string_view(frames_).substr(at);
    const auto size = word_in<uint32_t>(rest.substr(4));
    if (size > kMostData) return false;
    if (rest.size() < kFrameHead + size) break;
    well = take_frame(word_in<uint32_t>(rest), rest.substr(kFrameHead, size));
    at += kFrameHead + size;
  }
  frames_.erase(0, at);
  return well;
}

// False: the connection broke.
bool LastingPump::receive_far() {
  if (incoming_.size() >= kMostIncoming) return true;
  const size_t before = frames_.size();
  frames_.resize(before + kMostData);
  const iovec room{frames_.data() + before, kMostData};
  const ssize_t got = far_->readv({&room, 1});
  frames_.resize(before + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  if (got == 0 || (got < 0 && !only_later(got))) return false;
  return take_frames();
}

// False: the local end broke.
bool LastingPump::read_local() {
  if (local_ended_ || local_gone_ || unacked_.size() >= kMostUnacked) return true;
  const size_t before = unacked_.size();
  unacked_.resize(before + kMostData);
  const ssize_t got = ::recv(local_.get(), unacked_.data() + before, kMostData, MSG_DONTWAIT);
  unacked_.resize(before + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  if (got > 0 || only_later(got)) return true;
  if (lasting_ && options_.local_may_go) {
    local_gone_ = true;
    return true;
  }
  local_ended_ = got == 0;
  return local_ended_;
}

bool LastingPump::write_local() {
  if (local_gone_) incoming_.clear();
  if (!incoming_.empty()) {
    const ssize_t taken =
        ::send(local_.get(), incoming_.data(), incoming_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken < 0 && !only_later(taken)) {
      if (!lasting_ || !options_.local_may_go) return false;
      local_gone_ = true;
      return true;
    }
    incoming_.erase(0, static_cast<size_t>(std::max<ssize_t>(taken, 0)));
  }
  if (far_ended_ && incoming_.empty() && !gate_.held() && !shut_) {
    shut_ = true;
    ::shutdown(local_.get(), SHUT_WR);
  }
  return true;
}

bool LastingPump::over() const {
  return local_ended_ && end_sent_ && unacked_.empty() && wire_sent_ == wire_.size() && shut_;
}

void LastingPump::wait(int64_t pause_ns) {
  const bool more = sent_ < acked_ + unacked_.size() || (local_ended_ && !end_sent_) ||
                    received_ - told_ >= kTellEvery || (received_ != told_ && incoming_.empty());
  const bool writes = far_ && (wire_sent_ < wire_.size() || far_->unsent() || more);
  const bool reads = !local_ended_ && !local_gone_ && unacked_.size() < kMostUnacked;
  const bool receives = far_ && incoming_.size() < kMostIncoming;
  std::array<pollfd, 3> polled{{
      {wake_.get(), POLLIN, 0},
      {local_.get(), static_cast<short>((reads ? POLLIN : 0) | (incoming_.empty() ? 0 : POLLOUT)),
       0},
      {far_ ? far_->fd() : -1,
       static_cast<short>((receives ? POLLIN : 0) | (writes && pause_ns == 0 ? POLLOUT : 0)), 0},
  }};
  for (pollfd& each : polled)
    if (each.events == 0) each.fd = -1;
  int timeout_ms = -1;
  if (pause_ns > 0) timeout_ms = static_cast<int>(std::min<int64_t>(pause_ns / 1'000'000 + 1, 100));
  if (!far_ && options_.connect && !refused_) timeout_ms = kPauseMs;
  if (receives && far_->unread()) timeout_ms = 0;
  if (::poll(polled.data(), polled.size(), timeout_ms) > 0 && polled[0].revents != 0) {
    uint64_t count = 0;
    if (::read(wake_.get(), &count, sizeof count) < 0) return;
  }
}

bool LastingPump::run() {
  bool well = true;
  while (!stopped_ && !over()) {
    if (opening_.exchange(false)) {
      incoming_.append(gate_.open());
      finish_held_ = false;
    }
    if (!ready_to_go()) {
      well = lasting_;
      break;
    }
    if (!read_local() || !write_local()) break;
    const int64_t pause_ns = options_.traffic == nullptr ? 0 : options_.traffic->wait_ns();
    if (far_ && ((pause_ns == 0 && !send_far()) || !receive_far())) {
      // All was said, and the other end has gone with that.
      const bool done = local_ended_ && far_ended_;
      drop_far();
      if (done && (!lasting_ || unacked_.empty())) break;
      if (!lasting_) {
        well = stopped_;
        break;
      }
      if (options_.connect) wait(1);
      continue;
    }
    if (!write_local()) break;
    if (!over() && !(refused_ && (local_ended_ || local_gone_))) wait(pause_ns);
  }
  stop();
  drop_far();
  return well;
}

}  // namespace godwit::vm
