// The set is empty until finish(): an entry is keyed by description and number, and only in the
// husk both are right. Ready files give a fresh edge to EPOLLET entries: a spurious wake-up, which
// the manual tells programs to expect. An EPOLLONESHOT entry that has fired has no events;
// epoll_ctl(2) always adds EPOLLERR and EPOLLHUP, so here it would report an error of its file
// once, before it is armed again. EPOLLWAKEUP needs CAP_BLOCK_SUSPEND in the husk, or the kernel
// drops it.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <vector>

#include "resource/epoll/epoll.pb.h"
#include "resource/epoll/epoll_internal.h"
#include "resource/file_description.h"
#include "resource/state_codec.h"

namespace godwit::resource {

static_assert(sizeof(epoll_event) == 12, "x86-64: packed");

absl::StatusOr<UniqueFd> EpollKind::create(uint64_t, std::string_view bytes,
                                           RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<EpollState>(bytes, name()));
  UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
  if (!fd) return errno_status(errno, "epoll_create1()");
  GW_RETURN_IF_ERROR(set_status_flags(fd.get(), static_cast<int>(state.flags())));
  return fd;
}

absl::StatusOr<bool> EpollKind::update(int fd, std::string_view, std::string_view now,
                                       RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<EpollState>(now, name()));
  GW_RETURN_IF_ERROR(set_status_flags(fd, static_cast<int>(state.flags())));
  return true;
}

absl::StatusOr<FileKind::Check> EpollKind::finish(int, std::string_view bytes, ImagePid tgid,
                                                  int remote_fd, tracee::Batch& batch,
                                                  RestoreContext&) const {
  GW_ASSIGN_OR_RETURN(const auto state, parse_state<EpollState>(bytes, name()));
  if (state.entries_size() == 0) return Check();
  if (state.tgid() != tgid.value) {
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "epoll: its entries are numbers of process {}, not of {}", state.tgid(),
                      tgid.value);
  }
  std::vector<epoll_event> events(static_cast<size_t>(state.entries_size()));
  for (int i = 0; i < state.entries_size(); ++i) {
    epoll_event& event = events[static_cast<size_t>(i)];
    event.events = state.entries(i).events();
    event.data.u64 = state.entries(i).data();
  }
  const tracee::Batch::Data data = batch.data(std::as_bytes(std::span(events)));
  size_t first = 0;
  for (int i = 0; i < state.entries_size(); ++i) {
    const size_t call = batch.call(
        SYS_epoll_ctl,
        {remote_fd, EPOLL_CTL_ADD, state.entries(i).fd(),
         slice(data, static_cast<size_t>(i) * sizeof(epoll_event), sizeof(epoll_event))});
    if (i == 0) first = call;
  }
  const auto count = static_cast<size_t>(state.entries_size());
  return Check([first, count](const tracee::Batch& done) -> absl::Status {
    for (size_t i = 0; i < count; ++i) GW_RETURN_IF_ERROR(done.check(first + i));
    return absl::OkStatus();
  });
}

std::string EpollKind::describe(std::string_view bytes) const {
  const auto state = parse_state<EpollState>(bytes, name());
  if (!state.ok()) return "epoll (unreadable)";
  return fmt::format("epoll of {} descriptors", state->entries_size());
}

}  // namespace godwit::resource
