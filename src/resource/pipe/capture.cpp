// pipe(7). Both ends have one inode of pipefs. Content is copied out by tee(2), which consumes
// nothing, into a pipe of ours; packet marks (O_DIRECT, pipe(2)) are on the buffers and go along.
// Of a pipe that was switched between the two modes with bytes inside, the boundary between the
// last stream bytes and a first packet is not seen: they become one piece.
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <optional>

#include "kernel/kernel_memory.h"
#include "resource/file_description.h"
#include "resource/file_name.h"
#include "resource/pipe/pipe.h"
#include "resource/pipe/pipe.pb.h"
#include "resource/pipe/pipe_internal.h"

namespace godwit::resource {
namespace {

// O_LARGEFILE, which glibc hides: open(2) sets it, pipe(2) does not, nothing can clear it, and on a
// pipe it means nothing. So it is left out.
constexpr int kLargeFile = 0100000;

bool can_read(int flags) { return (flags & O_ACCMODE) != O_WRONLY; }
bool can_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

// The tree's descriptions of this pipe, this one included, by id.
struct Members {
  std::vector<const OpenFile*> all;
  const OpenFile* reader = nullptr;
  bool writer = false;
  bool packets = false;
};

Members members_of(const OpenFile& file, const CaptureContext& context) {
  Members m;
  m.all = context.with_inode(file.stat.st_dev, file.stat.st_ino);
  std::erase_if(m.all, [](const OpenFile* f) { return (f->status_flags & O_PATH) != 0; });
  if (std::none_of(m.all.begin(), m.all.end(),
                   [&](const OpenFile* f) { return f->id == file.id; })) {
    m.all.push_back(&file);
  }
  std::sort(m.all.begin(), m.all.end(),
            [](const OpenFile* a, const OpenFile* b) { return a->id < b->id; });
  for (const OpenFile* f : m.all) {
    if (m.reader == nullptr && can_read(f->status_flags)) m.reader = f;
    m.writer = m.writer || can_write(f->status_flags);
    m.packets = m.packets || (can_write(f->status_flags) && (f->status_flags & O_DIRECT) != 0);
  }
  return m;
}

std::optional<int> stdio_stream(const OpenFile& file, const CaptureContext& context) {
  for (int stream = 0; stream < 3; ++stream) {
    const ino_t inode = context.stdio_inode(stream);
    if (inode != 0 && inode == file.stat.st_ino) return stream;
  }
  return std::nullopt;
}

// The other end is in nobody's hands: a read would give the end of file, a write EPIPE.
bool hung_up(const OpenFile& file) {
  pollfd p{file.fd, 0, 0};
  return ::poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR)) != 0;
}

absl::StatusOr<std::vector<std::string>> copy_content(int reader, int capacity) {
  std::vector<std::string> pieces;
  GW_ASSIGN_OR_RETURN(const kernel::Pipe scratch, kernel::pipe2(O_NONBLOCK));
  // Slots, not bytes, limit a tee: as many as the pipe itself has.
  GW_RETURN_IF_ERROR(kernel::fcntl_int(scratch.write.get(), F_SETPIPE_SZ, capacity).status());
  const ssize_t copied =
      ::tee(reader, scratch.write.get(), static_cast<size_t>(capacity), SPLICE_F_NONBLOCK);
  if (copied < 0 && errno != EAGAIN) {
    return errno_status(errno, fmt::format("tee({}, {} bytes)", reader, capacity));
  }
  for (ssize_t left = std::max<ssize_t>(copied, 0); left > 0;) {
    std::string piece(static_cast<size_t>(left), '\0');
    const ssize_t n = ::read(scratch.read.get(), piece.data(), piece.size());
    if (n <= 0) return errno_status(n < 0 ? errno : EIO, "read(copy of a pipe's content)");
    piece.resize(static_cast<size_t>(n));
    pieces.push_back(std::move(piece));
    left -= n;
  }
  return pieces;
}

absl::Status check_name(const OpenFile& file, const CaptureContext& context,
                        std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const kernel::FdInfo info, fdinfo_of(file));
  GW_ASSIGN_OR_RETURN(const bool ours, mount_is_of_capsule(info, context));
  if (!ours) {
    refuse(file, "fd.outside", "it is on a mount that the service does not have",
           "name its folder with --bind and open it there", refusals);
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(const bool here, path_leads_here(file, context));
  if (!here)
    refuse(file, file.stat.st_nlink == 0 ? "fd.deleted" : "fd.hidden",
           "a FIFO whose name has been removed, or leads to another file, cannot be opened again",
           "close it, or open it again by a name that it has", refusals);
  return absl::OkStatus();
}

