// A feed over a descriptor or a channel: what is asked for and, behind it in the same call, up to
// 64 KiB of what follows. So small frames cost less than one read each, and page data goes to its
// place without a copy here.
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "base/clock.h"
#include "base/status.h"
#include "stream/stream.h"
#include "tls/channel.h"

namespace godwit::stream {
namespace {

constexpr size_t kBufferBytes = size_t{64} << 10;

class FdFeed final : public Feed {
 public:
  FdFeed(int fd, absl::Duration patience) : fd_(fd), patience_(patience), buffer_(kBufferBytes) {
    struct stat st {};
    const bool known = ::fstat(fd, &st) == 0;
    is_socket_ = known && S_ISSOCK(st.st_mode);
    is_file_ = known && S_ISREG(st.st_mode);
  }
  FdFeed(tls::Channel& channel, absl::Duration patience)
      : fd_(channel.fd()),
        patience_(patience),
        is_socket_(true),
        channel_(&channel),
        buffer_(kBufferBytes) {}

  absl::Status read(std::span<std::byte> to) override {
    const iovec part = {to.data(), to.size()};
    return readv({&part, 1});
  }

  absl::Status readv(std::span<const iovec> to) override {
    parts_.assign(to.begin(), to.end());
    std::span<iovec> left(parts_);
    size_t wanted = 0;
    for (const iovec& part : left) wanted += part.iov_len;

    size_t done = take_buffered(left);
    Deadline deadline = Deadline::in(patience_);
    while (done < wanted) {
      // All of the buffer is free here: it was used up before.
      const size_t some = std::min<size_t>(left.size(), IOV_MAX - 1);
      pieces_.assign(left.begin(), left.begin() + static_cast<ptrdiff_t>(some));
      if (some == left.size()) pieces_.push_back({buffer_.data(), buffer_.size()});
      const ssize_t n = read_some();
      if (n == 0) {
        return done == 0 ? make_error(absl::StatusCode::kOutOfRange, "{}: end", describe())
                         : make_error(absl::StatusCode::kDataLoss, "{}: ends after {} of {} bytes",
                                      describe(), done, wanted);
      }
      if (n < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return tls::Channel::failure(errno, describe());
        GW_RETURN_IF_ERROR(wait(deadline));
        continue;
      }
      deadline = Deadline::in(patience_);
      const size_t placed = std::min(static_cast<size_t>(n), wanted - done);
      advance(left, placed);
      done += placed;
      begin_ = 0;
      end_ = static_cast<size_t>(n) - placed;
    }
    return absl::OkStatus();
  }

  bool proves_bytes() const override { return channel_ != nullptr && channel_->encrypted(); }

  absl::Status skip(uint64_t bytes) override {
    const size_t here = std::min<uint64_t>(bytes, end_ - begin_);
    begin_ += here;
    bytes -= here;
    if (!is_file_) return Feed::skip(bytes);
    if (bytes > 0 && ::lseek(fd_, static_cast<off_t>(bytes), SEEK_CUR) < 0)
      return errno_status(errno, fmt::format("lseek({}, {})", fd_, bytes));
    return absl::OkStatus();
  }

 private:
  size_t take_buffered(std::span<iovec>& left) {
    size_t done = 0;
    while (begin_ < end_ && !left.empty()) {
      const size_t step = std::min(end_ - begin_, left.front().iov_len);
      std::memcpy(left.front().iov_base, buffer_.data() + begin_, step);
      begin_ += step;
      done += step;
      advance(left, step);
      if (!left.empty() && left.front().iov_len == 0) left = left.subspan(1);
    }
    return done;
  }

  static void advance(std::span<iovec>& left, size_t bytes) {
    while (bytes > 0) {
      iovec& part = left.front();
      const size_t step = std::min(bytes, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
      part.iov_len -= step;
      bytes -= step;
      if (part.iov_len == 0) left = left.subspan(1);
    }
  }

  ssize_t read_some() {
    if (channel_ != nullptr) return channel_->readv(pieces_);
    if (!is_socket_) return ::readv(fd_, pieces_.data(), static_cast<int>(pieces_.size()));
    msghdr message{};
    message.msg_iov = pieces_.data();
    message.msg_iovlen = pieces_.size();
    return ::recvmsg(fd_, &message, MSG_DONTWAIT);
  }

  absl::Status wait(const Deadline& deadline) const {
    pollfd poll{.fd = fd_, .events = POLLIN, .revents = 0};
    // EINTR: the caller tries again and comes back with the same deadline.
    if (::poll(&poll, 1, deadline.remaining_ms()) == 0) {
      return make_error(absl::StatusCode::kDeadlineExceeded, "{}: the peer sent nothing for {} s",
                        describe(), absl::ToInt64Seconds(patience_));
    }
    return absl::OkStatus();
  }

  std::string describe() const {
    return fmt::format("{}({})", is_socket_ ? "recvmsg" : "readv", fd_);
  }

  const int fd_;
  const absl::Duration patience_;
  bool is_socket_ = false;
  tls::Channel* channel_ = nullptr;
  bool is_file_ = false;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  std::vector<iovec> parts_;
  std::vector<iovec> pieces_;
};

}  // namespace

std::unique_ptr<Feed> fd_feed(int fd, absl::Duration patience) {
  return std::make_unique<FdFeed>(fd, patience);
}

std::unique_ptr<Feed> channel_feed(tls::Channel& channel, absl::Duration patience) {
  return std::make_unique<FdFeed>(channel, patience);
}

}  // namespace godwit::stream
