// A connected socket, plain or with TLS's records on it (record.h): reads and writes as recvmsg(2)
// and sendmsg(2) with MSG_DONTWAIT do, so that everything above is the same for both.
//
// What TLS adds for a caller that polls: there may be decrypted bytes that poll(2) does not know of
// (unread()), and encrypted ones that wait for room in the socket (unsent()).
//
// Thread rule: one thread reads while one writes.
#ifndef GODWIT_TLS_CHANNEL_H_
#define GODWIT_TLS_CHANNEL_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "tls/handshake.h"
#include "tls/record.h"

namespace godwit::tls {

class Channel {
 public:
  // Plain.
  explicit Channel(UniqueFd fd) : fd_(std::move(fd)) {}
  Channel(UniqueFd fd, const Session& session);
  // Says that nothing more comes (close_notify), unless it was broken or given away.
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  int fd() const { return fd_.get(); }
  bool encrypted() const { return sealer_ != nullptr; }

  // Bytes that were read; 0: the peer has ended it; -1: errno, EAGAIN when nothing is there.
  // EBADMSG: what came is not what the peer sent. ECONNABORTED: it was cut off, without the peer's
  // word that nothing more comes. A buffer may be written to beyond what was read.
  ssize_t readv(std::span<const iovec> to);
  // Bytes that were taken, of which some may be unsent(); -1: errno, EAGAIN when there is no room.
  ssize_t writev(std::span<const iovec> from);
  // Sends what is unsent. 0, or -1: errno.
  int flush();
  bool unread() const;
  bool unsent() const { return sent_ < out_.size(); }
  // What `error`, an errno of the calls above, means here. `call` names it.
  static absl::Status failure(int error, std::string_view call);

  // All of it, or an error: kUnavailable, as of the peer; kDeadlineExceeded when nothing was taken
  // for `patience`. With an errno: TCP's, of a link that is gone.
  absl::Status write_all(std::span<const iovec> from, absl::Duration patience);
  absl::Status write_all(std::string_view bytes, absl::Duration patience);
  // kUnavailable also at the end.
  absl::Status read_all(std::span<char> to, Deadline deadline);

  // Says that nothing more comes from here (close_notify); reading goes on.
  void end();

  // For bulk: up to so many bytes are read from the socket at once, and encrypted at once. Without
  // it exactly one record is, and after a whole message poll(2) tells the truth.
  void read_ahead(size_t bytes);
  void write_ahead(size_t bytes) { burst_ = bytes; }

  // Keys are changed after so many records of ours: for tests, the default does for any key.
  void update_key_after(uint64_t records) { sealer_->update_after(records); }

  // Bytes on the wire, TLS's included; to be read by any thread.
  uint64_t wire_sent() const { return wire_sent_; }

  // Gives the connection away, to be made into a Channel elsewhere. Nothing may be unread or
  // unsent. The session is empty for a plain one.
  struct Handed {
    UniqueFd fd;
    std::string session;  // encode()d
  };
  absl::StatusOr<Handed> hand_over() &&;
  static absl::StatusOr<std::unique_ptr<Channel>> take_over(UniqueFd fd,
                                                            const std::string& session);

 private:
  void say_end();
  ssize_t receive_records();
  // What a record that is no data says. False: the connection is over, errno has it, 0 at a clean
  // end.
  bool heed(Content type, std::span<const std::byte> message);
  ssize_t fail(int error);
  std::span<const std::byte> next_record() const;
  size_t seal(std::span<const iovec> from);

  UniqueFd fd_;
  std::unique_ptr<Sealer> sealer_;
  std::unique_ptr<Opener> opener_;
  size_t ahead_ = 0;  // 0: one record at a time
  size_t burst_ = kMaxPlain;
  std::vector<std::byte> in_;  // records, from in_begin_ to in_end_
  size_t in_begin_ = 0;
  size_t in_end_ = 0;
  std::vector<std::byte> plain_;  // of one record, from plain_begin_ on
  size_t plain_begin_ = 0;
  std::vector<iovec> room_;
  bool ended_ = false;  // the peer said so
  int read_error_ = 0;
  std::vector<std::byte> out_;
  size_t sent_ = 0;
  std::vector<iovec> piece_;
  bool write_failed_ = false;
  bool said_end_ = false;
  std::atomic<uint64_t> wire_sent_{0};
};

}  // namespace godwit::tls

#endif  // GODWIT_TLS_CHANNEL_H_
