// What a virtual machine's move will cost, by the model that services have (migration/decider.h).
#ifndef GODWIT_NODE_VM_FORECAST_H_
#define GODWIT_NODE_VM_FORECAST_H_

#include "api/godwit.pb.h"
#include "migration/forecast.h"
#include "node/peers.h"
#include "vm/hypervisor.h"

namespace godwit::node {

class Node;

// Of a running machine, into `result` and its statistics. Watches it for a second. What cannot be
// found out is left out; `result` says what the figures are based on.
void predict_vm(Node& node, vm::Hypervisor& hypervisor, const vm::DomainSpec& domain,
                const api::MigrateRequest& request, migration::Strategy strategy, Peer& peer,
                api::MigrateResult& result);

}  // namespace godwit::node

#endif  // GODWIT_NODE_VM_FORECAST_H_
