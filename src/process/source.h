// The source's half of the pipeline: captures epochs of a running service, the last one frozen.
//
//   precheck()        what stands in the way; reads only, the program runs
//   start_tracking()  a userfaultfd for every address space (one short stop each), pages watched
//   round(writer)     an epoch while it runs: what changed since the epoch before
//   begin_last_epoch(writer)
//   freeze()          every task stopped, state read by batches, the cgroup freezer on
//   final_state(), final_pages()  the last epoch in two parts: the replica applies the state while
//                     we scan
//   thaw()            the program runs on; freeze() may be tried again
//   withdraw()        rollback, after thaw(): everything of ours is taken out of the program
//   finish()          committed: nothing is given back, the caller ends the processes
//
// One thread (ptrace's rule); scanning and reading use helpers of pages/. A destructor after
// freeze() thaws.
#ifndef GODWIT_PROCESS_SOURCE_H_
#define GODWIT_PROCESS_SOURCE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/kernel_memory.h"
#include "pages/pinned.h"
#include "pages/work_pool.h"
#include "process/background.h"
#include "process/object_sender.h"
#include "process/priority.h"
#include "process/source_process.h"
#include "process/spans.h"
#include "resource/fd_table/fd_table.h"
#include "resource/process_tree/process_tree.h"
#include "resource/resource.h"
#include "resource/shared_object/shared_object.pb.h"
#include "resource/sysv_ipc/sysv_ipc.pb.h"
#include "resource/terminal/terminal.h"
#include "stream/stream.h"
#include "tracee/freeze.h"

namespace godwit::process {

// What a source needs of its capsule.
struct SourceHost {
  HostPid init;
  // Thread group leaders of the service, init not among them.
  std::function<absl::StatusOr<std::vector<HostPid>>()> members;
  // The cgroup freezer: asked for, not waited for.
  std::function<absl::Status()> hold;
  std::function<absl::Status()> release;
  // Beside other work, once no task runs any more: looks for what the last epoch's `extra` sends.
  std::function<absl::Status()> look_at_files;
  std::function<absl::Status(absl::FunctionRef<absl::Status()>)> in_capsule;
  std::array<ino_t, 3> stdio_inodes = {0, 0, 0};
  int terminal = -1;  // the master of the service's own, if it has one
  // resource::CaptureContext::options_changed().
  std::function<bool(uint64_t, uint16_t, uint16_t)> options_changed = [](uint64_t, uint16_t,
                                                                         uint16_t) { return true; };
  // Told of every userfaultfd before anything is registered with it, so that somebody has a copy.
  std::function<void(HostPid, int)> tracks = [](HostPid, int) {};
};

// A file that a mapping, an executable's link or a descriptor refers to by its path.
struct FileInUse {
  std::string path;  // as the capsule sees it
  bool mapped = false;
  std::string object;  // in /proc: stat(2) of it gives the file; empty: these say it
  uint64_t device = 0;
  uint64_t inode = 0;
};

struct SourceCounts {
  uint32_t processes = 0;
  uint32_t threads = 0;
  uint32_t descriptors = 0;
  uint32_t connections = 0;
};

// Pages that a move has to carry.
struct MemoryEstimate {
  uint64_t resident_pages = 0;
  uint64_t zero_pages = 0;  // of them, by a sample
};

class Source {
 public:
  static absl::StatusOr<std::unique_ptr<Source>> create(SourceHost host);
  ~Source();

  absl::Status precheck(std::vector<resource::Refusal>& refusals);
  // Reads only; the program runs.
  absl::StatusOr<MemoryEstimate> estimate() const;
  absl::Status start_tracking();
  // Longest time a task was stopped by start_tracking or a round.
  int64_t longest_stop_ns() const { return longest_stop_ns_; }

  // `extra` writes frames that are not the engine's (the file layer's) after the sections.
  using Extra = std::function<absl::Status()>;
  absl::StatusOr<RoundResult> round(stream::Writer& writer, const Extra& extra);
  // The same, but pages that the replica can run without are named, not sent: post-copy. What the
  // last epoch finds of such pages it sends if it is little, or else names.
  absl::StatusOr<RoundResult> leave_behind(stream::Writer& writer, const Extra& extra);
  uint64_t pages_left_behind() const;
  // Of this end, after finish() too: pids in the image, and here.
  std::vector<std::pair<ImagePid, HostPid>> processes() const;

  // Before freeze(): the replica makes itself ready for what comes.
  absl::Status begin_last_epoch(stream::Writer& writer);
  absl::Status freeze();
  // After freeze(), when nothing can arrive any more (the gate is closed): the state of every open
  // file description. kUnavailable: something passing stands in the way (a connection about to be
  // accepted): thaw, and try again.
  absl::Status capture_descriptions();
  absl::Status final_state(stream::Writer& writer, const Extra& extra);
  absl::StatusOr<RoundResult> final_pages(stream::Writer& writer);
  // final_pages() also sends the hash of every page (verify.h).
  void verify_pages() { verify_ = true; }
  // The replica is of a version that does not know MemoryMapState.program.
  void replica_keeps_programs() { replica_follows_programs_ = false; }

