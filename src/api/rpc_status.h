// Status values across gRPC: codes are the same numbers, the errno stays behind.
#ifndef GODWIT_API_RPC_STATUS_H_
#define GODWIT_API_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace godwit::api {

inline grpc::Status to_grpc(const absl::Status& status) {
  return status.ok() ? grpc::Status::OK
                     : grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                                    std::string(status.message()));
}

inline absl::Status from_grpc(const grpc::Status& status) {
  return status.ok() ? absl::OkStatus()
                     : absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                                    status.error_message());
}

}  // namespace godwit::api

#endif  // GODWIT_API_RPC_STATUS_H_
