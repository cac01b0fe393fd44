// The same ids: since 6.15 prctl(PR_TIMER_CREATE_RESTORE_IDS) makes timer_create(2) take the id it
// is given; before, a process counts from 0, and ids that are not wanted are made and deleted.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstring>
#include <string>

#include "resource/posix_timers/posix_timers.h"
#include "resource/posix_timers/posix_timers.pb.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

constexpr int kPrTimerCreateRestoreIds = 77;
constexpr int kRestoreIdsOff = 0;
constexpr int kRestoreIdsOn = 1;
constexpr int kRestoreIdsGet = 2;
// Two calls of 0.3 us for each id below the highest.
constexpr int32_t kMostCounted = 4096;

// The kernel's struct sigevent: 64 bytes.
struct KernelSigevent {
  uint64_t value;
  int32_t signo;
  int32_t notify;
  int32_t tid;
  int32_t padding[11];
};
static_assert(sizeof(KernelSigevent) == 64);

bool ids_can_be_given() { return ::prctl(kPrTimerCreateRestoreIds, kRestoreIdsGet, 0, 0, 0) >= 0; }

timespec time_of(uint64_t ns) {
  return {.tv_sec = static_cast<time_t>(ns / 1'000'000'000),
          .tv_nsec = static_cast<long>(ns % 1'000'000'000)};
}

struct Created {
  size_t call;
  tracee::Batch::Data id;
  int32_t wanted;
};

Created add_create(const PosixTimerState& timer, tracee::Batch& batch) {
  KernelSigevent event{};
  event.value = timer.value();
  event.signo = timer.signal();
  event.notify = static_cast<int32_t>(timer.notify());
  event.tid = timer.thread();
  const tracee::Batch::Data id = batch.data(bytes_of(int32_t{timer.id()}));
  const size_t call =
      batch.call(SYS_timer_create, {timer.clock(), batch.data(bytes_of(event)), id});
  return {call, id, timer.id()};
}

std::vector<Created> add_given(const PosixTimersState& state, tracee::Batch& batch) {
  std::vector<Created> created;
  batch.call(SYS_prctl, {kPrTimerCreateRestoreIds, kRestoreIdsOn, 0, 0, 0});
  for (const PosixTimerState& timer : state.timers()) created.push_back(add_create(timer, batch));
  batch.call(SYS_prctl, {kPrTimerCreateRestoreIds, kRestoreIdsOff, 0, 0, 0});
  return created;
}

absl::StatusOr<std::vector<Created>> add_counted(const PosixTimersState& state, ImagePid process,
                                                 tracee::Batch& batch) {
  std::vector<Created> created;
  PosixTimerState filler;
  filler.set_clock(CLOCK_MONOTONIC);
  filler.set_notify(SIGEV_NONE);
  int32_t next = 0;
  for (const PosixTimerState& timer : state.timers()) {
    if (timer.id() > kMostCounted)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "process {} has a timer with id {}: before Linux 6.15 no more than {} can "
                        "be counted up to",
                        process.value, timer.id(), kMostCounted);
    for (; next < timer.id(); ++next) {
      filler.set_id(next);
      created.push_back(add_create(filler, batch));
      batch.call(SYS_timer_delete, {next});
    }
    created.push_back(add_create(timer, batch));
    next = timer.id() + 1;
  }
  return created;
}

}  // namespace

absl::StatusOr<TaskResource::Check> restore_posix_timers(std::string_view bytes,
                                                         const TaskView& husk, TimerIds ids,
                                                         tracee::Batch& batch) {
  GW_ASSIGN_OR_RETURN(const PosixTimersState state,
                      parse_state<PosixTimersState>(bytes, "posix_timers"));
  if (state.timers().empty()) return TaskResource::Check{};
  for (int i = 0; i < state.timers_size(); ++i)
    if (state.timers(i).id() < (i == 0 ? 0 : state.timers(i - 1).id() + 1))
      return make_error(absl::StatusCode::kDataLoss,
                        "state of posix_timers: ids are not ascending");
  std::vector<Created> created;
  if (ids == TimerIds::kGiven) {
    created = add_given(state, batch);
  } else {
    GW_ASSIGN_OR_RETURN(created, add_counted(state, husk.tgid, batch));
  }
  std::vector<size_t> armed;
  for (const PosixTimerState& timer : state.timers()) {
    if (timer.remaining_ns() == 0) continue;
    const itimerspec value{.it_interval = time_of(timer.interval_ns()),
                           .it_value = time_of(timer.remaining_ns())};
    armed.push_back(batch.call(SYS_timer_settime, {timer.id(), 0, batch.data(bytes_of(value)), 0}));
  }
  return TaskResource::Check([=, tgid = husk.tgid](const tracee::Batch& done) {
    for (const Created& one : created) {
      GW_RETURN_IF_ERROR(done.check(one.call));
      if (const auto id = value_in<int32_t>(done, one.id); id != one.wanted)
        return make_error(absl::StatusCode::kInternal, "process {}: timer {} became {}", tgid.value,
                          one.wanted, id);
    }
    for (const size_t call : armed) GW_RETURN_IF_ERROR(done.check(call));
    return absl::OkStatus();
  });
}

absl::StatusOr<TaskResource::Check> PosixTimersResource::restore(std::string_view state,
                                                                 const TaskView& husk,
                                                                 tracee::Batch& batch) const {
  return restore_posix_timers(state, husk,
                              ids_can_be_given() ? TimerIds::kGiven : TimerIds::kCounted, batch);
}

}  // namespace godwit::resource
