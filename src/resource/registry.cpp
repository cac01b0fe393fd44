#include "resource/registry.h"

#include <vector>

#include "resource/credentials/credentials.h"
#include "resource/device/device.h"
#include "resource/epoll/epoll.h"
#include "resource/eventfd/eventfd.h"
#include "resource/identity/identity.h"
#include "resource/inotify/inotify.h"
#include "resource/io_uring/io_uring.h"
#include "resource/itimers/itimers.h"
#include "resource/memfd/memfd.h"
#include "resource/netlink_socket/netlink_socket.h"
#include "resource/pidfd/pidfd.h"
#include "resource/pipe/pipe.h"
#include "resource/posix_mqueue/posix_mqueue.h"
#include "resource/posix_timers/posix_timers.h"
#include "resource/registers/registers.h"
#include "resource/regular_file/regular_file.h"
#include "resource/rlimit/rlimit.h"
#include "resource/robust_futex/robust_futex.h"
#include "resource/rseq/rseq.h"
#include "resource/scheduling/scheduling.h"
#include "resource/seccomp/seccomp.h"
#include "resource/signalfd/signalfd.h"
#include "resource/signals/signals.h"
#include "resource/tcp_socket/tcp_socket.h"
#include "resource/terminal/terminal.h"
#include "resource/timerfd/timerfd.h"
#include "resource/udp_socket/udp_socket.h"
#include "resource/unix_socket/unix_socket.h"
#include "resource/working_directory/working_directory.h"

namespace godwit::resource {

// Order of restore. What the husk's making left pending is thrown away before timers and pending
// signals come (a timer that fires meanwhile must not count twice); limits after every descriptor
// is there; credentials after everything that needs root, and task_identity after what setuid(2)
// clears; scheduling last, so that a low priority does not slow the rest.
std::span<const TaskResource* const> task_resources() {
  static const std::vector<const TaskResource*> list = {
      &seccomp_resource(),
      &signal_actions_resource(),
      &signal_stack_resource(),
      &oom_score_adj_resource(),
      &signal_flush_resource(),
      &itimers_resource(),
      &posix_timers_resource(),
      &process_pending_signals_resource(),
      &task_pending_signals_resource(),
      &rseq_resource(),
      &robust_futex_resource(),
      &working_directory_resource(),
      &rlimit_resource(),
      &process_identity_resource(),
      &credentials_resource(),
      &task_identity_resource(),
      &registers_resource(),
      &scheduling_resource(),
  };
  return list;
}

// Those whose restore needs others stand after them: epoll watches all.
std::span<const FileKind* const> file_kinds() {
  static const std::vector<const FileKind*> list = {
      &device_kind(),     &terminal_kind(),       &posix_mqueue_kind(), &regular_file_kind(),
      &pipe_kind(),       &named_pipe_kind(),     &eventfd_kind(),      &signalfd_kind(),
      &timerfd_kind(),    &memfd_kind(),          &unix_socket_kind(),  &tcp_socket_kind(),
      &udp_socket_kind(), &netlink_socket_kind(), &inotify_kind(),      &pidfd_kind(),
      &io_uring_kind(),   &epoll_kind(),
  };
  return list;
}

const TaskResource* find_task_resource(std::string_view name) {
  for (const TaskResource* resource : task_resources())
    if (resource->name() == name) return resource;
  return nullptr;
}

const FileKind* find_file_kind(std::string_view name) {
  for (const FileKind* kind : file_kinds())
    if (kind->name() == name) return kind;
  return nullptr;
}

}  // namespace godwit::resource
