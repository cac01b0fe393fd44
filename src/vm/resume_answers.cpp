// QEMU's migration stream and its return path, as migration/savevm.c and migration/migration.c of
// QEMU 7.2 have them: commands are 0x08, code(2), size(2), data(size); answers are code(2),
// size(2), data(size); all big endian.
#include "vm/resume_answers.h"

#include <endian.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "base/status.h"

namespace godwit::vm {
namespace {

constexpr char kCommand = 0x08;
constexpr uint16_t kPostCopyResume = 9;
constexpr uint16_t kReceivedBitmap = 10;
constexpr size_t kHead = 5;
// MIG_RP_MSG_RESUME_ACK with MIGRATION_RESUME_ACK_VALUE. Each lets QEMU's thread take one step, as
// the bitmap of a block would, whose size we do not know: one for each block that it asks for, no
// more, for what is too many would count in its next recovery.
constexpr std::array<char, 8> kAnswer = {0, 6, 0, 4, 0, 0, 0, 1};

uint16_t half_at(std::string_view bytes, size_t at) {
  uint16_t half = 0;
  std::memcpy(&half, bytes.data() + at, sizeof half);
  return be16toh(half);
}

// Takes one command from the front. 0: it is not complete.
absl::StatusOr<uint16_t> take_command(std::string& bytes) {
  if (bytes.empty()) return uint16_t{0};
  if (bytes[0] != kCommand)
    return make_error(absl::StatusCode::kInvalidArgument,
                      "QEMU sent 0x{:02x} where it resumes post-copy",
                      static_cast<unsigned char>(bytes[0]));
  if (bytes.size() < kHead) return uint16_t{0};
  const size_t whole = kHead + half_at(bytes, 3);
  if (bytes.size() < whole) return uint16_t{0};
  const uint16_t command = half_at(bytes, 1);
  bytes.erase(0, whole);
  if (command == kPostCopyResume || command == kReceivedBitmap) return command;
  return make_error(absl::StatusCode::kInvalidArgument,
                    "QEMU sent command {} where it resumes post-copy", command);
}

}  // namespace

absl::Status answer_resume(int fd, Deadline deadline) {
  std::string bytes;
  for (;;) {
    for (;;) {
      GW_ASSIGN_OR_RETURN(const uint16_t command, take_command(bytes));
      if (command == kPostCopyResume) return absl::OkStatus();
      if (command == 0) break;
      // Some bytes for each block: the socket has room for them.
      if (::send(fd, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return errno_status(errno, "send() to QEMU");
    }
    pollfd polled{fd, POLLIN, 0};
    if (deadline.passed())
      return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU does not resume post-copy");
    if (::poll(&polled, 1, deadline.remaining_ms()) <= 0) continue;
    std::array<char, 4096> some{};
    const ssize_t got = ::recv(fd, some.data(), some.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got < 0) return errno_status(errno, "recv() from QEMU");
    if (got == 0) return absl::OutOfRangeError("QEMU closed it");
    bytes.append(some.data(), static_cast<size_t>(got));
  }
}

}  // namespace godwit::vm
