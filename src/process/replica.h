// The destination's half of the pipeline: applies epochs to husks as they arrive, and activates.
//
//   for each frame: apply(frame)        sections are brought to the husks when the epoch's first
//                                       page frame (or its end) arrives, pages at once
//   after the final epoch: make_ready() everything but letting it run: from here on only the commit
//                                       decides
//   release()                           the mover's death no longer ends the husks: the cgroup
//                                       freezer holds them, and whoever owns the commit thaws
//   activate()                          detach; the caller thaws
//   discard()                           nothing is left
//
// One thread. What a frame says is hostile: a status says what is wrong, and discard() cleans up.
#ifndef GODWIT_PROCESS_REPLICA_H_
#define GODWIT_PROCESS_REPLICA_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/applier.h"
#include "pages/fault_service.h"
#include "pages/work_pool.h"
#include "process/background.h"
#include "process/husk.h"
#include "process/priority.h"
#include "process/shared_objects.h"
#include "process/spans.h"
#include "process/verify.h"
#include "resource/io_uring/io_uring.pb.h"
#include "resource/process_tree/process_tree.h"
#include "resource/resource.h"
#include "resource/terminal/terminal.h"
#include "stream/stream.h"

namespace godwit::process {

// What a replica needs of its capsule.
struct ReplicaHost {
  HostPid init;
  // Makes a husk that is a child of init; its end of the channel is `socket`, to be kept at
  // `number`.
  std::function<absl::StatusOr<HostPid>(ImagePid pid, int socket, int number)> spawn_husk;
  // See CaptureContext::in_capsule.
  std::function<absl::Status(absl::FunctionRef<absl::Status()>)> in_capsule;
  std::array<int, 3> stdio = {-1, -1, -1};
  // Of the service's own terminal: the master, to be kept by whoever had it at the source.
  std::function<absl::Status(int master)> take_terminal;
  // A change of the file layer, from a kFileBlocks frame.
  std::function<absl::Status(const stream::FileBlocks&)> apply_file_blocks;
  // Of a clone: its own addresses. Empty: it takes the source's place.
  resource::CloneAddresses clone;
};

struct ReplicaCounts {
  uint32_t processes = 0;
  uint32_t threads = 0;
  uint32_t descriptions = 0;
};

class Replica {
 public:
  static absl::StatusOr<std::unique_ptr<Replica>> create(ReplicaHost host);
  ~Replica();

  absl::Status apply(const stream::Frame& frame);
  // Post-copy: pages that it does not have yet, since the final epoch's end. Whoever takes them has
  // them placed (pages/fault_service.h) from make_ready() on.
  uint64_t pages_missing() const;
  std::vector<pages::FaultService::Space> take_missing();
  // Whether pages of this address space may still become missing: its userfaultfd is made while the
  // husk has root's rights.
  bool may_miss(uint64_t space) const;
  // Before the end of the final epoch: those of the missing pages that cannot come later, or
  // without which it would wait at once. What has no memory any more is not missing from here on.
  absl::StatusOr<std::vector<std::pair<uint64_t, pages::PageSet>>> needed_first();
  absl::Status make_ready();
  absl::Status release();
  // Since release(): ESRCH if a husk was killed. One system call each.
  absl::Status check_whole();
  absl::Status activate();
  // In the freeze: so that it works beside the thread that this belongs to, not instead.
  void keep_off_our_cpu(Background& helper) const {
    if (hurry_) helper.keep_off(hurry_->cpu);
  }
  // It runs and can be reached: no hurry any more.
  void rest();
  void discard();

  // What Source::set_capsule_section() gave; null if nothing came.
  const std::string* capsule_section() const { return wanted("capsule", 0); }

  ReplicaCounts counts() const;
  // Of the final epoch.
  const Spans& spans() const { return spans_; }
  Spans& spans() { return spans_; }

 private:
  class Context;
  friend class Context;
  struct Description {
    std::string kind;
    std::string state;
    UniqueFd fd;
    uint64_t made_in_epoch = 0;
    const resource::FileKind* of = nullptr;
    bool finishes = true;
  };

  // What one husk has to do for its final state, all in one run, and what is checked afterwards.
  struct Restoring {
    Husk* husk;
    std::vector<tracee::Batch> batches;  // of its tasks, in their order
    std::vector<std::pair<size_t, std::function<absl::Status(const tracee::Batch&)>>> checks = {};
    tracee::Batch::Data fault_action = {};  // SIGSEGV's, as it is in the end
    resource::ProcessNotes notes = {};
  };

