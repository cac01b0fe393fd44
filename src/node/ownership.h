// The three changes of a service's record that decide over a move: the destination's commit, and
// what either end does to the record before it goes by what it says.
//
// A request to the store can outlive whoever made it: TCP delivers a dead process's data, and a
// keeper's thread may wait. So nobody concludes from reading alone that a change will not come: the
// record is changed first, after which a late request finds another revision than it names.
#ifndef GODWIT_NODE_OWNERSHIP_H_
#define GODWIT_NODE_OWNERSHIP_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/records.pb.h"
#include "node/records.h"

namespace godwit::node {

// The owner of a service that moved in place: this node, and the capsule that it left is not its
// any more.
inline constexpr char kReplacedHere[] = "~";

// The store did not answer, or with an error of its own (a full disk). Waits; whether to ask again.
using AskAgain = std::function<bool(const absl::Status& why)>;

// `swap` makes the destination the owner; `is_ours` reads whether it is, by this migration.
// kUnknown: it may be, and only the record will say. Any other error: it is not, and by this swap
// never will be.
absl::Status commit_owner(const std::function<absl::Status()>& swap,
                          const std::function<absl::StatusOr<bool>()>& is_ours,
                          const AskAgain& again);

// The source's end, `self`: no commit comes any more if the owner that this returns is `self`.
// kNotFound: the service was removed after it had moved. kCancelled: not to be asked again.
absl::StatusOr<std::string> settle_owner_at_source(const Records& records, const std::string& self,
                                                   const api::MigrationJournal& entry,
                                                   const AskAgain& again);

// The destination's end: whether the service is `self`'s by this migration; if not, it does not
// become so any more.
absl::StatusOr<bool> settle_owner_at_destination(const Records& records, const std::string& self,
                                                 const api::MigrationJournal& entry,
                                                 const AskAgain& again);

// The source's figures of a move that is done, into a record that is the destination's by now. Not
// while the service moves on: that move goes by the record's revision.
absl::Status record_figures(const Records& records, const std::string& service,
                            const api::MigrationStatistics& statistics);

}  // namespace godwit::node

#endif  // GODWIT_NODE_OWNERSHIP_H_
