// What file kinds may ask of the source that they are captured from.
#ifndef GODWIT_PROCESS_SOURCE_CONTEXT_H_
#define GODWIT_PROCESS_SOURCE_CONTEXT_H_

#include <vector>

#include "process/source.h"

namespace godwit::process {

class Source::Context final : public resource::CaptureContext {
 public:
  explicit Context(const Source& source) : source_(source) {}

  bool final() const override { return source_.final_; }
  uint64_t description_at(ImagePid tgid, int fd) const override {
    return source_.descriptors_->description_at(tgid, fd);
  }
  std::vector<const resource::OpenFile*> with_inode(dev_t dev, ino_t ino) const override {
    return source_.descriptors_->with_inode(dev, ino);
  }
  ino_t stdio_inode(int stream) const override {
    return source_.host_.stdio_inodes.at(static_cast<size_t>(stream));
  }
  absl::Status in_capsule(absl::FunctionRef<absl::Status()> action) const override {
    return source_.host_.in_capsule(action);
  }
  HostPid init_pid() const override { return source_.host_.init; }
  absl::StatusOr<const kernel::KernelMemory*> kernel_memory() const override {
    return source_.kernel_memory();
  }
  bool options_changed(uint64_t netns_cookie, uint16_t local_port,
                       uint16_t remote_port) const override {
    return source_.host_.options_changed(netns_cookie, local_port, remote_port);
  }

 private:
  const Source& source_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_SOURCE_CONTEXT_H_
