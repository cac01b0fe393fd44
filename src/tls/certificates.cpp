#include "tls/certificates.h"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <array>
#include <fstream>
#include <memory>
#include <sstream>

#include "base/status.h"
#include "base/unique_fd.h"

namespace godwit::tls {
namespace {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using X509Ptr = std::unique_ptr<X509, Deleter<X509_free>>;
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Extension = std::unique_ptr<X509_EXTENSION, Deleter<X509_EXTENSION_free>>;

constexpr long kLifeSeconds = 10L * 365 * 24 * 3600;
// Clocks of nodes differ.
constexpr long kValidBeforeNowSeconds = -3600;

absl::Status openssl_error(const char* call) {
  char text[256] = "unknown";
  ERR_error_string_n(ERR_get_error(), text, sizeof text);
  ERR_clear_error();
  return make_error(absl::StatusCode::kInternal, "{}: {}", call, text);
}

std::string text_of(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<size_t>(size)};
}

absl::StatusOr<Certificate> to_pem(X509* certificate, EVP_PKEY* key) {
  Bio out(BIO_new(BIO_s_mem()));
  if (out == nullptr || PEM_write_bio_X509(out.get(), certificate) != 1)
    return openssl_error("PEM_write_bio_X509");
  Bio secret(BIO_new(BIO_s_mem()));
  if (secret == nullptr ||
      PEM_write_bio_PrivateKey(secret.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return openssl_error("PEM_write_bio_PrivateKey");
  return Certificate{text_of(out.get()), text_of(secret.get())};
}

absl::Status add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1)
    return openssl_error("X509V3_EXT_conf_nid");
  return absl::OkStatus();
}

absl::Status fill(X509* certificate, EVP_PKEY* key, const std::string& common_name) {
  std::array<unsigned char, 16> serial{};
  if (RAND_bytes(serial.data(), static_cast<int>(serial.size())) != 1)
    return openssl_error("RAND_bytes");
  serial[0] &= 0x7f;  // RFC 5280, 4.1.2.2: positive
  BIGNUM* number = BN_bin2bn(serial.data(), static_cast<int>(serial.size()), nullptr);
  const bool numbered = number != nullptr &&
                        BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != nullptr;
  BN_free(number);
  X509_NAME* name = X509_get_subject_name(certificate);
  if (!numbered || X509_set_version(certificate, X509_VERSION_3) != 1 ||
      X509_gmtime_adj(X509_getm_notBefore(certificate), kValidBeforeNowSeconds) == nullptr ||
      X509_gmtime_adj(X509_getm_notAfter(certificate), kLifeSeconds) == nullptr ||
      X509_set_pubkey(certificate, key) != 1 ||
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(common_name.c_str()), -1,
                                 -1, 0) != 1)
    return openssl_error("filling a certificate");
  return absl::OkStatus();
}

absl::Status write_file(const std::string& path, const std::string& text) {
  // Made anew: the mode of an old file would stay.
  ::unlink(path.c_str());
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return errno_status(errno, fmt::format("open({}, O_CREAT)", path));
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(errno, fmt::format("write({})", path));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return errno_status(errno, fmt::format("open({})", path));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

absl::Status make_folder(const std::string& folder) {
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_status(errno, fmt::format("mkdir({})", folder));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Certificate> make_authority(const std::string& cluster) {
  Key key(EVP_EC_gen("P-256"));
  X509Ptr certificate(X509_new());
  if (key == nullptr || certificate == nullptr) return openssl_error("EVP_EC_gen");
  GW_RETURN_IF_ERROR(fill(certificate.get(), key.get(), "Godwit cluster " + cluster));
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate.get()));
  X509* self = certificate.get();
  GW_RETURN_IF_ERROR(
      add_extension(self, self, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  GW_RETURN_IF_ERROR(add_extension(self, self, NID_key_usage, "critical,keyCertSign"));
  GW_RETURN_IF_ERROR(add_extension(self, self, NID_subject_key_identifier, "hash"));
  if (X509_sign(self, key.get(), EVP_sha256()) == 0) return openssl_error("X509_sign");
  return to_pem(self, key.get());
}

absl::StatusOr<Certificate> issue_certificate(const Certificate& authority,
                                              const std::string& node) {
  Bio certificate_bio(BIO_new_mem_buf(authority.certificate_pem.data(),
                                      static_cast<int>(authority.certificate_pem.size())));
  Bio key_bio(
      BIO_new_mem_buf(authority.key_pem.data(), static_cast<int>(authority.key_pem.size())));
  X509Ptr issuer(PEM_read_bio_X509(certificate_bio.get(), nullptr, nullptr, nullptr));
  Key issuer_key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, nullptr, nullptr));
  if (issuer == nullptr || issuer_key == nullptr)
    return openssl_error("reading the authority's certificate and key");

  Key key(EVP_EC_gen("P-256"));
  X509Ptr certificate(X509_new());
  if (key == nullptr || certificate == nullptr) return openssl_error("EVP_EC_gen");
  X509* own = certificate.get();
  GW_RETURN_IF_ERROR(fill(own, key.get(), node));
  X509_set_issuer_name(own, X509_get_subject_name(issuer.get()));
  GW_RETURN_IF_ERROR(add_extension(own, issuer.get(), NID_basic_constraints, "critical,CA:FALSE"));
  GW_RETURN_IF_ERROR(add_extension(own, issuer.get(), NID_key_usage, "critical,digitalSignature"));
  GW_RETURN_IF_ERROR(add_extension(own, issuer.get(), NID_ext_key_usage, "serverAuth,clientAuth"));
  GW_RETURN_IF_ERROR(add_extension(own, issuer.get(), NID_subject_alt_name, "DNS:" + node));
  if (X509_sign(own, issuer_key.get(), EVP_sha256()) == 0) return openssl_error("X509_sign");
  return to_pem(own, key.get());
}

absl::Status save_identity(const std::string& folder, const Identity& identity) {
  GW_RETURN_IF_ERROR(make_folder(folder));
  GW_RETURN_IF_ERROR(write_file(folder + "/ca.crt", identity.authority_pem));
  GW_RETURN_IF_ERROR(write_file(folder + "/node.crt", identity.own.certificate_pem));
  return write_file(folder + "/node.key", identity.own.key_pem);
}

absl::StatusOr<Identity> load_identity(const std::string& folder) {
  Identity identity;
  GW_ASSIGN_OR_RETURN(identity.authority_pem, read_text(folder + "/ca.crt"));
  GW_ASSIGN_OR_RETURN(identity.own.certificate_pem, read_text(folder + "/node.crt"));
  GW_ASSIGN_OR_RETURN(identity.own.key_pem, read_text(folder + "/node.key"));
  return identity;
}

absl::Status save_authority(const std::string& folder, const Certificate& authority) {
  GW_RETURN_IF_ERROR(make_folder(folder));
  GW_RETURN_IF_ERROR(write_file(folder + "/ca.crt", authority.certificate_pem));
  return write_file(folder + "/ca.key", authority.key_pem);
}

absl::StatusOr<Certificate> load_authority(const std::string& folder) {
  Certificate authority;
  GW_ASSIGN_OR_RETURN(authority.certificate_pem, read_text(folder + "/ca.crt"));
  GW_ASSIGN_OR_RETURN(authority.key_pem, read_text(folder + "/ca.key"));
  return authority;
}

}  // namespace godwit::tls
