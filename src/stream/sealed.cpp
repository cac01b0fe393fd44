#include "stream/sealed.h"

#include <endian.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tls/gcm.h"

namespace godwit::stream {
namespace {

constexpr std::string_view kMagic{"GWSEALED", 8};
constexpr std::string_view kPurpose = "godwit image 1";
constexpr size_t kSaltBytes = 32;
constexpr size_t kTextBytes = size_t{64} << 10;
constexpr size_t kLengthBytes = 4;

using Salt = std::array<unsigned char, kSaltBytes>;

// Bytes that are gone when they are not needed any more.
struct Secret {
  std::vector<unsigned char> bytes;
  explicit Secret(size_t size) : bytes(size) {}
  Secret(Secret&&) = default;
  Secret& operator=(Secret&&) = delete;
  ~Secret() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
};

absl::Status unfit(const std::string& path, std::string_view why) {
  return make_error(absl::StatusCode::kFailedPrecondition,
                    "key file {}: {}; (umask 077; head -c 32 /dev/urandom > FILE) makes one", path,
                    why);
}

absl::StatusOr<Secret> read_key(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0)
    return errno_status(errno, fmt::format("key file {}", path));
  if (!S_ISREG(status.st_mode)) return unfit(path, "no regular file");
  if ((status.st_mode & 077) != 0)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "key file {}: others than its owner may use it (mode {:03o}); chmod 600",
                      path, status.st_mode & 0777);
  const auto size = static_cast<size_t>(status.st_size);
  if (size < kLeastKeyBytes || size > kMostKeyBytes)
    return unfit(
        path, fmt::format("{} bytes, and a key has {} to {}", size, kLeastKeyBytes, kMostKeyBytes));
  Secret key(size);
  if (::pread(fd.get(), key.bytes.data(), size, 0) != static_cast<ssize_t>(size))
    return unfit(path, "cannot be read whole");
  return key;
}

absl::Status openssl_failed(std::string_view what) {
  return make_error(absl::StatusCode::kInternal, "OpenSSL: {}", what);
}

absl::StatusOr<std::unique_ptr<tls::Gcm>> cipher_of(const std::string& key_file, const Salt& salt,
                                                    tls::Direct direct) {
  GW_ASSIGN_OR_RETURN(const Secret secret, read_key(key_file));
  Secret key(tls::kGcmKey);
  size_t size = key.bytes.size();
  const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context(
      EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr), EVP_PKEY_CTX_free);
  if (context == nullptr || EVP_PKEY_derive_init(context.get()) != 1 ||
      EVP_PKEY_CTX_set_hkdf_md(context.get(), EVP_sha256()) != 1 ||
      EVP_PKEY_CTX_set1_hkdf_salt(context.get(), salt.data(), static_cast<int>(salt.size())) != 1 ||
      EVP_PKEY_CTX_set1_hkdf_key(context.get(), secret.bytes.data(),
                                 static_cast<int>(secret.bytes.size())) != 1 ||
      EVP_PKEY_CTX_add1_hkdf_info(context.get(),
                                  reinterpret_cast<const unsigned char*>(kPurpose.data()),
                                  static_cast<int>(kPurpose.size())) != 1 ||
      EVP_PKEY_derive(context.get(), key.bytes.data(), &size) != 1 || size != tls::kGcmKey)
    return openssl_failed("HKDF");
  auto cipher = tls::make_gcm(
      std::span<const unsigned char, tls::kGcmKey>(key.bytes.data(), tls::kGcmKey), direct);
  if (cipher == nullptr) return openssl_failed("AES-128-GCM");
  return cipher;
}

// What a record is proven with beside its text.
struct Head {
  std::array<unsigned char, kLengthBytes> length{};
  std::array<unsigned char, tls::kGcmNonce> nonce{};
  Head(size_t bytes, uint64_t number) {
    const uint32_t little = htole32(static_cast<uint32_t>(bytes));
    std::memcpy(length.data(), &little, sizeof little);
    const uint64_t counter = htole64(number);
    std::memcpy(nonce.data() + nonce.size() - sizeof counter, &counter, sizeof counter);
  }
};

class SealedSink final : public Sink {
 public:
  SealedSink(int fd, std::unique_ptr<tls::Gcm> cipher, const Salt& salt)
      : below_(fd_sink(fd)), cipher_(std::move(cipher)), salt_(salt) {
    text_.reserve(kTextBytes);
  }

  absl::Status write(std::span<const iovec> parts) override {
    for (const iovec& part : parts) {
      std::span<const unsigned char> left(static_cast<const unsigned char*>(part.iov_base),
                                          part.iov_len);
      while (!left.empty()) {
        const size_t some = std::min(left.size(), kTextBytes - text_.size());
        text_.insert(text_.end(), left.begin(), left.begin() + static_cast<ptrdiff_t>(some));
        left = left.subspan(some);
        if (text_.size() == kTextBytes) GW_RETURN_IF_ERROR(seal());
      }
    }
    return absl::OkStatus();
  }

  absl::Status flush() override {
    if (!text_.empty()) GW_RETURN_IF_ERROR(seal());
    return below_->flush();
  }

