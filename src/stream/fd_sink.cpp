// A sink over a descriptor or a channel. sendmsg(2) with MSG_NOSIGNAL on sockets, writev(2) on
// files; both may write a part, and take at most IOV_MAX (1024) pieces.
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "stream/stream.h"
#include "tls/channel.h"

namespace godwit::stream {
namespace {

constexpr size_t kSmallBytes = size_t{16} << 10;
constexpr size_t kBufferBytes = size_t{64} << 10;

class FdSink final : public Sink {
 public:
  FdSink(int fd, absl::Duration patience) : fd_(fd), patience_(patience) {
    struct stat st {};
    is_socket_ = ::fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
    buffer_.reserve(kBufferBytes);
  }
  FdSink(tls::Channel& channel, absl::Duration patience, absl::Duration every,
         std::function<absl::Status()> look)
      : fd_(channel.fd()),
        patience_(patience),
        every_(every),
        look_(std::move(look)),
        is_socket_(true),
        channel_(&channel) {
    buffer_.reserve(kBufferBytes);
  }

  absl::Status write(std::span<const iovec> parts) override {
    size_t bytes = 0;
    for (const iovec& part : parts) bytes += part.iov_len;
    if (bytes < kSmallBytes) {
      if (buffer_.size() + bytes > kBufferBytes) GW_RETURN_IF_ERROR(flush());
      for (const iovec& part : parts) {
        const auto* p = static_cast<const std::byte*>(part.iov_base);
        buffer_.insert(buffer_.end(), p, p + part.iov_len);
      }
      return absl::OkStatus();
    }
    parts_.clear();
    if (!buffer_.empty()) parts_.push_back({buffer_.data(), buffer_.size()});
    parts_.insert(parts_.end(), parts.begin(), parts.end());
    GW_RETURN_IF_ERROR(write_all());
    buffer_.clear();
    return absl::OkStatus();
  }

  bool proves_bytes() const override { return channel_ != nullptr && channel_->encrypted(); }

  absl::Status flush() override {
    if (buffer_.empty()) return absl::OkStatus();
    parts_.assign(1, {buffer_.data(), buffer_.size()});
    GW_RETURN_IF_ERROR(write_all());
    buffer_.clear();
    return absl::OkStatus();
  }

 private:
  // Writes parts_, which it uses up.
  absl::Status write_all() {
    std::span<iovec> left(parts_);
    Deadline deadline = Deadline::in(patience_);
    while (true) {
      while (!left.empty() && left.front().iov_len == 0) left = left.subspan(1);
      const bool unsent = channel_ != nullptr && channel_->unsent();
      if (left.empty() && !unsent) return absl::OkStatus();
      const ssize_t n = left.empty()
                            ? channel_->flush()
                            : write_some(left.first(std::min<size_t>(left.size(), IOV_MAX)));
      if (n < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return errno_status(errno, describe());
        GW_RETURN_IF_ERROR(wait(deadline));
        continue;
      }
      deadline = Deadline::in(patience_);
      for (size_t done = static_cast<size_t>(n); done > 0;) {
        iovec& part = left.front();
        const size_t step = std::min(done, part.iov_len);
        part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
        part.iov_len -= step;
        done -= step;
        if (part.iov_len == 0) left = left.subspan(1);
      }
    }
  }

  ssize_t write_some(std::span<iovec> parts) const {
    if (channel_ != nullptr) return channel_->writev(parts);
    if (!is_socket_) return ::writev(fd_, parts.data(), static_cast<int>(parts.size()));
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    return ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  }

  absl::Status wait(const Deadline& deadline) const {
    pollfd poll{.fd = fd_, .events = POLLOUT, .revents = 0};
    const absl::Duration wait = std::min(every_, patience_);
    // EINTR: the caller tries again and comes back with the same deadline.
    const int wait_ms = std::min(deadline.remaining_ms(), Deadline::in(wait).remaining_ms());
    if (::poll(&poll, 1, wait_ms) != 0) return absl::OkStatus();
    if (deadline.passed()) {
      return make_error(absl::StatusCode::kDeadlineExceeded, "{}: the peer took nothing for {} s",
                        describe(), absl::ToInt64Seconds(patience_));
    }
    return look_ ? look_() : absl::OkStatus();
  }

  std::string describe() const {
    return fmt::format("{}({})", is_socket_ ? "sendmsg" : "writev", fd_);
  }

  const int fd_;
  const absl::Duration patience_;
  const absl::Duration every_ = absl::InfiniteDuration();
  const std::function<absl::Status()> look_;
  bool is_socket_ = false;
  tls::Channel* channel_ = nullptr;
  std::vector<std::byte> buffer_;
  std::vector<iovec> parts_;
};

}  // namespace

std::unique_ptr<Sink> fd_sink(int fd, absl::Duration patience) {
  return std::make_unique<FdSink>(fd, patience);
}

std::unique_ptr<Sink> channel_sink(tls::Channel& channel, absl::Duration patience,
                                   absl::Duration every, std::function<absl::Status()> look) {
  return std::make_unique<FdSink>(channel, patience, every, std::move(look));
}

}  // namespace godwit::stream
