// The store's entries as messages. Each value comes with its revision, and every change names the
// revision that it replaces.
#ifndef GODWIT_NODE_RECORDS_H_
#define GODWIT_NODE_RECORDS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/records.pb.h"
#include "store/store.h"

namespace godwit::node {

template <typename Message>
struct Versioned {
  Message record;
  store::Revision revision = store::kMustNotExist;
};
using VersionedService = Versioned<api::ServiceRecord>;
using VersionedNode = Versioned<api::NodeRecord>;

std::string service_key(std::string_view name);
std::string node_key(std::string_view name);
std::string address_key(std::string_view ip);

class Records {
 public:
  explicit Records(store::Store* store) : store_(store) {}
  store::Store* store() const { return store_; }

  // kNotFound says which service or node is not known, for the user.
  absl::StatusOr<VersionedService> service(const std::string& name) const;
  absl::StatusOr<std::vector<VersionedService>> services() const;
  // Writes and brings `versioned.revision` up to date. kAborted: somebody else was first.
  absl::Status put(VersionedService& versioned) const;
  absl::Status remove(const VersionedService& versioned) const;

  absl::StatusOr<VersionedNode> node(const std::string& name) const;
  absl::StatusOr<std::vector<VersionedNode>> nodes() const;
  // Puts the node's record whatever stood there: a node is its own only writer.
  absl::Status put_node(const api::NodeRecord& record) const;

  // kAlreadyExists when another service holds the address; fine when `service` does.
  absl::Status claim_address(const std::string& ip, const std::string& service) const;
  // Fine when `service` does not hold it.
  absl::Status release_address(const std::string& ip, const std::string& service) const;

  // Reads, lets `change` edit, writes; again from the start when somebody else was first. `change`
  // returns an error to give up, which becomes the result.
  template <typename Change>
  absl::StatusOr<VersionedService> update(const std::string& name, Change change) const {
    while (true) {
      auto current = service(name);
      if (!current.ok()) return current;
      absl::Status wanted = change(current->record);
      if (!wanted.ok()) return wanted;
      const absl::Status written = put(*current);
      if (written.ok()) return current;
      if (!absl::IsAborted(written)) return written;
    }
  }

 private:
  store::Store* store_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_RECORDS_H_