  // After final_pages(): what is left to do is the replica's.
  void rest() { hurry_.reset(); }

  absl::Status thaw();
  absl::Status withdraw();
  void finish();

  // Of the sections that were written last, each path once: for `extra`.
  std::vector<FileInUse> files_in_use() const;

  // A section that is not the engine's own business travels with the others.
  void set_capsule_section(std::string state) { set_section("capsule", std::move(state)); }
  void set_section(std::string kind, std::string state) {
    own_sections_.insert_or_assign(std::move(kind), std::move(state));
  }

  SourceCounts counts() const { return counts_; }
  // Open file descriptions that the precheck saw, by the name of their kind.
  const std::map<std::string, uint32_t>& descriptions_by_kind() const { return by_kind_; }
  Spans& spans() { return spans_; }
  // Rate limit, cancel and counts; may be used by other threads.
  pages::SendControl& control() { return control_; }

 private:
  class Context;
  friend class Context;
  struct Capturing;
  explicit Source(SourceHost host);

  void count_descriptors();
  absl::Status precheck_process(const resource::TreeProcess& process,
                                std::vector<resource::Refusal>& refusals);
  absl::Status read_tree();
  absl::Status read_frozen_tree();
  bool tree_stands() const;
  void count_tree();
  absl::Status forget_old_program(SourceProcess& process);
  absl::Status track_new_processes();
  static absl::StatusOr<std::vector<tracee::StoppedTask>> stop_for_calls(HostPid pid, bool whole);
  absl::Status open_tracker(SourceProcess& process);
  absl::StatusOr<UniqueFd> take_userfaultfd(SourceProcess& process, tracee::StoppedTask& task);
  absl::StatusOr<std::vector<int>> inherited_by(const SourceProcess& process) const;
  absl::Status close_inherited(SourceProcess& process, tracee::StoppedTask& task);
  absl::Status attach_tracker(SourceProcess& process, tracee::StoppedTask& task);
  absl::Status go_without_tracker(SourceProcess& process);
  absl::Status map_area(SourceProcess& process, tracee::StoppedTask& task);
  absl::StatusOr<bool> adopt_inherited_area(SourceProcess& process);
  // The text that `maps` was read from, for maps_text when the memory map has been captured; empty
  // if there is none.
  absl::StatusOr<std::string> read_maps_of(SourceProcess& process, bool with_flags);
  absl::Status read_flags_of(SourceProcess& process);
  absl::Status read_flags_below(SourceProcess& process, uint64_t address);
  static void cut_out_area(SourceProcess& process);
  std::vector<resource::FdHolder> holders() const;
  absl::Status read_descriptors();
  absl::Status look_at_descriptors();
  void begin_reading();
  absl::Status give_up_reading();
  absl::Status await_descriptors();
  absl::Status settle_descriptors();
  absl::Status take_what_is_not_seen();
  absl::Status clock_section(stream::Writer& writer);
  void run_all(size_t count, absl::FunctionRef<void(size_t)> item);

  void begin_sections(bool final);
  absl::Status section(stream::Writer& writer, std::string kind, uint64_t id, std::string state);
  bool note_same(const resource::Descriptors::Description& one);
  absl::Status end_sections(stream::Writer& writer);
  absl::Status tree_section(stream::Writer& writer);
  absl::Status read_ipc();
  absl::Status read_semaphores(std::vector<resource::SemaphoreSetState>& sets);
  absl::Status precheck_ipc(std::vector<resource::Refusal>& refusals);
  absl::Status for_named_queues(
      absl::FunctionRef<absl::Status(int, const std::string&)> each) const;
  absl::Status segment_sections(stream::Writer& writer);
  std::map<uint32_t, resource::TerminalEnds> terminals() const;
  absl::StatusOr<const kernel::KernelMemory*> kernel_memory() const;
  absl::Status capture_terminals();
  absl::Status terminal_sections(stream::Writer& writer);
  absl::Status precheck_terminals(std::vector<resource::Refusal>& refusals);
  absl::Status memory_sections(stream::Writer& writer);
  absl::Status capture_aio();
  absl::Status drain_io_uring();
  bool has_ring(uint64_t inode) const;
  bool uses_io_uring(HostPid pid) const;
  absl::Status precheck_aio(const SourceProcess& process, std::string_view name,
                            std::vector<resource::Refusal>& refusals) const;
  void note_direct_io();
  static void note_pins(SourceProcess& process);
  static void note_io_uring(SourceProcess& process);
  absl::Status keep_pinned(SourceProcess& process, const pages::ScanResult& found);
  static void forget_replaced(SourceProcess& process);
  absl::Status descriptor_sections(stream::Writer& writer);
  absl::Status task_sections(stream::Writer& writer);
  void note_open_files();
  absl::StatusOr<RoundResult> send_pages(stream::Writer& writer, bool frozen);
  absl::Status send_pages_of(SourceProcess& process, stream::Writer& writer, bool frozen,
                             RoundResult& result);
  absl::StatusOr<pages::PageSet> leave_out_of(SourceProcess& process, bool frozen,
                                              pages::ScanResult& found);
  absl::StatusOr<pages::PageSet> first_needed(const SourceProcess& process) const;
  absl::StatusOr<ObjectSender*> sender_of_segment(const resource::SharedObjectState& segment);
  absl::StatusOr<UniqueFd> open_segment(const resource::SharedObjectState& segment);
  absl::Status send_object(ObjectSender& sender, stream::Writer& writer, bool frozen);
  absl::Status send_objects(stream::Writer& writer, bool frozen);
  absl::Status send_all_hashes(stream::Writer& writer);
  absl::Status send_hashes_of(const FrozenProcess& frozen, stream::Writer& writer);

