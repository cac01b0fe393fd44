#include "tls/context.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#include <array>
#include <string_view>

#include "base/status.h"
#include "tls/handshake.h"

namespace godwit::tls {
namespace {

// The fastest one where a CPU has AES instructions; what a record costs is known of this one.
constexpr char kSuite[] = "TLS_AES_128_GCM_SHA256";

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeX509 {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

absl::Status invalid(std::string_view what) {
  return make_error(absl::StatusCode::kInvalidArgument, "TLS: {}: {}", what, last_error());
}

std::unique_ptr<BIO, FreeBio> bio_of(const std::string& pem) {
  return std::unique_ptr<BIO, FreeBio>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

std::unique_ptr<X509, FreeX509> certificate_of(const std::string& pem) {
  return std::unique_ptr<X509, FreeX509>(
      PEM_read_bio_X509(bio_of(pem).get(), nullptr, nullptr, nullptr));
}

}  // namespace

std::string last_error() {
  std::array<char, 256> text{"no reason given"};
  while (const unsigned long code = ERR_get_error())
    ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

absl::StatusOr<Context> Context::make(const Identity& identity) {
  Context made(SSL_CTX_new(TLS_method()));
  SSL_CTX* const context = made.context_.get();
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, kSuite) != 1)
    return invalid("SSL_CTX_new()");
  const auto authority = certificate_of(identity.authority_pem);
  const auto own = certificate_of(identity.own.certificate_pem);
  const std::unique_ptr<EVP_PKEY, FreeKey> key(
      PEM_read_bio_PrivateKey(bio_of(identity.own.key_pem).get(), nullptr, nullptr, nullptr));
  if (!authority || X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1)
    return invalid("the certificate of the cluster's authority");
  if (!own || SSL_CTX_use_certificate(context, own.get()) != 1)
    return invalid("this node's certificate");
  if (!key || SSL_CTX_use_PrivateKey(context, key.get()) != 1) return invalid("this node's key");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_keylog_callback(context, Handshake::take_secret);
  // Nobody comes back with one.
  SSL_CTX_set_num_tickets(context, 0);
  return made;
}

}  // namespace godwit::tls
