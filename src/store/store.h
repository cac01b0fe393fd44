// The cluster's state: small records under names, each with the revision of its last change. The
// only way to change one is to say which revision is being replaced, so that two writers cannot
// both win. The shape is etcd's (mod_revision, transactions), so that it can be the other keeper.
//
// Thread rule: every implementation may be called from any thread.
#ifndef GODWIT_STORE_STORE_H_
#define GODWIT_STORE_STORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit::store {

// Revisions count changes of the whole store: > 0 for everything that exists, never used twice.
using Revision = int64_t;
constexpr Revision kMustNotExist = 0;

struct Entry {
  std::string key;
  std::string value;
  Revision revision = 0;
};

class Store {
 public:
  virtual ~Store() = default;

  // kNotFound when there is none.
  virtual absl::StatusOr<Entry> get(const std::string& key) = 0;
  // All whose key begins with `prefix`, in the order of their bytes.
  virtual absl::StatusOr<std::vector<Entry>> list(const std::string& prefix) = 0;
  // Writes `value` if the entry's revision is `expected` (kMustNotExist: if there is none) and
  // returns the new revision. kAborted: it is another, nothing was changed. kFailedPrecondition:
  // the keeper refused, nothing was changed. After any other error the change *may have been made*,
  // or may still be: the answer was lost, or the keeper's disk failed in a COMMIT.
  virtual absl::StatusOr<Revision> compare_and_swap(const std::string& key, Revision expected,
                                                    const std::string& value) = 0;
  // Removes the entry if its revision is `expected`; kAborted and the rest as above.
  virtual absl::Status remove(const std::string& key, Revision expected) = 0;
};

// Of a compare_and_swap() or remove(): whether this very request can have no effect, now or later.
// gRPC never makes these two codes up itself, so that they are the keeper's own word.
inline bool nothing_changed(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsFailedPrecondition(status);
}

}  // namespace godwit::store

#endif  // GODWIT_STORE_STORE_H_
