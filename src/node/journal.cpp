#include "node/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/syscalls.h"

namespace godwit::node {
namespace {

constexpr char kUnfinished[] = ".new";
constexpr char kSecond[] = ".second";

absl::Status sync_folder(const std::string& folder) {
  UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) return errno_status(errno, fmt::format("fsync({})", folder));
  return absl::OkStatus();
}

bool ends_with(const std::string& text, const std::string& tail) {
  return text.size() >= tail.size() &&
         text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

// A node may be both ends.
std::string name_of(const api::MigrationJournal& entry) {
  const bool in_place =
      entry.side() == api::MigrationJournal::DESTINATION && !entry.capsule().empty();
  return entry.id() + (entry.clone() || in_place ? kSecond : "");
}

}  // namespace

absl::Status Journal::write(const api::MigrationJournal& entry) const {
  if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_status(errno, fmt::format("mkdir({})", folder_));
  const std::string path = folder_ + "/" + name_of(entry);
  const std::string unfinished = path + kUnfinished;
  UniqueFd fd(::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return errno_status(errno, fmt::format("open({}, O_CREAT)", unfinished));
  const std::string bytes = entry.SerializeAsString();
  // One write: a file system that takes less is full.
  const ssize_t written = ::write(fd.get(), bytes.data(), bytes.size());
  int error = 0;
  if (written != static_cast<ssize_t>(bytes.size()))
    error = written < 0 ? errno : ENOSPC;
  else if (::fsync(fd.get()) != 0 || ::rename(unfinished.c_str(), path.c_str()) != 0)
    error = errno;
  if (error == 0) return sync_folder(folder_);
  ::unlink(unfinished.c_str());
  return errno_status(error, fmt::format("writing {}", path));
}

absl::Status Journal::remove(const api::MigrationJournal& entry) const {
  const std::string path = folder_ + "/" + name_of(entry);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return errno_status(errno, fmt::format("unlink({})", path));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<api::MigrationJournal>> Journal::all() const {
  std::vector<api::MigrationJournal> result;
  const auto names = kernel::list_folder(folder_);
  if (absl::IsNotFound(names.status())) return result;
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (ends_with(name, kUnfinished)) {
      // Never reached its rename: the migration had not begun.
      ::unlink((folder_ + "/" + name).c_str());
      continue;
    }
    GW_ASSIGN_OR_RETURN(const std::string bytes, kernel::read_file(folder_ + "/" + name));
    api::MigrationJournal entry;
    if (!entry.ParseFromString(bytes) || name_of(entry) != name)
      return make_error(absl::StatusCode::kDataLoss, "{}/{} does not parse", folder_, name);
    result.push_back(std::move(entry));
  }
  return result;
}

}  // namespace godwit::node
