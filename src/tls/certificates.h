// The cluster's own certificate authority and the certificates of its nodes: P-256 keys, X.509 v3
// (RFC 5280). A node's name is its certificate's subject and DNS name, so that each end of a
// connection knows which node the other one is.
#ifndef GODWIT_TLS_CERTIFICATES_H_
#define GODWIT_TLS_CERTIFICATES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit::tls {

struct Certificate {
  std::string certificate_pem;
  std::string key_pem;
};

// What a node shows and what it believes.
struct Identity {
  std::string authority_pem;
  Certificate own;
};

absl::StatusOr<Certificate> make_authority(const std::string& cluster);
absl::StatusOr<Certificate> issue_certificate(const Certificate& authority,
                                              const std::string& node);

// `folder`/ca.crt, node.crt, node.key; files are 0600, the folder 0700.
absl::Status save_identity(const std::string& folder, const Identity& identity);
absl::StatusOr<Identity> load_identity(const std::string& folder);
// `folder`/ca.crt, ca.key: for the place that issues certificates only.
absl::Status save_authority(const std::string& folder, const Certificate& authority);
absl::StatusOr<Certificate> load_authority(const std::string& folder);

}  // namespace godwit::tls

#endif  // GODWIT_TLS_CERTIFICATES_H_
