// What the kernel itself has written down about each open file of a process, TCP sockets with their
// connections: some 200 ns a file, for all of them in one go, where asking by system calls takes
// several microseconds. Nothing is duplicated, nothing of the program's is touched.
//
// Facts: a BPF program of the kind "iterator" is called for each file of a process and may read
// the kernel's structures (Documentation/bpf/bpf_iterators.rst; from 6.1 on for one process). Where
// a member stands is known from the kernel's BTF, by name. Where that is missing, or a member has
// another name or size than here, there are no views, and everything is asked for by system calls.
//
// No lock is held: of a program that runs a view may be torn. Once it is frozen and its gate is
// closed nothing changes any more but by timers of its own connections that have data under way.
#ifndef GODWIT_RESOURCE_FD_TABLE_FILE_VIEW_H_
#define GODWIT_RESOURCE_FD_TABLE_FILE_VIEW_H_

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernel/bpf_views.h"

namespace godwit::resource {

// Members of struct tcp_sock and what it begins with, by their names there; addresses and the
// peer's port in network byte order.
struct TcpView {
  struct Addresses {
    std::array<uint32_t, 4> v6_daddr;
    std::array<uint32_t, 4> v6_rcv_saddr;
    uint32_t daddr;
    uint32_t rcv_saddr;
    uint16_t family;
    uint16_t num;
    uint16_t dport;
    int16_t hop_limit;  // of IPv6; -1: not set
    bool operator==(const Addresses&) const = default;
  } addresses;
  uint32_t rcv_nxt;
  uint32_t copied_seq;
  uint32_t rcv_wnd;
  uint32_t rcv_wup;
  uint32_t write_seq;
  uint32_t snd_una;
  uint32_t snd_wl1;
  uint32_t snd_wnd;
  uint32_t max_window;
  uint32_t window_clamp;
  uint32_t tsoffset;
  int32_t err;
  int32_t rcvbuf;
  int32_t sndbuf;
  uint32_t rmem_alloc;
  uint32_t backlog;
  int32_t wmem_queued;
  uint64_t out_of_order;  // not 0: segments wait for one before them
  uint16_t urg_data;
  uint16_t mss_clamp;
  uint8_t state;
  uint8_t shutdown;
  bool operator==(const TcpView&) const = default;
};

struct FileView {
  uint64_t file;   // the open file description: the same for those who share it
  uint64_t inode;  // its number
  uint64_t owner;  // not 0: somebody asked for its signals (fcntl(2), F_SETOWN)
  uint64_t locks;  // not 0: somebody has or had a lock of some kind on its inode
  uint32_t fd;
  uint32_t flags;  // F_GETFL's
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint8_t is_tcp;  // then `tcp` is filled
  TcpView tcp;
};

class FileViews {
 public:
  // For processes of at most `files` open files each. kNotFound, kUnimplemented, EPERM and others:
  // this kernel has none.
  static absl::StatusOr<std::unique_ptr<FileViews>> open(uint32_t files);

  // In the order of their numbers. kOutOfRange: more than open() was told.
  absl::StatusOr<std::span<const FileView>> read(HostPid process);
  // What was read is kept until then, in memory that has been used before.
  void forget() { used_ = 0; }
  uint32_t capacity() const { return views_.capacity(); }

 private:
  explicit FileViews(kernel::bpf::Views views) : views_(std::move(views)) {}
  kernel::bpf::Views views_;
  std::deque<std::vector<FileView>> kept_;
  size_t used_ = 0;  // of kept_
};

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_FD_TABLE_FILE_VIEW_H_
