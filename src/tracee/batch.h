// A table of system calls that the stub runs inside a stopped task in one go: 0.2-0.3 us a call.
//
//   Batch batch;
//   auto set = batch.data(bytes_of(mask));            // copied into the task before the run
//   auto out = batch.reserve(sizeof(stack_t));        // room for results
//   size_t c = batch.call(SYS_sigaltstack, {0, out});
//   GW_RETURN_IF_ERROR(area.run(task, batch));
//   batch.result(c);  batch.bytes(out);
#ifndef GODWIT_TRACEE_BATCH_H_
#define GODWIT_TRACEE_BATCH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "tracee/remote_syscalls.h"
#include "tracee/task.h"

namespace godwit::tracee {

namespace internal {
struct SignalSets;
}

class Batch {
 public:
  static constexpr size_t kArguments = 6;
  // A place in the batch's data area; becomes an address when the batch runs.
  struct Data {
    uint32_t offset = 0;
    uint32_t size = 0;
  };
  // The result of an earlier call of the same batch, as an argument (a new descriptor, say).
  struct ResultOf {
    size_t call = 0;
  };
  // The place of an argument of a later call: what an earlier one writes there is that argument.
  struct PlaceOf {
    size_t call = 0;
    size_t argument = 0;
  };
  struct Argument {
    enum class Kind : uint8_t { kValue, kData, kResult, kPlace } kind = Kind::kValue;
    uint64_t value = 0;                 // value, offset, call index, or place in the table
    Argument(uint64_t v) : value(v) {}  // NOLINT: implicit on purpose
    Argument(int v) : value(static_cast<uint64_t>(int64_t{v})) {}                         // NOLINT
    Argument(long v) : value(static_cast<uint64_t>(v)) {}                                 // NOLINT
    Argument(unsigned v) : value(v) {}                                                    // NOLINT
    Argument(RemoteAddress a) : value(a.value) {}                                         // NOLINT
    Argument(Data d) : kind(Kind::kData), value(d.offset) {}                              // NOLINT
    Argument(ResultOf r) : kind(Kind::kResult), value(r.call) {}                          // NOLINT
    Argument(PlaceOf p) : kind(Kind::kPlace), value(p.call * kArguments + p.argument) {}  // NOLINT
  };

  Data data(std::span<const std::byte> bytes);  // 16-byte aligned
  Data reserve(size_t bytes);                   // zeroed

  // Address of `d` + `bytes` as a value inside other data (an iovec, a msghdr): patched at run.
  void patch_pointer(Data where, size_t at, Data target);

  // Adds a call; the index is for result(). With must_succeed an error result (-4095..-1) ends
  // the batch there: later calls give -ECANCELED.
  size_t call(long number, std::initializer_list<Argument> arguments, bool must_succeed = false);

  // For what is known only later: PlaceOf a call that was added after it.
  void set_argument(size_t index, size_t argument, Argument value);

  // Work of ours that neither needs ptrace nor the batch's results: done while the task runs the
  // batch, when we would only wait for it. What it fails with is what the run fails with.
  void meanwhile(std::function<absl::Status()> work) { meanwhile_.push_back(std::move(work)); }

  bool empty() const { return calls_.empty() && meanwhile_.empty(); }
  size_t size() const { return calls_.size(); }

  // After the run.
  int64_t result(size_t index) const;
  std::span<const std::byte> bytes(Data d) const;
  // OK, or which call failed, with its number's name and arguments; `index` from call().
  absl::Status check(size_t index) const;
  // OK, or the first failed call of those added with must_succeed.
  absl::Status check_all() const;
  // Tasks made by clone3 or fork calls of a task with PTRACE_O_TRACECLONE/TRACEFORK, in the order
  // of the calls: to be adopted (StoppedTask::adopt_new_child), given registers and a mask.
  const std::vector<HostPid>& new_tasks() const { return new_tasks_; }

 private:
  friend class StubArea;
  // As it stands in the table (stub_layout.h), but for arguments that become addresses.
  struct Call {
    uint64_t number;
    std::array<uint64_t, kArguments> arguments;
    int64_t result;
    uint64_t flags;
  };
  struct Patch {
    uint32_t where;
    uint32_t target;
  };
  // What the stub reads: frame, table, data, for a slice whose frame is at `frame`.
  uint64_t image_size() const;
  void make_image(RemoteAddress frame, std::vector<std::byte>& image) const;
  void take_image(std::span<const std::byte> image);

  std::vector<Call> calls_;
  std::vector<Patch> patches_;
  std::vector<std::byte> data_;
  std::vector<HostPid> new_tasks_;
  std::vector<std::function<absl::Status()>> meanwhile_;
};

// A mapping of ours inside a target: one page of code (the stub, read and execute), the rest for
// slices (read and write). Named "godwit" by PR_SET_VMA_ANON_NAME where the kernel can (5.17,
// CONFIG_ANON_VMA_NAME), so that a leftover of a killed mover can be told.
//
//   | code page | slice of run 0                            | slice of run 1 ...
//   |  stub     | gap, never touched | frame | table | data | gap ...
//
// The stub heals itself: the first call of the run blocks signals, the tail restores the mask, all
// registers, and jumps to the saved instruction. If the tracer dies at any point, the task finishes
// the batch and goes on as if nothing had been. The gap is for the signal frame of a handler that
// runs between the tail's last two instructions.
//
// The end mark. The stub queues a signal for itself while it is blocked, then unblocks it alone:
// a signal-delivery stop, which we swallow. (Never int3 or single step: both can reset SIGTRAP's
// disposition.) The signal is one that the process ignores now, by SIG_IGN or by default, so that
// nothing happens if we die in between; if the task has it unblocked, it also cannot have been
// waiting for one. Otherwise it is told from the program's own by its siginfo, and the program's
// own is put back. A process that handles all signals (Go's runtime) gets no signal: its run goes
// by syscall stops until the mark's call is seen, which is slower, and as safe.
class StubArea {
  struct Running;

