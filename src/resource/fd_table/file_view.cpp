#include "resource/fd_table/file_view.h"

#include <sys/mman.h>

#include <cstddef>
#include <type_traits>
#include <vector>

#include "base/status.h"
#include "kernel/bpf.h"
#include "kernel/bpf_instructions.h"
#include "kernel/btf.h"

namespace godwit::resource {

// What the program writes and we read.
struct FileViews::Shared {
  uint64_t count;  // of the files that were seen; those beyond the capacity are counted only
  FileView files[1];
};

namespace {

constexpr int kFilesAt = 8;

using namespace kernel::bpf;

constexpr int kContext = 6, kFrom = 7, kShared = 8, kView = 9;

// Collects instructions; a member that is not there is remembered, and looked at once at the end.
class Program {
 public:
  explicit Program(const kernel::Btf& btf) : btf_(btf) {}

  void add(bpf_insn instruction) { code_.push_back(instruction); }
  // dst = src->path, a pointer or a number.
  void follow(int dst, int src, std::string_view structure, std::string_view path) {
    const kernel::Btf::Field field = find(structure, path);
    add(load(width(field.size), dst, src, static_cast<int>(field.offset)));
  }
  // The view's member at `to` = src->path, in pieces of four bytes where it is an array.
  template <typename T>
  void copy(size_t to, int src, std::string_view structure, std::string_view path) {
    const kernel::Btf::Field field = find(structure, path);
    if (field.size != sizeof(T) && status_.ok())
      status_ = make_error(absl::StatusCode::kUnimplemented, "{} of struct {} has {} bytes, not {}",
                           path, structure, field.size, sizeof(T));
    constexpr size_t kPiece = std::is_integral_v<T> ? sizeof(T) : 4;
    for (size_t at = 0; at < sizeof(T); at += kPiece) {
      add(load(width(kPiece), 1, src, static_cast<int>(field.offset + at)));
      add(store(width(kPiece), kView, 1, static_cast<int>(to + at)));
    }
  }
  void leave_if(int condition, int reg, uint32_t number) {
    leaving_.push_back(code_.size());
    add(jump_if(condition, reg, number, 0));
  }
  std::vector<bpf_insn>& code() { return code_; }

  absl::StatusOr<std::vector<bpf_insn>> finish() {
    GW_RETURN_IF_ERROR(status_);
    for (const size_t at : leaving_) code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
    add(set(0, 0));
    add(leave());
    return std::move(code_);
  }

 private:
  static int width(size_t bytes) {
    return bytes == 8 ? BPF_DW : bytes == 4 ? BPF_W : bytes == 2 ? BPF_H : BPF_B;
  }
  kernel::Btf::Field find(std::string_view structure, std::string_view path) {
    auto field = btf_.field(structure, path);
    if (!field.ok() && status_.ok()) status_ = field.status();
    return field.ok() ? *field : kernel::Btf::Field{0, 8};
  }

  const kernel::Btf& btf_;
  std::vector<bpf_insn> code_;
  std::vector<size_t> leaving_;
  absl::Status status_;
};

#define GW_COPY(structure, path, member) \
  program.copy<decltype(FileView::member)>(offsetof(FileView, member), kFrom, structure, path)
#define GW_COPY_TCP(path, member)                                                              \
  program.copy<decltype(TcpView::member)>(offsetof(FileView, tcp) + offsetof(TcpView, member), \
                                          kFrom, "tcp_sock", path)
#define GW_SOCK "inet_conn.icsk_inet.sk."

// In r7: the tcp_sock.
void copy_tcp(Program& program) {
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
  program.copy<int16_t>(offsetof(FileView, tcp) + offsetof(TcpView, addresses.hop_limit), kFrom,
                        "ipv6_pinfo", "hop_limit");
}

absl::StatusOr<std::vector<bpf_insn>> make_program(const kernel::Btf& btf, int map,
                                                   uint32_t capacity) {
  Program program(btf);
  program.add(move(kContext, 1));
  program.follow(kFrom, kContext, "bpf_iter__task_file", "file");
  program.leave_if(BPF_JEQ, kFrom, 0);  // the end
  load_value(program.code(), kShared, map);
  // view = &files[count++]
  program.add(load64(2, kShared, 0));
  program.add(move(3, 2));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, 1));
  program.add(store(BPF_DW, kShared, 3, 0));
  program.leave_if(BPF_JGE, 2, capacity);
  program.add(insn(BPF_ALU64 | BPF_MUL | BPF_K, 2, 0, 0, sizeof(FileView)));
  program.add(move(kView, kShared));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_X, kView, 2, 0, 0));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_K, kView, 0, 0, kFilesAt));

  program.add(store(BPF_DW, kView, kFrom, offsetof(FileView, file)));
  program.follow(1, kContext, "bpf_iter__task_file", "fd");
  program.add(store(BPF_W, kView, 1, offsetof(FileView, fd)));
  program.add(set(1, 0));
  program.add(store(BPF_B, kView, 1, offsetof(FileView, is_tcp)));
  GW_COPY("file", "f_flags", flags);
  // Linux 6.12 made a pointer of it.
  const bool inside = btf.field("file", "f_owner.pid").ok();
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
  return program.finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileViews>> FileViews::open(uint32_t files) {
  static_assert(offsetof(Shared, count) == 0 && offsetof(Shared, files) == kFilesAt);
  GW_ASSIGN_OR_RETURN(const kernel::Btf btf, kernel::Btf::of_kernel());
  GW_ASSIGN_OR_RETURN(const uint32_t function, btf.function("bpf_iter_task_file"));
  std::unique_ptr<FileViews> views(new FileViews);
  views->capacity_ = files;
  views->shared_bytes_ = sizeof(Shared) + size_t{files} * sizeof(FileView);
  GW_ASSIGN_OR_RETURN(
      const UniqueFd map,
      create_mmapable_value("gw_files", static_cast<uint32_t>(views->shared_bytes_)));
  GW_ASSIGN_OR_RETURN(const std::vector<bpf_insn> code, make_program(btf, map.get(), files));
  GW_ASSIGN_OR_RETURN(views->program_, load_file_iterator(function, "gw_files", code));
  void* at =
      ::mmap(nullptr, views->shared_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, "mmap(BPF array of open files)");
  views->shared_ = static_cast<Shared*>(at);
  return views;
}

FileViews::~FileViews() {
  if (shared_ != nullptr) ::munmap(shared_, shared_bytes_);
}

absl::StatusOr<std::span<const FileView>> FileViews::read(HostPid process) {
  shared_->count = 0;
  GW_RETURN_IF_ERROR(run_file_iterator(program_.get(), process));
  if (shared_->count > capacity_)
    return make_error(absl::StatusCode::kOutOfRange, "process {} has {} open files, not {}",
                      process.value, shared_->count, capacity_);
  if (used_ == kept_.size()) kept_.emplace_back().reserve(capacity_);
  std::vector<FileView>& views = kept_[used_++];
  views.assign(shared_->files, shared_->files + shared_->count);
  return std::span<const FileView>(views);
}

}  // namespace godwit::resource
