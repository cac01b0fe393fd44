#include "node/records.h"

#include "base/status.h"

namespace godwit::node {
namespace {

template <typename Message>
absl::StatusOr<Versioned<Message>> parse(const store::Entry& entry) {
  Versioned<Message> result;
  if (!result.record.ParseFromString(entry.value))
    return make_error(absl::StatusCode::kDataLoss, "the store's entry {} does not parse",
                      entry.key);
  result.revision = entry.revision;
  return result;
}

template <typename Message>
absl::StatusOr<std::vector<Versioned<Message>>> parse_all(
    const absl::StatusOr<std::vector<store::Entry>>& entries) {
  if (!entries.ok()) return entries.status();
  std::vector<Versioned<Message>> result;
  for (const store::Entry& each : *entries) {
    GW_ASSIGN_OR_RETURN(auto parsed, parse<Message>(each));
    result.push_back(std::move(parsed));
  }
  return result;
}

}  // namespace

std::string service_key(std::string_view name) { return "service/" + std::string(name); }
std::string node_key(std::string_view name) { return "node/" + std::string(name); }
std::string address_key(std::string_view ip) { return "address/" + std::string(ip); }

absl::StatusOr<VersionedService> Records::service(const std::string& name) const {
  const auto entry = store_->get(service_key(name));
  if (absl::IsNotFound(entry.status()))
    return make_error(absl::StatusCode::kNotFound,
                      "no service \"{}\" (godwit ps -a lists those there are)", name);
  if (!entry.ok()) return entry.status();
  return parse<api::ServiceRecord>(*entry);
}

absl::StatusOr<std::vector<VersionedService>> Records::services() const {
  return parse_all<api::ServiceRecord>(store_->list("service/"));
}

absl::Status Records::put(VersionedService& versioned) const {
  GW_ASSIGN_OR_RETURN(
      versioned.revision,
      store_->compare_and_swap(service_key(versioned.record.name()), versioned.revision,
                               versioned.record.SerializeAsString()));
  return absl::OkStatus();
}

absl::Status Records::remove(const VersionedService& versioned) const {
  return store_->remove(service_key(versioned.record.name()), versioned.revision);
}

absl::StatusOr<VersionedNode> Records::node(const std::string& name) const {
  const auto entry = store_->get(node_key(name));
  if (absl::IsNotFound(entry.status()))
    return make_error(absl::StatusCode::kNotFound,
                      "no node \"{}\" (godwit nodes lists those there are)", name);
  if (!entry.ok()) return entry.status();
  return parse<api::NodeRecord>(*entry);
}

absl::StatusOr<std::vector<VersionedNode>> Records::nodes() const {
  return parse_all<api::NodeRecord>(store_->list("node/"));
}

absl::Status Records::put_node(const api::NodeRecord& record) const {
  while (true) {
    const auto current = store_->get(node_key(record.name()));
    if (!current.ok() && !absl::IsNotFound(current.status())) return current.status();
    const store::Revision expected = current.ok() ? current->revision : store::kMustNotExist;
    const auto written =
        store_->compare_and_swap(node_key(record.name()), expected, record.SerializeAsString());
    if (!absl::IsAborted(written.status())) return written.status();
  }
}

absl::Status Records::claim_address(const std::string& ip, const std::string& service) const {
  api::AddressRecord record;
  record.set_service(service);
  const auto made =
      store_->compare_and_swap(address_key(ip), store::kMustNotExist, record.SerializeAsString());
  if (!absl::IsAborted(made.status())) return made.status();
  const auto holder = store_->get(address_key(ip));
  // Released between the two calls: free again, but not ours. The caller asks for another.
  api::AddressRecord held;
  if (holder.ok() && held.ParseFromString(holder->value) && held.service() == service)
    return absl::OkStatus();
  return make_error(absl::StatusCode::kAlreadyExists, "address {} belongs to service \"{}\"", ip,
                    held.service());
}

absl::Status Records::release_address(const std::string& ip, const std::string& service) const {
  if (ip.empty()) return absl::OkStatus();
  const auto holder = store_->get(address_key(ip));
  if (absl::IsNotFound(holder.status())) return absl::OkStatus();
  if (!holder.ok()) return holder.status();
  api::AddressRecord held;
  if (!held.ParseFromString(holder->value) || held.service() != service) return absl::OkStatus();
  const absl::Status removed = store_->remove(address_key(ip), holder->revision);
  return absl::IsAborted(removed) ? absl::OkStatus() : removed;
}

}  // namespace godwit::node
