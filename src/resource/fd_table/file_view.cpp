#include "resource/fd_table/file_view.h"

#include <cstddef>
#include <utility>
#include <vector>

#include "base/status.h"

namespace godwit::resource {

namespace {

using namespace kernel::bpf;

constexpr int kContext = ViewProgram::kContext, kFrom = ViewProgram::kFrom,
              kView = ViewProgram::kView;

#define GW_COPY(structure, path, member) \
  program.copy<decltype(FileView::member)>(offsetof(FileView, member), structure, path)
#define GW_COPY_TCP(path, member)                                                              \
  program.copy<decltype(TcpView::member)>(offsetof(FileView, tcp) + offsetof(TcpView, member), \
                                          "tcp_sock", path)
#define GW_SOCK "inet_conn.icsk_inet.sk."

// In r7: the tcp_sock.
void copy_tcp(ViewProgram& program) {
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_v6_daddr", addresses.v6_daddr);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_v6_rcv_saddr", addresses.v6_rcv_saddr);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_daddr", addresses.daddr);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_rcv_saddr", addresses.rcv_saddr);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_family", addresses.family);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_num", addresses.num);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_dport", addresses.dport);
  GW_COPY_TCP("rcv_nxt", rcv_nxt);
  GW_COPY_TCP("copied_seq", copied_seq);
  GW_COPY_TCP("rcv_wnd", rcv_wnd);
  GW_COPY_TCP("rcv_wup", rcv_wup);
  GW_COPY_TCP("write_seq", write_seq);
  GW_COPY_TCP("snd_una", snd_una);
  GW_COPY_TCP("snd_wl1", snd_wl1);
  GW_COPY_TCP("snd_wnd", snd_wnd);
  GW_COPY_TCP("max_window", max_window);
  GW_COPY_TCP("window_clamp", window_clamp);
  GW_COPY_TCP("tsoffset", tsoffset);
  GW_COPY_TCP(GW_SOCK "sk_err", err);
  GW_COPY_TCP(GW_SOCK "sk_rcvbuf", rcvbuf);
  GW_COPY_TCP(GW_SOCK "sk_sndbuf", sndbuf);
  GW_COPY_TCP(GW_SOCK "sk_backlog.rmem_alloc.counter", rmem_alloc);
  GW_COPY_TCP(GW_SOCK "sk_backlog.len", backlog);
  GW_COPY_TCP(GW_SOCK "sk_wmem_queued", wmem_queued);
  GW_COPY_TCP("out_of_order_queue.rb_node", out_of_order);
  GW_COPY_TCP("urg_data", urg_data);
  GW_COPY_TCP("rx_opt.mss_clamp", mss_clamp);
  GW_COPY_TCP(GW_SOCK "__sk_common.skc_state", state);
  GW_COPY_TCP(GW_SOCK "sk_shutdown", shutdown);
  // Nothing for a socket of IPv4: reading through a null pointer of the kernel's gives 0.
  program.follow(kFrom, kFrom, "tcp_sock", "inet_conn.icsk_inet.pinet6");
  program.copy<int16_t>(offsetof(FileView, tcp) + offsetof(TcpView, addresses.hop_limit),
                        "ipv6_pinfo", "hop_limit");
}

void build(ViewProgram& program) {
  program.add(store(BPF_DW, kView, kFrom, offsetof(FileView, file)));
  program.follow(1, kContext, "bpf_iter__task_file", "fd");
  program.add(store(BPF_W, kView, 1, offsetof(FileView, fd)));
  program.add(set(1, 0));
  program.add(store(BPF_B, kView, 1, offsetof(FileView, is_tcp)));
  GW_COPY("file", "f_flags", flags);
  // Linux 6.12 made a pointer of it.
  const bool inside = program.btf().field("file", "f_owner.pid").ok();
  GW_COPY("file", inside ? "f_owner.pid" : "f_owner", owner);
  program.add(move(kContext, kFrom));  // the file: it is needed once more
  program.follow(kFrom, kFrom, "file", "f_inode");
  GW_COPY("inode", "i_ino", inode);
  GW_COPY("inode", "i_mode", mode);
  GW_COPY("inode", "i_uid", uid);
  GW_COPY("inode", "i_gid", gid);
  GW_COPY("inode", "i_flctx", locks);

  program.add(move(1, kContext));
  program.add(call(BPF_FUNC_sock_from_file));
  program.leave_if(BPF_JEQ, 0, 0);
  program.follow(1, 0, "socket", "sk");
  program.leave_if(BPF_JEQ, 1, 0);
  program.add(call(BPF_FUNC_skc_to_tcp_sock));
  program.leave_if(BPF_JEQ, 0, 0);
  program.add(move(kFrom, 0));
  program.add(set(1, 1));
  program.add(store(BPF_B, kView, 1, offsetof(FileView, is_tcp)));
  copy_tcp(program);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileViews>> FileViews::open(uint32_t files) {
  GW_ASSIGN_OR_RETURN(Views views, Views::open({.name = "gw_files",
                                                .function = "bpf_iter_task_file",
                                                .context = "bpf_iter__task_file",
                                                .member = "file",
                                                .record_bytes = sizeof(FileView)},
                                               files, build));
  return std::unique_ptr<FileViews>(new FileViews(std::move(views)));
}

absl::StatusOr<std::span<const FileView>> FileViews::read(HostPid process) {
  GW_ASSIGN_OR_RETURN(const size_t count, views_.read(process));
  if (used_ == kept_.size()) kept_.emplace_back().reserve(views_.capacity());
  std::vector<FileView>& views = kept_[used_++];
  const auto* first = static_cast<const FileView*>(views_.records());
  views.assign(first, first + count);
  return std::span<const FileView>(views);
}

}  // namespace godwit::resource
