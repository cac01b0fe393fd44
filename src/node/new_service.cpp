#include "node/new_service.h"

#include <ctime>

#include "base/clock.h"
#include "base/status.h"
#include "node/node.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kLeftWait = absl::Seconds(20);

absl::Status already_exists(const std::string& name) {
  return make_error(absl::StatusCode::kAlreadyExists,
                    "there is a service \"{}\" already; choose another --name or remove it "
                    "(godwit rm {})",
                    name, name);
}

}  // namespace

absl::StatusOr<Busy::Hold> hold_new_name(Node& node, const std::string& name,
                                         const std::string& doing) {
  // Of one that lives nobody need wait for the end of what is being done to it.
  const auto known = node.records().service(name);
  if (known.ok()) return already_exists(name);
  if (!absl::IsNotFound(known.status())) return known.status();
  const Deadline deadline = Deadline::in(kLeftWait);
  GW_ASSIGN_OR_RETURN(Busy::Hold hold, node.busy().hold(name, doing, deadline));
  GW_RETURN_IF_ERROR(node.post_copy().wait_until_gone(name, deadline));
  return hold;
}

absl::Status claim_new_name(Node& node, const std::string& name, VersionedService& service) {
  api::ServiceRecord& record = service.record;
  record.set_name(name);
  record.set_owner(node.config().name);
  record.set_generation(1);
  record.set_state(api::SERVICE_CREATING);
  record.set_created_unix_ns(clock_ns(CLOCK_REALTIME));
  const absl::Status named = node.records().put(service);
  return absl::IsAborted(named) ? already_exists(name) : named;
}

}  // namespace godwit::node
