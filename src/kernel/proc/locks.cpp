#include "kernel/proc/locks.h"

#include <string>
#include <utility>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

constexpr std::pair<std::string_view, FileLock::Kind> kKinds[] = {
    {"POSIX", FileLock::Kind::kPosix}, {"OFDLCK", FileLock::Kind::kOpenFile},
    {"FLOCK", FileLock::Kind::kFlock}, {"LEASE", FileLock::Kind::kLease},
    {"DELEG", FileLock::Kind::kLease}, {"LAYOUT", FileLock::Kind::kLease},
};

std::string_view next_word(TextScanner& s) {
  s.skip_blanks();
  return s.word();
}

bool parse_rest(TextScanner& s, FileLock& lock) {
  std::string_view name = next_word(s);
  if (name == "->") {
    lock.waits = true;
    name = next_word(s);
  }
  for (const auto& [text, kind] : kKinds)
    if (name == text) lock.kind = kind;
  if (lock.kind == FileLock::Kind::kInvalid) return false;
  next_word(s);  // ADVISORY, or how far a lease is
  const std::string_view type = next_word(s);
  // A lease that is being broken shows as what it will be.
  if (type != "READ" && type != "WRITE" && type != "UNLCK") return false;
  lock.exclusive = type == "WRITE";
  s.skip_blanks();
  if (!s.number(lock.pid.value)) return false;
  next_word(s);  // the file
  s.skip_blanks();
  if (!s.number(lock.start)) return false;
  s.skip_blanks();
  if (s.rest().starts_with("EOF")) return true;
  int64_t last = 0;
  if (!s.number(last) || last < lock.start) return false;
  lock.length = last - lock.start + 1;
  return true;
}

}  // namespace

absl::StatusOr<FileLock> parse_lock(std::string_view line) {
  FileLock lock;
  TextScanner s(line);
  int64_t number = 0;
  s.skip_blanks();
  if (!s.number(number) || !s.literal(":") || !parse_rest(s, lock)) {
    return make_error(absl::StatusCode::kInvalidArgument, "no line of a file lock: \"{}\"",
                      line.substr(0, 200));
  }
  return lock;
}

absl::StatusOr<absl::flat_hash_set<HostPid>> record_lock_owners() {
  GW_ASSIGN_OR_RETURN(const std::string text, read_file("/proc/locks"));
  absl::flat_hash_set<HostPid> owners;
  TextScanner lines(text);
  while (!lines.at_end()) {
    const auto lock = parse_lock(lines.line());
    if (lock.ok() && lock->kind == FileLock::Kind::kPosix && !lock->waits) owners.insert(lock->pid);
  }
  return owners;
}

}  // namespace godwit::kernel
