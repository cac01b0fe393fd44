// The kind that capture.cpp and restore.cpp share the code of.
#ifndef GODWIT_RESOURCE_PIPE_PIPE_INTERNAL_H_
#define GODWIT_RESOURCE_PIPE_PIPE_INTERNAL_H_

#include <string>
#include <string_view>
#include <vector>

#include "resource/resource.h"

namespace godwit::resource {

class PipeKind final : public FileKind {
 public:
  explicit PipeKind(bool named) : named_(named) {}
  std::string_view name() const override { return named_ ? "named_pipe" : "pipe"; }
  bool recognise(const OpenFile& file) const override;
  bool needs_fdinfo() const override { return false; }
  absl::Status precheck(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) const override;
  absl::StatusOr<std::string> capture(const OpenFile& file,
                                      const CaptureContext& context) const override;
  // A FIFO is a file of the layer, which is complete in the end.
  bool early() const override { return !named_; }
  absl::StatusOr<UniqueFd> create(uint64_t id, std::string_view state,
                                  RestoreContext& context) const override;
  absl::StatusOr<bool> update(int fd, std::string_view before, std::string_view now,
                              RestoreContext& context) const override;
  absl::StatusOr<Check> finish(int fd, std::string_view state, ImagePid tgid, int remote_fd,
                               tracee::Batch& batch, RestoreContext& context) const override;
  std::string describe(std::string_view state) const override;

 private:
  bool named_;
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_PIPE_PIPE_INTERNAL_H_
