// The service's output, one line a line, as Kubernetes' container runtimes write it:
//
//   2026-01-31T12:00:00.123456789Z stdout F text of the line
//
// F: the line ended; P: the rest follows in the next line of that stream. At kMaxLogBytes the file
// becomes "<path>.1" and a new one is begun.
#ifndef GODWIT_CAPSULE_LOG_FILE_H_
#define GODWIT_CAPSULE_LOG_FILE_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::capsule {

inline constexpr uint64_t kMaxLogBytes = uint64_t{64} << 20;

class LogWriter {
 public:
  static absl::StatusOr<LogWriter> open(std::string path, uint64_t max_bytes = kMaxLogBytes);
  // `stream` is 1 (stdout) or 2 (stderr).
  absl::Status append(int stream, std::string_view bytes, int64_t unix_ns);
  absl::Status flush(int64_t unix_ns);  // unfinished lines

 private:
  LogWriter(std::string path, UniqueFd fd, uint64_t bytes, uint64_t max_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), bytes_(bytes), max_bytes_(max_bytes) {}
  absl::Status line(int stream, std::string_view text, bool ended, int64_t unix_ns);
  absl::Status write_out();
  std::string path_;
  UniqueFd fd_;
  uint64_t bytes_;
  uint64_t max_bytes_;
  std::array<std::string, 3> partial_;
  std::string out_;
};

struct LogLine {
  int64_t unix_ns = 0;
  int stream = 1;
  bool ended = true;  // false: no newline after the text
  std::string text;
};

// One line of the file, without its newline.
absl::StatusOr<LogLine> parse_log_line(std::string_view line);
// Appends the complete lines from byte `from` on and returns where the next read goes on. A file
// that has become shorter was rotated: it is read from its start.
absl::StatusOr<uint64_t> read_log(const std::string& path, uint64_t from,
                                  std::vector<LogLine>& lines);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_LOG_FILE_H_