// Of a FIFO nobody tells whether its other end is open somewhere, but the kernel counts them: all
// are descriptions of the tree. While a program runs it may be about to open one.
absl::Status check_ends(const OpenFile& file, const CaptureContext& context, const Members& members,
                        std::vector<Refusal>& refusals) {
  GW_ASSIGN_OR_RETURN(const kernel::KernelMemory* memory, context.kernel_memory());
  GW_ASSIGN_OR_RETURN(const kernel::KernelAddress opened, memory->file(file.fd));
  GW_ASSIGN_OR_RETURN(const kernel::KernelAddress inode,
                      memory->pointer(opened, "file", "f_inode"));
  GW_ASSIGN_OR_RETURN(const kernel::KernelAddress pipe, memory->pointer(inode, "inode", "i_pipe"));
  GW_ASSIGN_OR_RETURN(const uint64_t readers, memory->number(pipe, "pipe_inode_info", "readers"));
  GW_ASSIGN_OR_RETURN(const uint64_t writers, memory->number(pipe, "pipe_inode_info", "writers"));
  uint64_t own_readers = 0;
  uint64_t own_writers = 0;
  for (const OpenFile* one : members.all) {
    own_readers += can_read(one->status_flags) ? 1 : 0;
    own_writers += can_write(one->status_flags) ? 1 : 0;
  }
  if (readers != own_readers || writers != own_writers)
    refuse(file, "pipe.outside", "a process outside of the service has it open",
           "close it on one side, or run both programs in one service", refusals);
  return absl::OkStatus();
}

}  // namespace

const FileKind& pipe_kind() {
  static const PipeKind kind(false);
  return kind;
}

const FileKind& named_pipe_kind() {
  static const PipeKind kind(true);
  return kind;
}

bool PipeKind::recognise(const OpenFile& file) const {
  return S_ISFIFO(file.stat.st_mode) && (file.status_flags & O_PATH) == 0 &&
         named_ != file.link.starts_with("pipe:[");
}

absl::Status PipeKind::precheck(const OpenFile& file, const CaptureContext& context,
                                std::vector<Refusal>& refusals) const {
  if (named_) return check_name(file, context, refusals);
  if (stdio_stream(file, context)) return absl::OkStatus();
  const Members members = members_of(file, context);
  if ((members.reader == nullptr || !members.writer) && !hung_up(file)) {
    refuse(file, "pipe.outside", "its other end is held by a process outside of the service",
           "close it on one side, or run both programs in one service", refusals);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PipeKind::capture(const OpenFile& file,
                                              const CaptureContext& context) const {
  std::vector<Refusal> refusals;
  GW_RETURN_IF_ERROR(precheck(file, context, refusals));
  GW_RETURN_IF_ERROR(refused_now(refusals));
  const Members members = members_of(file, context);
  if (named_ && context.final()) {
    const absl::Status counted = check_ends(file, context, members, refusals);
    if (!counted.ok())
      refuse(file, "pipe.kernel",
             "the kernel does not show who has it open: " + std::string(message_of(counted)),
             "a kernel with CONFIG_DEBUG_INFO_BTF", refusals);
    GW_RETURN_IF_ERROR(refused_now(refusals));
  }
  const std::optional<int> stream = stdio_stream(file, context);
  GW_ASSIGN_OR_RETURN(const int capacity, kernel::fcntl_int(file.fd, F_GETPIPE_SZ));
  PipeState state;
  state.set_inode(file.stat.st_ino);
  state.set_flags(static_cast<uint32_t>(file.status_flags & ~kLargeFile));
  state.set_capacity(static_cast<uint32_t>(capacity));
  for (const OpenFile* other : members.all) {
    if (other->id != file.id) state.add_others(other->id);
  }
  state.set_has_reader(members.reader != nullptr);
  state.set_has_writer(members.writer);
  state.set_stdio(stream ? static_cast<uint32_t>(*stream) + 1 : 0);
  state.set_packets(members.packets);
  if (named_) {
    state.set_path(file.link);
    state.set_quiet(!members.writer && !can_write(file.status_flags) && !hung_up(file));
  }
  // What the service has written to its own stdout stays with the shim that reads it here.
  const bool carries = members.all.front()->id == file.id && (!stream || *stream == 0);
  if (context.final() && carries && members.reader != nullptr) {
    GW_ASSIGN_OR_RETURN(std::vector<std::string> pieces,
                        copy_content(members.reader->fd, capacity));
    if (pieces.size() > 1) state.set_packets(true);
    for (std::string& piece : pieces) state.add_content(std::move(piece));
  }
  return state.SerializeAsString();
}

}  // namespace godwit::resource
