// Notes that a daemon keeps in its state folder about the migrations that it takes part in, so
// that its successor can settle them: <state>/migrations/<id>, one MigrationJournal a file,
// replaced by rename(2) and fsynced before the migration does anything that must be undone.
#ifndef GODWIT_NODE_JOURNAL_H_
#define GODWIT_NODE_JOURNAL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/records.pb.h"

namespace godwit::node {

class Journal {
 public:
  explicit Journal(const std::string& state_dir) : folder_(state_dir + "/migrations") {}
  absl::Status write(const api::MigrationJournal& entry) const;
  absl::Status remove(const api::MigrationJournal& entry) const;  // fine when there is none
  absl::StatusOr<std::vector<api::MigrationJournal>> all() const;

 private:
  std::string folder_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_JOURNAL_H_
