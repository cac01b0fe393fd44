// A service's log on its way: what it wrote on earlier nodes is one file beside its log, in the
// same format (capsule/log_file.h): <service>/log.moved. It follows a move in the background.
#ifndef GODWIT_NODE_LOG_CARRIER_H_
#define GODWIT_NODE_LOG_CARRIER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "api/godwit.grpc.pb.h"
#include "node/services.h"

namespace godwit::node {

// Files of the log, oldest first; some may not be there.
std::vector<std::string> log_files(const capsule::ServicePaths& paths);

absl::Status send_log(const capsule::ServicePaths& paths, const std::string& service,
                      api::GodwitPeer::Stub& to);
absl::Status receive_log(const Services& services, grpc::ServerReader<api::LogPart>& parts);

}  // namespace godwit::node

#endif  // GODWIT_NODE_LOG_CARRIER_H_
