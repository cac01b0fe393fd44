// intel-ipsec-mb (libIPSec_MB.so.1; Debian: libipsec-mb1) is looked for at run time and not linked:
// commands that encrypt nothing do not load its 12 MiB, and where it is not installed all works
// without it. Of the library three functions are looked up; the rest are pointers in what these
// give, by the header's macros.
#include "tls/gcm.h"

#if __has_include(<intel-ipsec-mb.h>)

#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>

#include <array>
#include <cstdint>

namespace godwit::tls {
namespace {

template <typename Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(::dlsym(library, name));
}

// One for the process, for good; nothing in it changes later. Null: not to be used.
IMB_MGR* load() {
  void* const library = ::dlopen("libIPSec_MB.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  const auto version = find<decltype(imb_get_version)>(library, "imb_get_version");
  const auto alloc = find<decltype(alloc_mb_mgr)>(library, "alloc_mb_mgr");
  const auto init = find<decltype(init_mb_mgr_auto)>(library, "init_mb_mgr_auto");
  // The structure's fields move between minor versions.
  constexpr unsigned kBuiltFor = IMB_VERSION_NUM >> 8;
  if (version == nullptr || alloc == nullptr || init == nullptr || version() >> 8 != kBuiltFor)
    return nullptr;
  IMB_MGR* const manager = alloc(0);
  if (manager == nullptr) return nullptr;
  IMB_ARCH used = IMB_ARCH_NONE;
  init(manager, &used);  // with its own known answers tried
  constexpr uint64_t kFast = IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
  const bool fast = (manager->features & kFast) == kFast && used == IMB_ARCH_AVX512;
  return fast && manager->imb_errno == 0 ? manager : nullptr;
}

class VectorGcm final : public Gcm {
 public:
  VectorGcm(IMB_MGR* manager, std::span<const unsigned char, kGcmKey> key, Direct direct)
      : manager_(manager), direct_(direct) {
    IMB_AES128_GCM_PRE(manager_, key.data(), &key_);
  }
  ~VectorGcm() override {
    OPENSSL_cleanse(&key_, sizeof key_);
    OPENSSL_cleanse(&message_, sizeof message_);
  }
  VectorGcm(const VectorGcm&) = delete;
  VectorGcm& operator=(const VectorGcm&) = delete;

  bool begin(std::span<const unsigned char, kGcmNonce> nonce,
             std::span<const unsigned char> additional) override {
    IMB_AES128_GCM_INIT(manager_, &key_, &message_, nonce.data(), additional.data(),
                        additional.size());
    return true;
  }

  bool update(const unsigned char* from, unsigned char* to, size_t bytes) override {
    if (bytes == 0) return true;
    if (direct_ == Direct::kEncrypt)
      IMB_AES128_GCM_ENC_UPDATE(manager_, &key_, &message_, to, from, bytes);
    else
      IMB_AES128_GCM_DEC_UPDATE(manager_, &key_, &message_, to, from, bytes);
    return true;
  }

  bool finish(std::span<unsigned char, kGcmTag> tag) override {
    if (direct_ == Direct::kEncrypt) {
      IMB_AES128_GCM_ENC_FINALIZE(manager_, &key_, &message_, tag.data(), tag.size());
      return true;
    }
    std::array<unsigned char, kGcmTag> right{};
    IMB_AES128_GCM_DEC_FINALIZE(manager_, &key_, &message_, right.data(), right.size());
    return CRYPTO_memcmp(right.data(), tag.data(), tag.size()) == 0;
  }

 private:
  alignas(64) gcm_key_data key_{};  // read and written by whole vectors
  gcm_context_data message_{};
  IMB_MGR* manager_;
  Direct direct_;
};

}  // namespace

std::unique_ptr<Gcm> make_vector_gcm(std::span<const unsigned char, kGcmKey> key, Direct direct) {
  static IMB_MGR* const manager = load();
  return manager == nullptr ? nullptr : std::make_unique<VectorGcm>(manager, key, direct);
}

}  // namespace godwit::tls

#else

namespace godwit::tls {

std::unique_ptr<Gcm> make_vector_gcm(std::span<const unsigned char, kGcmKey> /*key*/,
                                     Direct /*direct*/) {
  return nullptr;
}

}  // namespace godwit::tls

#endif
