// What a node shows and believes, made ready for OpenSSL's handshakes (ssl(7)): TLS 1.3 only, one
// cipher suite, both ends show a certificate of the cluster's authority.
#ifndef GODWIT_TLS_CONTEXT_H_
#define GODWIT_TLS_CONTEXT_H_

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tls/certificates.h"

namespace godwit::tls {

// What OpenSSL put into its queue last (ERR_get_error(3)); nothing of it is left there.
std::string last_error();

// For connections of either side; any thread may use it.
class Context {
 public:
  static absl::StatusOr<Context> make(const Identity& identity);
  SSL_CTX* get() const { return context_.get(); }

 private:
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  explicit Context(SSL_CTX* context) : context_(context) {}
  std::unique_ptr<SSL_CTX, Free> context_;
};

}  // namespace godwit::tls

#endif  // GODWIT_TLS_CONTEXT_H_