  explicit Replica(ReplicaHost host);
  absl::Status apply_sections();
  absl::Status read_clock();
  absl::Status build_tree();
  absl::Status seal_memory();
  absl::Status make_posix_queues();
  absl::Status build_threads();
  absl::Status make_terminals();
  absl::Status take_terminal(Husk& husk, uint32_t wanted);
  absl::Status check_controlling_terminals(const resource::ProcessTreeState& tree) const;
  absl::Status set_foreground(const resource::Terminal& terminal);
  absl::Status complete_terminals();
  absl::Status make_ipc();
  absl::Status make_aio();
  absl::Status place_rings(Husk& husk, std::span<const Placement> rings);
  absl::StatusOr<size_t> lend_own_table(Husk& husk, int lowest, tracee::Batch& batch);
  absl::Status make_rings();
  absl::Status finish_under_way(const std::set<uint64_t>& finished);
  absl::Status move_ring_on(const resource::IoUringState& state, uint64_t id, int fd);
  absl::Status map_rings(Husk& husk, const std::map<uint64_t, int>& rings);
  absl::Status make_aio_of(Husk& husk, const std::string& bytes);
  absl::Status run_step(const resource::TreeStep& step);
  absl::Status remove_ended(const std::set<int32_t>& wanted);
  int descriptor_of_object(uint64_t object) const;
  absl::Status make_objects();
  absl::Status map_memory();
  // Its descriptor of an object, by whether it may be written by it.
  using Lent = std::map<std::pair<uint64_t, bool>, int>;
  absl::StatusOr<Lent> lend_objects(Husk& husk, const resource::MemoryMapState& state);
  absl::Status map_memory_of(Husk& husk);
  absl::Status empty_memory_of(Husk& husk);
  absl::Status set_exe(Husk& husk, const resource::MemoryMapState& state);
  absl::Status make_descriptions();
  bool stands(const resource::FileKind& kind, uint64_t id, const std::string& state) const;
  struct WantedDescription;
  absl::Status make_some(std::span<const WantedDescription> some);
  absl::Status make_description(const WantedDescription& wanted);
  void start_completing();
  absl::Status complete_descriptions();
  void run_all(size_t count, absl::FunctionRef<void(size_t)> item);
  absl::Status move_channel();
  absl::Status fill_tables();
  absl::Status fill_table_of(Husk& husk);
  bool table_stands(const Husk& husk, const std::string& bytes) const;
  absl::Status learn_tasks();
  static absl::Status learn(Husk& husk, HuskTask& task);
  absl::Status restore_tasks();
  absl::Status add_task_calls(Restoring& one);
  absl::Status add_finish_calls(Restoring& one, std::set<uint64_t>& done);
  absl::Status restore_last();
  void hurry();
  absl::Status apply_pages(const stream::Pages& pages);
  absl::Status place(pages::PageApplier& applier, const stream::Pages& pages);
  // Waits for those that are being placed.
  absl::Status pages_placed();
  absl::Status drop_pages(const stream::PagesDropped& dropped);
  absl::Status miss_pages(const stream::PagesMissing& missing);
  absl::Status make_userfaultfd(Husk& husk);
  absl::Status arm_missing();
  absl::Status run_drops();
  absl::Status compare(const stream::PageHashes& hashes);
  absl::StatusOr<std::unique_ptr<Space>> space_of(uint64_t space, std::string& name);
  absl::Status end_comparison();
  absl::Status compare_maps(Husk& husk);
  pages::PageSet huge_ranges(const Husk& husk) const;
  absl::StatusOr<Husk*> husk_of(uint64_t space);
  const std::string* wanted(std::string_view kind, uint64_t id) const;

  ReplicaHost host_;
  DescriptorChannel channel_;
  UniqueFd channel_far_;
  std::map<stream::SectionKey, std::string> sections_;
  std::set<stream::SectionKey> changed_;
  std::map<int32_t, Husk> husks_;
  std::map<int32_t, HostPid> zombies_;
  std::map<uint32_t, resource::Terminal> terminals_;  // by index
  // Since it was first needed; null: this kernel does not show it.
  std::optional<std::unique_ptr<kernel::KernelMemory>> kernel_memory_;
  // Sessions' leaders that have taken a controlling terminal: its index, and 1.
  std::map<int32_t, uint32_t> terminal_of_;
  std::map<uint64_t, Description> descriptions_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<pages::WorkPool> pool_;  // for many descriptions
  std::unique_ptr<Background> completer_;
  absl::Status completed_;
  SharedObjects objects_;
  std::map<int32_t, pages::PageApplier> appliers_;
  struct Missing {
    HostPid husk;
    UniqueFd uffd;
    pages::PageSet pages;
  };
  std::map<int32_t, Missing> missing_;
  struct Compared {
    std::string name;
    Comparison comparison;
  };
  std::map<uint64_t, Compared> compared_;  // by space
  bool huge_pages_ = false;
  bool in_epoch_ = false;
  bool final_ = false;
  bool sections_applied_ = false;
  uint64_t epoch_ = 0;
  int64_t source_clock_ns_ = 0;
  uint64_t vdso_syscall_offset_ = 0;
  std::set<int32_t> ignoring_faults_;  // processes whose action for SIGSEGV is to ignore it
  std::unique_ptr<WakefulCpus> cpus_;
  std::unique_ptr<Hurry> hurry_;
  Spans spans_;
  // Places pages while the next ones are received; ends before what it uses.
  std::unique_ptr<Background> placer_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_REPLICA_H_
