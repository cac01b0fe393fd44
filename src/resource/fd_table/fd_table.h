// Which descriptor of which process refers to which open file description.
//
// Facts: pidfd_getfd(2) gives us a duplicate that shares offset and status flags; kcmp(2)
// KCMP_FILE tells whether two descriptors share a description, and is only asked where inodes
// agree (file_order.h); a socket's inode belongs to one description. FD_CLOEXEC is the one thing
// that a duplicate does not show: it comes from fdinfo, or in the freeze from a batch of F_GETFD.
// A duplicate of ours keeps a socket open: outside of the freeze it is closed at once.
#ifndef GODWIT_RESOURCE_FD_TABLE_FD_TABLE_H_
#define GODWIT_RESOURCE_FD_TABLE_FD_TABLE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "resource/fd_table/fd_table.pb.h"
#include "resource/fd_table/file_order.h"
#include "resource/resource.h"

namespace godwit::resource {

// False for sockets, which have their signals' owner in their own state.
bool has_signal_owner_in_table(const OpenFile& file);

struct FdHolder {
  ImagePid tgid;
  HostPid host_tgid;
  int pidfd = -1;
};

// Calls `item` for every i < count, maybe on several threads at once; back when all are done.
using RunAll = absl::FunctionRef<void(size_t count, absl::FunctionRef<void(size_t)> item)>;

// Every description of a tree, with our duplicates, and every table.
class Descriptors {
 public:
  // By the description's id, what the last round found of those whose kind settles.
  struct Known {
    OpenFile file;
    const FileKind* kind = nullptr;
    std::optional<TcpView> tcp;  // by its view then
  };
  using KnownFiles = absl::flat_hash_map<uint64_t, Known>;

  struct Description {
    OpenFile file;                   // file.fd is owned by `duplicate`
    UniqueFd duplicate;              // none: see OpenFile::fd
    const FileKind* kind = nullptr;  // null: nobody recognises it
    // Of a kind that is still(): what capture() gave in settle().
    std::optional<absl::StatusOr<std::string>> still;
    // Of one that stands: as it was in the last round, and whether its view is the same by now, so
    // that its state is.
    const Known* known = nullptr;
    bool same = false;
  };

  // What a reading may be faster by.
  struct Hints {
    const FileRanks* ranks = nullptr;  // of an earlier reading
    // In the freeze: views, and what they may prove unchanged. All three or none.
    FileViews* views = nullptr;
    const KnownFiles* known = nullptr;
    const CaptureContext* context = nullptr;
  };
  // Takes the descriptors of all processes, but for those that stand. close_on_exec is not filled:
  // see below.
  static absl::StatusOr<Descriptors> read(std::span<const FdHolder> processes, const Hints& hints);
  // The record locks of all processes, into their tables. After read(), before anything is
  // captured.
  absl::Status read_locks();
  // In the freeze: who gets signals of descriptions that are no sockets.
  absl::Status read_signal_owners(const CaptureContext& context);
  // Of its TCP sockets, as they are now.
  absl::Status see(FileViews& views);
  // Of a description that stood: a duplicate after all. Any thread, for different ones.
  absl::Status take(size_t index);
  // Every such duplicate, given to `use`.
  absl::Status for_untaken(absl::FunctionRef<absl::Status(int)> use) const;
  // What read() leaves out: link, kind and fdinfo of each description. Any thread may do it.
  absl::Status look(RunAll run_all);
  // In the freeze: look() and FileKind::settle(), on every thread that calls it together, until all
  // are done or taken by another. `before`: of the last round.
  absl::Status settle(const CaptureContext& context, const KnownFiles& before);
  // In a round, after look(): settle() of one description. `before`: of an earlier round.
  void settle_one(size_t index, const CaptureContext& context, const KnownFiles& before) {
    Description& one = descriptions_[index];
    if (const auto known = before.find(one.file.id); known != before.end())
      one.file.settled_before = known->second.file.settled;
    one.file.settled = one.kind->settle(one.file, context);
  }
  // Those with what settle_one() gave; nothing else may be asked of them afterwards.
  KnownFiles take_known();
  FileRanks ranks() const;

  const std::vector<Description>& descriptions() const { return descriptions_; }
  const absl::flat_hash_map<ImagePid, FdTableState>& tables() const { return tables_; }
  // In the freeze, when all have been looked at: descriptions that unread messages of unix sockets
  // hold (SCM_RIGHTS), also those in such sockets' own queues, as long as there are new ones.
  // kUnavailable: one of a kind that needs a descriptor of a process.
  absl::Status add_under_way();

  // Empty for a process that had ended.
  const FdTableState& table(ImagePid tgid) const;

  // From /proc/PID/fdinfo, for a running program.
  absl::Status read_close_on_exec(std::span<const FdHolder> processes);
  // From a batch with the calls of add_close_on_exec_calls() for numbers(tgid).
  absl::Status set_close_on_exec(ImagePid tgid, const tracee::Batch& batch,
                                 std::span<const size_t> calls);

  // Of the table's entries, in their order.
  std::vector<int> numbers(ImagePid tgid) const;
  size_t largest_table() const;
  uint64_t description_at(ImagePid tgid, int fd) const;
  std::vector<const OpenFile*> with_inode(dev_t dev, ino_t ino) const;

 private:
  // A descriptor of a file on which there may be a record lock of its process.
  struct Lockable {
    ImagePid tgid;
    HostPid host_tgid;
    int fd = -1;
    size_t description = 0;  // of descriptions_
  };
  std::vector<Lockable> lockable() const;

  absl::StatusOr<bool> read_views(std::span<const FdHolder> processes, const Hints& hints);
  absl::StatusOr<size_t> add_seen(const FdHolder& holder, const FileView& view, const Hints& hints);
  absl::Status add(const FdHolder& holder, int fd);
  absl::StatusOr<size_t> find_or_add(const FdHolder& holder, int fd, UniqueFd duplicate);
  void add_entry(const FdHolder& holder, int fd, size_t index);
  std::vector<Description> descriptions_;
  absl::flat_hash_map<ImagePid, FdTableState> tables_;
  struct SameInode {
    std::vector<size_t> indexes;  // of descriptions_
    FileOrder order;              // but for sockets
  };
  absl::flat_hash_map<std::pair<uint64_t, uint64_t>, SameInode> by_inode_;
  const FileRanks* before_ = nullptr;  // while reading
  std::vector<FdHolder> processes_;
  std::optional<std::vector<Lockable>> seen_lockable_;  // by views
  std::unique_ptr<std::atomic<size_t>> next_to_settle_ = std::make_unique<std::atomic<size_t>>(0);
};

// One F_GETFD a descriptor.
std::vector<size_t> add_close_on_exec_calls(std::span<const int> fds, tracee::Batch& batch);

// What must change in a husk's table.
struct FdTableChange {
  std::vector<int> close;
  std::vector<FdTableState::Entry> place;      // new, or another description than before
  std::vector<FdTableState::Entry> set_flags;  // only close_on_exec differs
};
// `remade`: descriptions that were made anew: their descriptors are placed again.
FdTableChange compare_fd_tables(const FdTableState& now, const FdTableState& wanted,
                                absl::FunctionRef<bool(uint64_t)> remade);

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FD_TABLE_FD_TABLE_H_
