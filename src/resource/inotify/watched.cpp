#include "resource/inotify/watched.h"

#include <sys/sysmacros.h>

#include <cstring>

#include "base/status.h"

namespace godwit::resource {
namespace {

using kernel::KernelAddress;
using kernel::KernelMemory;

// A list that changes under us, or is none, ends.
constexpr int kMostWatches = 1 << 20;
constexpr int kMostNames = 64;
constexpr int kMostParents = 4096;
constexpr size_t kMostName = 255;  // NAME_MAX

// The name of one entry, without its folder.
absl::StatusOr<std::string> name_of(const KernelMemory& memory, KernelAddress dentry) {
  // d_name is a struct qstr: {hash and length in 8 bytes, pointer}, of which the length is the
  // upper half.
  GW_ASSIGN_OR_RETURN(const KernelAddress name, memory.member(dentry, "dentry", "d_name"));
  GW_ASSIGN_OR_RETURN(const uint64_t length, memory.number(name, "qstr", "len"));
  GW_ASSIGN_OR_RETURN(const KernelAddress at, memory.pointer(name, "qstr", "name"));
  if (length == 0 || length > kMostName) return absl::UnavailableError("a name is changing");
  std::string text(length, '\0');
  GW_RETURN_IF_ERROR(memory.read(at, std::as_writable_bytes(std::span(text.data(), length))));
  return text;
}

absl::StatusOr<std::string> path_of(const KernelMemory& memory, KernelAddress dentry) {
  std::string path;
  for (int i = 0; i < kMostParents; ++i) {
    GW_ASSIGN_OR_RETURN(const KernelAddress parent, memory.pointer(dentry, "dentry", "d_parent"));
    if (parent == dentry) return path.empty() ? "/" : path;
    GW_ASSIGN_OR_RETURN(const std::string name, name_of(memory, dentry));
    path.insert(0, "/" + name);
    dentry = parent;
  }
  return absl::UnavailableError("a path has no end");
}

absl::StatusOr<WatchedInode> look_at_inode(const KernelMemory& memory, KernelAddress inode) {
  WatchedInode watched;
  watched.inode = inode;
  GW_ASSIGN_OR_RETURN(const KernelAddress file_system, memory.pointer(inode, "inode", "i_sb"));
  GW_ASSIGN_OR_RETURN(const uint64_t device, memory.number(file_system, "super_block", "s_dev"));
  constexpr unsigned kMinorBits = 20;  // of the kernel's own dev_t
  watched.device = makedev(static_cast<unsigned>(device >> kMinorBits),
                           static_cast<unsigned>(device & ((1U << kMinorBits) - 1)));
  GW_ASSIGN_OR_RETURN(KernelAddress entry, memory.pointer(inode, "inode", "i_dentry.first"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field in_dentry,
                      memory.btf().field("dentry", "d_u.d_alias"));
  for (int i = 0; entry && i < kMostNames; ++i) {
    auto path = path_of(memory, {entry.value - in_dentry.offset});
    if (path.ok()) watched.names.push_back(*std::move(path));
    GW_ASSIGN_OR_RETURN(entry, memory.pointer(entry, "hlist_node", "next"));
  }
  return watched;
}

}  // namespace

absl::StatusOr<kernel::KernelAddress> inode_of(int fd, const KernelMemory& memory) {
  GW_ASSIGN_OR_RETURN(const KernelAddress file, memory.file(fd));
  return memory.pointer(file, "file", "f_inode");
}

absl::StatusOr<InotifyView> look_at_inotify(int fd, const KernelMemory& memory) {
  InotifyView view;
  GW_ASSIGN_OR_RETURN(const KernelAddress file, memory.file(fd));
  GW_ASSIGN_OR_RETURN(const KernelAddress group, memory.pointer(file, "file", "private_data"));
  GW_ASSIGN_OR_RETURN(const uint64_t next,
                      memory.number(group, "fsnotify_group", "inotify_data.idr.idr_next"));
  view.next_number = static_cast<int32_t>(next);
  GW_ASSIGN_OR_RETURN(const KernelAddress head,
                      memory.member(group, "fsnotify_group", "marks_list"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field in_mark,
                      memory.btf().field("fsnotify_mark", "g_list"));
  GW_ASSIGN_OR_RETURN(const kernel::Btf::Field in_watch,
                      memory.btf().field("inotify_inode_mark", "fsn_mark"));
  KernelAddress at = head;
  for (int i = 0; i < kMostWatches; ++i) {
    GW_ASSIGN_OR_RETURN(at, memory.pointer(at, "list_head", "next"));
    if (at == head || !at) return view;
    const KernelAddress mark{at.value - in_mark.offset};
    const KernelAddress watch{mark.value - in_watch.offset};
    GW_ASSIGN_OR_RETURN(const uint64_t number, memory.number(watch, "inotify_inode_mark", "wd"));
    GW_ASSIGN_OR_RETURN(const KernelAddress connector,
                        memory.pointer(mark, "fsnotify_mark", "connector"));
    if (!connector) continue;  // being removed
    GW_ASSIGN_OR_RETURN(const KernelAddress inode,
                        memory.pointer(connector, "fsnotify_mark_connector", "obj"));
    if (!inode) continue;
    GW_ASSIGN_OR_RETURN(view.watched[static_cast<int32_t>(number)], look_at_inode(memory, inode));
  }
  return absl::UnavailableError("the list of watches has no end");
}

}  // namespace godwit::resource
