// The kind that capture.cpp and restore.cpp share the code of.
#ifndef GODWIT_RESOURCE_IO_URING_KIND_H_
#define GODWIT_RESOURCE_IO_URING_KIND_H_

#include <string>
#include <string_view>
#include <vector>

#include "resource/resource.h"

namespace godwit::resource {

class IoUringKind final : public FileKind {
 public:
  std::string_view name() const override { return "io_uring"; }
  bool recognise(const OpenFile& file) const override;
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  // To get where it was takes its requests' time.
  bool early() const override { return true; }
  bool finishes(std::string_view) const override { return false; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override;
  std::string describe(std::string_view state) const override;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_IO_URING_KIND_H_
