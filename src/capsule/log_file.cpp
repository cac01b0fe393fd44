#include "capsule/log_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>

#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {
namespace {

constexpr size_t kMaxLine = 16384;
constexpr int64_t kSecond = 1'000'000'000;

std::string time_text(int64_t unix_ns) {
  const time_t seconds = unix_ns / kSecond;
  tm utc{};
  ::gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", utc.tm_year + 1900,
                     utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                     unix_ns % kSecond);
}

}  // namespace

absl::StatusOr<LogWriter> LogWriter::open(std::string path, uint64_t max_bytes) {
  GW_ASSIGN_OR_RETURN(UniqueFd fd, kernel::open(path, O_WRONLY | O_CREAT | O_APPEND, 0600));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_status(errno, fmt::format("fstat({})", path));
  return LogWriter(std::move(path), std::move(fd), static_cast<uint64_t>(info.st_size), max_bytes);
}

absl::Status LogWriter::append(int stream, std::string_view bytes, int64_t unix_ns) {
  std::string& partial = partial_[static_cast<size_t>(stream)];
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const size_t take =
        std::min(end == std::string_view::npos ? bytes.size() : end, kMaxLine - partial.size());
    partial += bytes.substr(0, take);
    bytes.remove_prefix(take);
    const bool ended = !bytes.empty() && bytes[0] == '\n';
    if (ended) bytes.remove_prefix(1);
    if (!ended && partial.size() < kMaxLine) break;
    GW_RETURN_IF_ERROR(line(stream, partial, ended, unix_ns));
    partial.clear();
  }
  return write_out();
}

absl::Status LogWriter::flush(int64_t unix_ns) {
  for (const int stream : {1, 2}) {
    std::string& partial = partial_[static_cast<size_t>(stream)];
    if (partial.empty()) continue;
    GW_RETURN_IF_ERROR(line(stream, partial, false, unix_ns));
    partial.clear();
  }
  return write_out();
}

absl::Status LogWriter::line(int stream, std::string_view text, bool ended, int64_t unix_ns) {
  out_ += fmt::format("{} {} {} {}\n", time_text(unix_ns), stream == 1 ? "stdout" : "stderr",
                      ended ? 'F' : 'P', text);
  return out_.size() < (size_t{1} << 16) ? absl::OkStatus() : write_out();
}

absl::Status LogWriter::write_out() {
  if (out_.empty()) return absl::OkStatus();
  if (bytes_ + out_.size() > max_bytes_ && bytes_ > 0) {
    if (::rename(path_.c_str(), (path_ + ".1").c_str()) != 0) {
      return errno_status(errno, fmt::format("rename(\"{}\")", path_));
    }
    GW_ASSIGN_OR_RETURN(fd_, kernel::open(path_, O_WRONLY | O_CREAT | O_APPEND, 0600));
    bytes_ = 0;
  }
  // A full disk loses output rather than stop the service.
  const ssize_t n = ::write(fd_.get(), out_.data(), out_.size());
  const int error = errno;
  const size_t wanted = out_.size();
  out_.clear();
  if (n < 0) return errno_status(error, fmt::format("write(\"{}\")", path_));
  bytes_ += static_cast<uint64_t>(n);
  if (static_cast<size_t>(n) != wanted) {
    return make_error(absl::StatusCode::kDataLoss, "write(\"{}\"): {} of {} bytes", path_, n,
                      wanted);
  }
  return absl::OkStatus();
}

absl::StatusOr<LogLine> parse_log_line(std::string_view line) {
  // "2026-01-31T12:00:00.123456789Z stdout F text": fixed places up to the text.
  constexpr size_t kTime = 30;
  constexpr size_t kText = 40;
  tm utc{};
  long nanoseconds = 0;
  const std::string head(line.substr(0, kTime));
  LogLine parsed;
  const bool good =
      line.size() >= kText && line[kTime] == ' ' && line[kText - 3] == ' ' &&
      line[kText - 1] == ' ' &&
      std::sscanf(head.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d.%9ldZ", &utc.tm_year, &utc.tm_mon,
                  &utc.tm_mday, &utc.tm_hour, &utc.tm_min, &utc.tm_sec, &nanoseconds) == 7;
  if (good && line.substr(kTime + 1, 6) == "stderr") parsed.stream = 2;
  if (!good || (parsed.stream == 1 && line.substr(kTime + 1, 6) != "stdout") ||
      (line[kText - 2] != 'F' && line[kText - 2] != 'P')) {
    return absl::DataLossError("a line of the log that cannot be read");
  }
  utc.tm_year -= 1900;
  utc.tm_mon -= 1;
  parsed.unix_ns = int64_t{::timegm(&utc)} * kSecond + nanoseconds;
  parsed.ended = line[kText - 2] == 'F';
  parsed.text = std::string(line.substr(kText));
  return parsed;
}

absl::StatusOr<uint64_t> read_log(const std::string& path, uint64_t from,
                                  std::vector<LogLine>& lines) {
  GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open(path, O_RDONLY));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_status(errno, fmt::format("fstat({})", path));
  if (static_cast<uint64_t>(info.st_size) < from) from = 0;
  std::string text(static_cast<size_t>(info.st_size) - from, '\0');
  const ssize_t n = ::pread(fd.get(), text.data(), text.size(), static_cast<off_t>(from));
  if (n < 0) return errno_status(errno, fmt::format("pread(\"{}\")", path));
  text.resize(static_cast<size_t>(n));
  size_t at = 0;
  while (true) {
    const size_t end = text.find('\n', at);
    if (end == std::string::npos) break;
    // A disk that was full leaves a torn line: skip it, the rest is good.
    auto parsed = parse_log_line(std::string_view(text).substr(at, end - at));
    if (parsed.ok()) lines.push_back(*std::move(parsed));
    at = end + 1;
  }
  return from + at;
}

}  // namespace godwit::capsule