 public:
  // Where areas are put unless a place is named: no kernel, allocator or loader puts anything there
  // by itself, so that what a killed tracer left is known by its address, whatever is in it yet.
  static constexpr RemoteAddress kPlaces{0x6764'7769'0000};
  static constexpr uint64_t kPlaceBytes = uint64_t{1} << 30;
  static constexpr uint64_t kPlacesCount = 4;
  static constexpr RemoteAddress kPlacesEnd{kPlaces.value + kPlacesCount * kPlaceBytes};

  // Maps at least `table_bytes` for tables and data. `near` of 0: at the first free one of the
  // places above, or where the kernel likes; otherwise the exact address (MAP_FIXED_NOREPLACE).
  static absl::StatusOr<StubArea> map(StoppedTask& task, ImagePid tgid, size_t table_bytes,
                                      RemoteAddress near = {0});
  StubArea(StubArea&&) noexcept = default;
  StubArea& operator=(StubArea&&) noexcept = default;

  RemoteAddress address() const { return address_; }
  // Is it still in `pid`'s memory? Not if that has started another program. (Nothing of a program's
  // own is at such an address.)
  bool stands(HostPid pid) const;
  uint64_t size() const { return size_; }
  RemoteAddress syscall_instruction() const { return vdso_syscall_; }
  // After the vDSO was moved (husks): where its `syscall` is now. A husk without a vDSO uses the
  // stub's own instruction.
  void set_syscall_instruction(RemoteAddress a) {
    vdso_syscall_ = a;
    home_ = {0};
  }
  RemoteAddress own_syscall_instruction() const;
  // Calls one by one that heal themselves like a batch. Not while a batch runs.
  RemoteSyscalls single_calls(StoppedTask& task) const;

  // Makes room for a larger table (remaps; the address may change).
  absl::Status grow(StoppedTask& task, size_t table_bytes);

  // Runs the batch in `task` (stopped, 64-bit code), which must belong to the mm that this area is
  // mapped in. Registers and mask of the task are as before afterwards. `tid` is the task's tid in
  // its own pid namespace (for tgkill). A batch that does not fit makes the area grow.
  absl::Status run(StoppedTask& task, ImagePid tid, Batch& batch, Deadline deadline);

  struct Run {
    StoppedTask* task;
    ImagePid tid;
    Batch* batch;
  };
  // Runs several tasks of this mm side by side, each with its own slice of the area.
  absl::Status run_all(std::span<Run> runs, Deadline deadline);

  // The same in two halves, so that the caller has the time between for something else, such as
  // starting batches in other address spaces. The batches must live until finish(), which has to
  // be called; the destructor does it where an error came between.
  class Started {
   public:
    Started(Started&&) noexcept;
    Started& operator=(Started&&) = delete;
    ~Started();
    absl::Status finish();

   private:
    friend class StubArea;
    Started(const StubArea& area, Deadline deadline);
    const StubArea* area_;
    Deadline deadline_;
    std::vector<Running> all_;
  };
  absl::StatusOr<Started> start_all(std::span<Run> runs, Deadline deadline);
  // Makes room for them, so that start_all() will not change the mappings.
  absl::Status reserve(std::span<Run> runs);

  // Of a husk, where nothing but batches runs: its dispositions are read once, not for each run.
  absl::Status keep_signal_sets(const StoppedTask& task);

  // Removes the mapping: the last thing done in a task.
  absl::Status unmap(StoppedTask& task);
  // The same for a husk, which needs no healing, with one stop instead of three, and in two halves:
  // the call is made by the area's own instruction, which goes with it, so that the fault which
  // follows says that it was made. The task must not ignore SIGSEGV: such a fault would reset its
  // action (force_sig_info_to_task(), kernel/signal.c). Its registers and its mask are the caller's
  // to set afterwards.
  absl::Status start_unmap_below(StoppedTask& task) const;
  absl::Status finish_unmap_below(StoppedTask& task, Deadline deadline) const;

  // Of what a killed tracer left: whether the copy of the stub in the vDSO's page (home_) is there,
  // and whether an instruction belongs to it.
  static absl::StatusOr<bool> used_home(HostPid pid);
  static bool at_home(HostPid pid, RemoteAddress at);

  // For a forked child (a husk): the same mapping in another mm.
  StubArea for_child(ImagePid tgid) const;

 private:
  StubArea() = default;
  RemoteSyscalls first_calls(StoppedTask& task) const;
  absl::Status start(Running& running, const internal::SignalSets& sets) const;
  absl::Status wait_mark(Running& running, Deadline deadline) const;
  absl::Status finish(Running& running, Deadline deadline) const;

  RemoteAddress address_;
  uint64_t size_ = 0;
  RemoteAddress vdso_syscall_;
  // A copy of the stub in the zeros behind the vDSO's image, for the calls that map and unmap the
  // area itself: they heal themselves, too. The process keeps a private copy of that page, with
  // the zeros put back. 0: no room there, or the vDSO has moved; then they do not.
  RemoteAddress home_;
  ImagePid tgid_;
  std::shared_ptr<const internal::SignalSets> kept_sets_;
};

}  // namespace godwit::tracee

#endif  // GODWIT_TRACEE_BATCH_H_
