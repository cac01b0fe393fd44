// A checkpoint file whose pages a service gets when it runs already.
#ifndef GODWIT_NODE_LAZY_IMAGE_H_
#define GODWIT_NODE_LAZY_IMAGE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "migration/workload.h"
#include "pages/image_pages.h"
#include "pages/pacer.h"

namespace godwit::node {

class LazyImage final : public migration::LaterPages {
 public:
  // Nothing of it is known yet: see().
  static absl::StatusOr<std::unique_ptr<LazyImage>> open(const std::string& path,
                                                         uint64_t bytes_per_s);
  // Gone through. kFailedPrecondition: it is not the file of that identity.
  static absl::StatusOr<std::unique_ptr<LazyImage>> open_again(const std::string& path,
                                                               uint64_t identity,
                                                               uint64_t bytes_per_s);

  void see(const stream::Frame& frame) override { pages_->see(frame); }
  absl::StatusOr<std::span<const std::byte>> contents(const stream::Pages& frame) override {
    return pages_->contents(frame);
  }
  absl::Status read(uint64_t space, std::span<const stream::PageRun> runs,
                    std::span<std::byte> to) override;
  uint64_t identity() const override { return pages_->identity(); }
  absl::Status serve(tls::Channel& faults, tls::Channel& push,
                     const migration::PagesTold& told) override;

 private:
  LazyImage(std::string path, std::unique_ptr<pages::ImagePages> pages, uint64_t bytes_per_s)
      : path_(std::move(path)), pages_(std::move(pages)), bytes_per_s_(bytes_per_s) {}
  const std::string path_;
  std::unique_ptr<pages::ImagePages> pages_;
  const uint64_t bytes_per_s_;
};

// Of a process or of a file, until the other end has all.
absl::Status serve_pages(pages::PageSource& source, pages::Pacer pacer, tls::Channel& faults,
                         tls::Channel& push, const migration::PagesTold& told);

}  // namespace godwit::node

#endif  // GODWIT_NODE_LAZY_IMAGE_H_
