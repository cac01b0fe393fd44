#include "tls/gcm.h"

#include <openssl/evp.h>

namespace godwit::tls {
namespace {

struct Free {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};

class OpensslGcm final : public Gcm {
 public:
  OpensslGcm(std::unique_ptr<EVP_CIPHER_CTX, Free> context, Direct direct)
      : context_(std::move(context)), direct_(direct) {}

  bool begin(std::span<const unsigned char, kGcmNonce> nonce,
             std::span<const unsigned char> additional) override {
    int length = 0;
    return EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, nonce.data(), -1) == 1 &&
           EVP_CipherUpdate(context_.get(), nullptr, &length, additional.data(),
                            static_cast<int>(additional.size())) == 1;
  }

  bool update(const unsigned char* from, unsigned char* to, size_t bytes) override {
    int length = 0;
    return EVP_CipherUpdate(context_.get(), to, &length, from, static_cast<int>(bytes)) == 1;
  }

  bool finish(std::span<unsigned char, kGcmTag> tag) override {
    int length = 0;
    if (direct_ == Direct::kEncrypt)
      return EVP_CipherFinal_ex(context_.get(), tag.data(), &length) == 1 &&
             EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG, kGcmTag, tag.data()) == 1;
    return EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, kGcmTag, tag.data()) == 1 &&
           EVP_CipherFinal_ex(context_.get(), tag.data(), &length) == 1;
  }

 private:
  std::unique_ptr<EVP_CIPHER_CTX, Free> context_;
  Direct direct_;
};

}  // namespace

std::unique_ptr<Gcm> make_openssl_gcm(std::span<const unsigned char, kGcmKey> key, Direct direct) {
  std::unique_ptr<EVP_CIPHER_CTX, Free> context(EVP_CIPHER_CTX_new());
  if (context == nullptr || EVP_CipherInit_ex(context.get(), EVP_aes_128_gcm(), nullptr, key.data(),
                                              nullptr, direct == Direct::kEncrypt ? 1 : 0) != 1)
    return nullptr;
  return std::make_unique<OpensslGcm>(std::move(context), direct);
}

std::unique_ptr<Gcm> make_gcm(std::span<const unsigned char, kGcmKey> key, Direct direct) {
  std::unique_ptr<Gcm> fast = make_vector_gcm(key, direct);
  return fast != nullptr ? std::move(fast) : make_openssl_gcm(key, direct);
}

}  // namespace godwit::tls
