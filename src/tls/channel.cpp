#include "tls/channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "base/status.h"

namespace godwit::tls {
namespace {

constexpr std::byte kCloseNotify{0};
constexpr std::byte kKeyUpdate{24};

// As TCP ends a connection on which nothing is acknowledged: the link is gone, and not the peer.
bool of_the_link(int error) {
  return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
}

size_t size_of(std::span<const iovec> parts) {
  size_t bytes = 0;
  for (const iovec& part : parts) bytes += part.iov_len;
  return bytes;
}

// The first `bytes` of what is left after `skipped`.
void part_of(std::span<const iovec> parts, size_t skipped, size_t bytes, std::vector<iovec>& to) {
  to.clear();
  for (const iovec& part : parts) {
    if (skipped >= part.iov_len) {
      skipped -= part.iov_len;
      continue;
    }
    const size_t some = std::min(part.iov_len - skipped, bytes);
    if (some == 0) return;
    to.push_back({static_cast<std::byte*>(part.iov_base) + skipped, some});
    skipped = 0;
    bytes -= some;
  }
}

ssize_t send_parts(int fd, std::span<const iovec> parts) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  return ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

Channel::Channel(UniqueFd fd, const Session& session)
    : fd_(std::move(fd)),
      sealer_(std::make_unique<Sealer>(session.sending)),
      opener_(std::make_unique<Opener>(session.receiving)),
      in_(kMaxRecord) {}

Channel::~Channel() { end(); }

void Channel::end() {
  if (!fd_ || std::exchange(said_end_, true)) return;
  say_end();
  ::shutdown(fd_.get(), SHUT_WR);
}

void Channel::say_end() {
  if (!encrypted() || write_failed_ || unsent()) return;
  std::byte alert[] = {std::byte{1}, kCloseNotify};  // a warning (RFC 8446, 6)
  const iovec all{alert, sizeof alert};
  std::byte record[kOverhead + sizeof alert];
  const size_t bytes = sealer_->seal(Content::kAlert, {&all, 1}, record);
  // A peer that does not hear it is told by the socket's end.
  (void)!::send(fd_.get(), record, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
}

absl::Status Channel::failure(int error, std::string_view call) {
  switch (error) {
    case EBADMSG:
      return make_error(absl::StatusCode::kDataLoss,
                        "{}: TLS: what came is not what the peer has sent", call);
    case ECONNABORTED:
      return make_error(absl::StatusCode::kUnavailable, "{}: TLS: the connection was cut off",
                        call);
    case EACCES:
      return make_error(absl::StatusCode::kUnavailable,
                        "{}: TLS: the peer has refused this end's certificate, or broken it off",
                        call);
    default:
      return errno_status(error, call);
  }
}

ssize_t Channel::fail(int error) {
  read_error_ = error;
  errno = error;
  return -1;
}

void Channel::read_ahead(size_t bytes) {
  if (!encrypted()) return;
  ahead_ = bytes;
  in_.resize(std::max(in_.size(), bytes + kMaxRecord));
}

std::span<const std::byte> Channel::next_record() const {
  const std::span<const std::byte> have(in_.data() + in_begin_, in_end_ - in_begin_);
  const size_t bytes = Opener::record_bytes(have);
  return bytes == 0 || bytes > have.size() ? std::span<const std::byte>() : have.first(bytes);
}

bool Channel::unread() const { return plain_begin_ < plain_.size() || !next_record().empty(); }

// As recv(2).
ssize_t Channel::receive_records() {
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  if (in_begin_ > 0 && in_.size() - in_end_ < kMaxRecord) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= std::exchange(in_begin_, 0);
  }
  size_t room = in_.size() - in_end_;
  if (ahead_ == 0) {
    const size_t have = in_end_ - in_begin_;
    const size_t whole = Opener::record_bytes({in_.data() + in_begin_, have});
    room = (whole == 0 ? kHeader : whole) - have;
  }
  const ssize_t n = ::recv(fd_.get(), in_.data() + in_end_, room, MSG_DONTWAIT);
  if (n > 0) in_end_ += static_cast<size_t>(n);
  return n;
}

bool Channel::heed(Content type, std::span<const std::byte> message) {
  if (type == Content::kHandshake && message.size() == 5 && message[0] == kKeyUpdate &&
      message[4] == std::byte{0}) {
    opener_->key_updated();
    return true;
  }
  if (type != Content::kAlert || message.size() != 2) {
    fail(EBADMSG);
    return false;
  }
  if (message[1] == kCloseNotify)
    ended_ = true;
  else
    fail(EACCES);
  return false;
}

ssize_t Channel::readv(std::span<const iovec> to) {
  if (!encrypted()) {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(to.data());
    message.msg_iovlen = to.size();
    return ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
  }
  const size_t wanted = size_of(to);
  size_t done = 0;
  while (done < wanted) {
    if (plain_begin_ < plain_.size()) {
      part_of(to, done, plain_.size() - plain_begin_, room_);
      for (const iovec& part : room_) {
        std::memcpy(part.iov_base, plain_.data() + plain_begin_, part.iov_len);
        plain_begin_ += part.iov_len;
        done += part.iov_len;
      }
      continue;
    }
    const std::span<const std::byte> record = next_record();
    if (record.empty()) {
      if (done > 0) break;
      if (read_error_ != 0) return fail(read_error_);
      if (ended_) return 0;
      if (Opener::record_bytes({in_.data() + in_begin_, in_end_ - in_begin_}) ==
          std::numeric_limits<size_t>::max())
        return fail(EBADMSG);
      const ssize_t n = receive_records();
      if (n == 0) return fail(ECONNABORTED);
      if (n < 0) return n;
      continue;
    }
    const size_t bytes = record.size() - kOverhead;
    const bool fits = bytes <= wanted - done;
    if (!fits && done > 0) break;
    plain_begin_ = 0;
    plain_.resize(fits ? 0 : bytes);
    if (fits)
      part_of(to, done, bytes, room_);
    else
      room_.assign(1, {plain_.data(), bytes});
    const Content type = opener_->open(record, room_);
    in_begin_ += record.size();
    if (type == Content::kData) {
      if (fits) done += bytes;
      continue;
    }
    // Alerts and the like are shorter than what callers ask for at once, but for some.
    std::vector<std::byte> message;
    for (const iovec& part : room_) {
      const auto* p = static_cast<const std::byte*>(part.iov_base);
      message.insert(message.end(), p, p + part.iov_len);
    }
    plain_.clear();
    if (type == Content::kInvalid) fail(EBADMSG);
    if (type != Content::kInvalid && heed(type, message)) continue;
    in_begin_ = in_end_ = 0;
  }
  return static_cast<ssize_t>(done);
}

// Bytes of `from` that are now in out_; 0: the cipher failed.
size_t Channel::seal(std::span<const iovec> from) {
  const size_t wanted = std::min(size_of(from), burst_);
  const size_t records = (wanted + kMaxPlain - 1) / kMaxPlain;
  // One more for the key's next generation.
  out_.resize(wanted + (records + 1) * kOverhead + 5);
  size_t end = 0;
  for (size_t done = 0; done < wanted;) {
    if (sealer_->needs_update()) {
      const size_t bytes = sealer_->seal_update(out_.data() + end);
      if (bytes == 0) return 0;
      end += bytes;
    }
    const size_t some = std::min(wanted - done, kMaxPlain);
    part_of(from, done, some, piece_);
    const size_t bytes = sealer_->seal(Content::kData, piece_, out_.data() + end);
    if (bytes == 0) return 0;
    end += bytes;
    done += some;
  }
  out_.resize(end);
  sent_ = 0;
  return wanted;
}

int Channel::flush() {
  while (unsent()) {
    const ssize_t n =
        ::send(fd_.get(), out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      if (errno != EAGAIN) write_failed_ = true;
      return -1;
    }
    sent_ += static_cast<size_t>(n);
    wire_sent_ += static_cast<uint64_t>(n);
  }
  return 0;
}

ssize_t Channel::writev(std::span<const iovec> from) {
  if (!encrypted()) {
    const ssize_t n = send_parts(fd_.get(), from);
    if (n > 0) wire_sent_ += static_cast<uint64_t>(n);
    return n;
  }
  if (flush() != 0) return -1;
  const size_t taken = seal(from);
  if (taken == 0) {
    write_failed_ = true;
    out_.clear();
    sent_ = 0;
    errno = size_of(from) == 0 ? EINVAL : EIO;
    return -1;
  }
  if (flush() != 0 && errno != EAGAIN) return -1;
  return static_cast<ssize_t>(taken);
}

absl::Status Channel::write_all(std::span<const iovec> from, absl::Duration patience) {
  std::vector<iovec> left(from.begin(), from.end());
  const size_t wanted = size_of(from);
  Deadline deadline = Deadline::in(patience);
  for (size_t done = 0; done < wanted || unsent();) {
    const uint64_t before = wire_sent_;
    ssize_t n = 0;
    if (done < wanted) {
      part_of(from, done, wanted - done, left);
      n = writev(left);
      if (n > 0) done += static_cast<size_t>(n);
    } else {
      n = flush();
    }
    if (wire_sent_ != before) deadline = Deadline::in(patience);
    if (n >= 0 && !unsent()) continue;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && of_the_link(errno)) return errno_status(errno, "send(peer)");
    if (n < 0 && errno != EAGAIN)
      return make_error(absl::StatusCode::kUnavailable, "send(peer): {}", std::strerror(errno));
    pollfd one{fd_.get(), POLLOUT, 0};
    if (::poll(&one, 1, deadline.remaining_ms()) == 0 && deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "send(peer): nothing was taken for {}",
                        absl::FormatDuration(patience));
  }
  return absl::OkStatus();
}

absl::Status Channel::write_all(std::string_view bytes, absl::Duration patience) {
  const iovec all{const_cast<char*>(bytes.data()), bytes.size()};
  return write_all(std::span(&all, 1), patience);
}

absl::Status Channel::read_all(std::span<char> to, Deadline deadline) {
  while (!to.empty()) {
    const iovec all{to.data(), to.size()};
    const ssize_t n = readv({&all, 1});
    if (n > 0) {
      to = to.subspan(static_cast<size_t>(n));
      continue;
    }
    if (n == 0) return absl::UnavailableError("the peer closed the connection");
    if (errno == EINTR) continue;
    if (of_the_link(errno)) return errno_status(errno, "recv(peer)");
    if (errno != EAGAIN) {
      const absl::Status why = failure(errno, "recv(peer)");
      return errno_of(why) == 0 ? why
                                : make_error(absl::StatusCode::kUnavailable, "{}", message_of(why));
    }
    pollfd one{fd_.get(), POLLIN, 0};
    const int ready = ::poll(&one, 1, deadline.remaining_ms());
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll()");
    if (ready == 0 && deadline.passed())
      return absl::DeadlineExceededError("receive: no answer from the peer in time");
  }
  return absl::OkStatus();
}

absl::StatusOr<Channel::Handed> Channel::hand_over() && {
  if (in_begin_ < in_end_ || plain_begin_ < plain_.size() || unsent() || read_error_ != 0 ||
      write_failed_)
    return absl::FailedPreconditionError("a connection with bytes under way is not handed over");
  Handed handed;
  if (encrypted()) handed.session = encode({sealer_->direction(), opener_->direction()});
  handed.fd = std::move(fd_);
  return handed;
}

absl::StatusOr<std::unique_ptr<Channel>> Channel::take_over(UniqueFd fd,
                                                            const std::string& session) {
  if (session.empty()) return std::make_unique<Channel>(std::move(fd));
  GW_ASSIGN_OR_RETURN(const Session keys, decode(session));
  auto made = std::make_unique<Channel>(std::move(fd), keys);
  if (!made->sealer_->usable() || !made->opener_->usable())
    return absl::InternalError("TLS: there is no AES-128-GCM");
  return made;
}

}  // namespace godwit::tls