  void hurry();
  absl::Status adopt_stopped(tracee::FrozenTree tree);
  void start_last_scan();
  absl::Status scan_frozen();
  absl::Status capture_memory_of(SourceProcess& process);
  absl::Status run_capture_batches();
  static std::string describe(const FrozenProcess& frozen);
  using SeenTasksOf = absl::flat_hash_map<HostPid, resource::SeenTask>;
  // From so many threads on in a process; to make ready what shows them takes some milliseconds of
  // a round.
  static constexpr size_t kWorthSeeing = 8;
  void prepare_to_see_tasks();
  SeenTasksOf see_tasks(const FrozenProcess& frozen);
  absl::Status add_capture_calls(Capturing& one);
  absl::Status collect_states(Capturing& one);

  SourceHost host_;
  std::unique_ptr<resource::PidTranslator> translate_;
  resource::ProcessTree tree_;
  std::map<int32_t, SourceProcess> processes_;
  uint64_t programs_ = 0;  // SourceProcess::program
  struct Sent {
    std::string state;
    uint64_t seen = 0;  // in which pass
  };
  absl::flat_hash_map<stream::SectionKey, Sent> sent_;
  uint64_t pass_ = 0;
  // Copies of the userfaultfds of processes with several threads: see inherited_by().
  std::vector<UniqueFd> perhaps_inherited_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<resource::Descriptors> descriptors_;
  resource::FileRanks file_ranks_;                   // of the last reading while it ran
  resource::Descriptors::KnownFiles known_files_;    // of the last round
  std::unique_ptr<resource::FileViews> file_views_;  // for many descriptors
  bool without_views_ = false;                       // this kernel has none
  std::unique_ptr<resource::SeenTasks> seen_tasks_;  // for many threads
  bool without_seen_tasks_ = false;                  // this kernel shows none
  std::unique_ptr<pages::WorkPool> pool_;  // what is done in the freeze for many descriptors
  std::vector<FrozenProcess> frozen_;
  std::vector<std::pair<stream::SectionKey, std::string>> task_states_;
  std::vector<std::pair<stream::SectionKey, std::string>> file_states_;
  std::vector<stream::SectionKey> same_states_;      // those that the replica has
  std::map<std::string, std::string> own_sections_;  // of the caller
  std::vector<FileInUse> open_files_;
  bool final_ = false;
  bool holding_ = false;
  bool verify_ = false;
  bool replica_follows_programs_ = true;
  bool leaving_behind_ = false;
  int64_t longest_stop_ns_ = 0;
  SourceCounts counts_;
  std::map<std::string, uint32_t> by_kind_;
  Spans spans_;
  pages::SendControl control_;
  std::map<uint64_t, std::unique_ptr<ObjectSender>> objects_;
  mutable std::mutex kernel_memory_mutex_;
  mutable std::unique_ptr<kernel::KernelMemory> kernel_memory_;         // since it was first needed
  std::vector<std::pair<stream::SectionKey, std::string>> ipc_states_;  // of the last epoch
  UniqueFd queue_folder_;  // of the capsule's POSIX message queues
  std::vector<std::pair<uint32_t, std::string>> terminal_states_;
  std::vector<resource::SharedObjectState> segments_;  // of System V, of this pass
  std::unique_ptr<WakefulCpus> cpus_;                  // from the end of the first round on
  std::unique_ptr<Hurry> hurry_;                       // from freeze() to thaw() or finish()
  std::unique_ptr<Background> scanner_;
  std::unique_ptr<Background> settler_;
  bool reading_ = false;               // by the settler
  std::promise<absl::Status> read_;    // by it: tables, before it looks at each description
  std::promise<absl::Status> looked_;  // by the scanner: maps and files, before it scans
  std::shared_future<absl::Status> has_looked_;
  std::vector<std::pair<stream::SectionKey, std::string>> aio_states_;  // of the freeze
  std::optional<pages::PinnedPages> pinned_;                            // since it was first needed
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_SOURCE_H_
