// Queues of asynchronous I/O of a replica: made in the last epoch, when everything else is mapped.
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/status.h"
#include "process/replica.h"
#include "resource/aio/aio.h"

namespace godwit::process {

absl::Status Replica::make_aio() {
  for (auto& [pid, husk] : husks_)
    if (const std::string* bytes = wanted("aio", static_cast<uint64_t>(pid)))
      GW_RETURN_IF_ERROR(
          annotate(make_aio_of(husk, *bytes), fmt::format("asynchronous I/O of process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::make_aio_of(Husk& husk, const std::string& bytes) {
  GW_ASSIGN_OR_RETURN(const resource::AioState state, resource::parse_aio(bytes));
  tracee::Batch batch;
  GW_RETURN_IF_ERROR(resource::add_aio_calls(state, batch));
  GW_RETURN_IF_ERROR(husk.run(batch));
  const absl::Status made = batch.check_all();
  if (errno_of(made) == EAGAIN)
    return annotate(made, "this machine has no room for more requests (sysctl fs.aio-max-nr)");
  GW_RETURN_IF_ERROR(made);
  const UniqueFd empty(::memfd_create("godwit-aio", MFD_CLOEXEC));
  if (!empty) return errno_status(errno, "memfd_create(godwit-aio)");
  const int file = empty.get();
  GW_ASSIGN_OR_RETURN(const std::vector<int> lent, husk.lend(channel_, std::span(&file, 1)));
  constexpr int kMostTries = 8;
  for (int i = 0; i < kMostTries; ++i) {
    tracee::Batch progress;
    GW_RETURN_IF_ERROR(resource::add_aio_progress(state, husk.host_pid(), lent[0], progress));
    if (progress.empty()) break;
    GW_RETURN_IF_ERROR(husk.run(progress));
    // Of a short one another one makes up for.
    if (const absl::Status run = progress.check_all(); errno_of(run) != EAGAIN)
      GW_RETURN_IF_ERROR(run);
  }
  tracee::Batch close;
  close.call(SYS_close, {lent[0]}, true);
  GW_RETURN_IF_ERROR(husk.run(close));
  GW_RETURN_IF_ERROR(close.check_all());
  return resource::write_aio_rings(state, husk.host_pid());
}

}  // namespace godwit::process