 private:
  absl::Status seal() {
    if (number_ == 0) {
      const iovec head[] = {{const_cast<char*>(kMagic.data()), kMagic.size()},
                            {salt_.data(), salt_.size()}};
      GW_RETURN_IF_ERROR(below_->write(head));
    }
    Head head(text_.size(), number_++);
    std::array<unsigned char, tls::kGcmTag> tag{};
    if (!cipher_->begin(head.nonce, head.length) ||
        !cipher_->update(text_.data(), text_.data(), text_.size()) || !cipher_->finish(tag))
      return openssl_failed("encrypting");
    const iovec record[] = {{head.length.data(), head.length.size()},
                            {text_.data(), text_.size()},
                            {tag.data(), tag.size()}};
    const absl::Status written = below_->write(record);
    text_.clear();
    return written;
  }

  std::unique_ptr<Sink> below_;
  std::unique_ptr<tls::Gcm> cipher_;
  Salt salt_;
  std::vector<unsigned char> text_;
  uint64_t number_ = 0;
};

class SealedFeed final : public Feed {
 public:
  SealedFeed(std::unique_ptr<Feed> below, std::unique_ptr<tls::Gcm> cipher)
      : below_(std::move(below)), cipher_(std::move(cipher)), text_(kTextBytes) {}

  absl::Status read(std::span<std::byte> to) override {
    for (size_t done = 0; done < to.size();) {
      if (begin_ == end_) {
        const absl::Status opened = open();
        if (absl::IsOutOfRange(opened) && done > 0)
          return make_error(absl::StatusCode::kDataLoss,
                            "the sealed file ends after {} of {} bytes", done, to.size());
        GW_RETURN_IF_ERROR(opened);
      }
      const size_t some = std::min(to.size() - done, end_ - begin_);
      std::memcpy(to.data() + done, text_.data() + begin_, some);
      begin_ += some;
      done += some;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status open() {
    begin_ = end_ = 0;
    uint32_t little = 0;
    GW_RETURN_IF_ERROR(below_->read(std::as_writable_bytes(std::span(&little, 1))));
    const size_t bytes = le32toh(little);
    if (bytes == 0 || bytes > kTextBytes) return damaged();
    std::array<unsigned char, tls::kGcmTag> tag{};
    const iovec record[] = {{text_.data(), bytes}, {tag.data(), tag.size()}};
    const absl::Status whole = below_->readv(record);
    if (absl::IsOutOfRange(whole) || absl::IsDataLoss(whole))
      return make_error(absl::StatusCode::kDataLoss, "file offset {}: the sealed file is cut off",
                        at_);
    GW_RETURN_IF_ERROR(whole);
    Head head(bytes, number_);
    if (!cipher_->begin(head.nonce, head.length) ||
        !cipher_->update(text_.data(), text_.data(), bytes) || !cipher_->finish(tag))
      return damaged();
    ++number_;
    at_ += kLengthBytes + bytes + tls::kGcmTag;
    end_ = bytes;
    return absl::OkStatus();
  }

  absl::Status damaged() const {
    return make_error(
        absl::StatusCode::kDataLoss, "file offset {}: {}", at_,
        number_ == 0 ? "what is sealed does not open: the key is another one, or it was changed"
                     : "what is sealed was changed");
  }

  std::unique_ptr<Feed> below_;
  std::unique_ptr<tls::Gcm> cipher_;
  std::vector<unsigned char> text_;
  size_t begin_ = 0;
  size_t end_ = 0;
  uint64_t number_ = 0;
  uint64_t at_ = kMagic.size() + kSaltBytes;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Sink>> image_sink(int fd, const std::string& key_file) {
  if (key_file.empty()) return fd_sink(fd);
  Salt salt;
  if (RAND_bytes(salt.data(), static_cast<int>(salt.size())) != 1) return openssl_failed("RAND");
  GW_ASSIGN_OR_RETURN(auto cipher, cipher_of(key_file, salt, tls::Direct::kEncrypt));
  return std::make_unique<SealedSink>(fd, std::move(cipher), salt);
}

absl::StatusOr<std::unique_ptr<Feed>> image_feed(int fd, const std::string& key_file) {
  if (key_file.empty()) {
    char magic[kMagic.size()];
    // Not of a pipe: there the stream's reader says that it is none.
    const off_t at = ::lseek(fd, 0, SEEK_CUR);
    if (at >= 0 && ::pread(fd, magic, sizeof magic, at) == sizeof magic &&
        std::string_view(magic, sizeof magic) == kMagic)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "it is encrypted; name the file with its key (--decrypt KEYFILE)");
    return fd_feed(fd);
  }
  auto below = fd_feed(fd);
  std::array<char, kMagic.size()> magic{};
  Salt salt;
  absl::Status read = below->read(std::as_writable_bytes(std::span(magic)));
  if (read.ok()) read = below->read(std::as_writable_bytes(std::span(salt)));
  if (!read.ok() && !absl::IsOutOfRange(read) && !absl::IsDataLoss(read)) return read;
  if (!read.ok() || std::string_view(magic.data(), magic.size()) != kMagic)
    return make_error(absl::StatusCode::kDataLoss,
                      "it is not encrypted, so that nothing proves whose it is; without --decrypt "
                      "it is taken as it is");
  GW_ASSIGN_OR_RETURN(auto cipher, cipher_of(key_file, salt, tls::Direct::kDecrypt));
  return std::make_unique<SealedFeed>(std::move(below), std::move(cipher));
}

}  // namespace godwit::stream
