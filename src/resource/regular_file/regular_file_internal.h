// The kind that capture.cpp and restore.cpp share the code of.
#ifndef GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_INTERNAL_H_
#define GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_INTERNAL_H_

#include <string>
#include <string_view>
#include <vector>

#include "resource/resource.h"

namespace godwit::resource {

class RegularFileKind final : public FileKind {
 public:
  std::string_view name() const override { return "regular_file"; }
  bool recognise(const OpenFile& file) const override;
  bool needs_fdinfo() const override { return true; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  bool early() const override { return true; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  bool finishes(std::string_view state) const override;
  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override;
  uint64_t shared_object(std::string_view state) const override;
  std::string describe(std::string_view state) const override;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_REGULAR_FILE_REGULAR_FILE_INTERNAL_H_
