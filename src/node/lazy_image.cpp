#include "node/lazy_image.h"

#include <fcntl.h>

#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "pages/page_server.h"
#include "process/priority.h"

namespace godwit::node {

absl::Status serve_pages(pages::PageSource& source, pages::Pacer pacer, tls::Channel& faults,
                         tls::Channel& push, const migration::PagesTold& told) {
  process::take_part();
  const process::WakefulCpus awake;
  pages::PageServer server(source, std::move(pacer));
  std::string said;
  return server.serve(faults, push, [&](const pages::PageServerFigures& now) {
    std::string error;
    if (now.unreadable > 0)
      error = fmt::format("{} pages cannot be read: {}", now.unreadable, now.error);
    if (error != said) log_error("{}", said = error);
    told({.left = now.left,
          .given = now.given,
          .faults = now.faults,
          .bytes = now.bytes,
          .error = std::move(error)});
  });
}

absl::StatusOr<std::unique_ptr<LazyImage>> LazyImage::open(const std::string& path,
                                                           uint64_t bytes_per_s) {
  GW_ASSIGN_OR_RETURN(UniqueFd file, kernel::open(path, O_RDONLY | O_CLOEXEC));
  return std::unique_ptr<LazyImage>(
      new LazyImage(path, std::make_unique<pages::ImagePages>(std::move(file)), bytes_per_s));
}

absl::StatusOr<std::unique_ptr<LazyImage>> LazyImage::open_again(const std::string& path,
                                                                 uint64_t identity,
                                                                 uint64_t bytes_per_s) {
  GW_ASSIGN_OR_RETURN(UniqueFd file, kernel::open(path, O_RDONLY | O_CLOEXEC));
  auto pages = pages::ImagePages::index(std::move(file));
  if (!pages.ok()) return annotate(pages.status(), path);
  if ((*pages)->identity() != identity)
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "{} is another file than the one that the service was restored from", path);
  return std::unique_ptr<LazyImage>(new LazyImage(path, *std::move(pages), bytes_per_s));
}

absl::Status LazyImage::read(uint64_t space, std::span<const stream::PageRun> runs,
                             std::span<std::byte> to) {
  for (const stream::PageRun& run : runs) {
    const uint64_t bytes = uint64_t{run.count} * stream::kPageSize;
    GW_RETURN_IF_ERROR(pages_->read(space, {run.address, run.address + bytes}, to.first(bytes)));
    to = to.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status LazyImage::serve(tls::Channel& faults, tls::Channel& push,
                              const migration::PagesTold& told) {
  pages::Pacer pacer;
  pacer.set_limit(bytes_per_s_);
  return annotate(serve_pages(*pages_, std::move(pacer), faults, push, told), path_);
}

}  // namespace godwit::node
