#include "kernel/bpf.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/status.h"

namespace godwit::kernel::bpf {
namespace {

uint64_t pointer(const void* p) { return reinterpret_cast<uint64_t>(p); }

void set_name(char (&out)[BPF_OBJ_NAME_LEN], const char* name) {
  std::strncpy(out, name, BPF_OBJ_NAME_LEN - 1);
}

}  // namespace

long command(int command, bpf_attr& attr) {
  return ::syscall(SYS_bpf, command, &attr, sizeof attr);
}

absl::StatusOr<UniqueFd> create_mmapable_value(const char* name, uint32_t value_size) {
  bpf_attr attr{};
  attr.map_type = BPF_MAP_TYPE_ARRAY;
  attr.key_size = 4;
  attr.value_size = value_size;
  attr.max_entries = 1;
  attr.map_flags = BPF_F_MMAPABLE;
  set_name(attr.map_name, name);
  const long fd = command(BPF_MAP_CREATE, attr);
  if (fd < 0) return errno_status(errno, "bpf(BPF_MAP_CREATE, mmapable array)");
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<UniqueFd> create_value_of_cpus(const char* name) {
  bpf_attr attr{};
  attr.map_type = BPF_MAP_TYPE_PERCPU_ARRAY;
  attr.key_size = 4;
  attr.value_size = 8;
  attr.max_entries = 1;
  set_name(attr.map_name, name);
  const long fd = command(BPF_MAP_CREATE, attr);
  if (fd < 0) return errno_status(errno, "bpf(BPF_MAP_CREATE, array of each CPU)");
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<UniqueFd> load_program(bpf_attr attr, const char* name, const char* license,
                                      std::span<const bpf_insn> program) {
  std::string log(16384, '\0');
  attr.insns = pointer(program.data());
  attr.insn_cnt = static_cast<uint32_t>(program.size());
  attr.license = pointer(license);
  set_name(attr.prog_name, name);
  long fd = command(BPF_PROG_LOAD, attr);
  if (fd < 0) {
    attr.log_level = 1;
    attr.log_buf = pointer(log.data());
    attr.log_size = static_cast<uint32_t>(log.size());
    fd = command(BPF_PROG_LOAD, attr);
  }
  if (fd < 0) {
    return errno_status(errno, fmt::format("bpf(BPF_PROG_LOAD, {}) [{}]", name, log.c_str()));
  }
  return UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<UniqueFd> load_iterator(uint32_t function, const char* name,
                                       std::span<const bpf_insn> program) {
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_TRACING;
  attr.expected_attach_type = BPF_TRACE_ITER;
  attr.attach_btf_id = function;
  // The kernel shows its own structures to such programs only.
  return load_program(attr, name, "Dual MIT/GPL", program);
}

absl::Status run_iterator(int program, HostPid process) {
  bpf_iter_link_info what{};
  what.task.pid = static_cast<uint32_t>(process.value);
  bpf_attr attr{};
  attr.link_create.prog_fd = static_cast<uint32_t>(program);
  attr.link_create.attach_type = BPF_TRACE_ITER;
  attr.link_create.iter_info = pointer(&what);
  attr.link_create.iter_info_len = sizeof what;
  const UniqueFd link(static_cast<int>(command(BPF_LINK_CREATE, attr)));
  if (!link) {
    return errno_status(errno,
                        fmt::format("bpf(BPF_LINK_CREATE, iterator, process {})", process.value));
  }
  attr = {};
  attr.iter_create.link_fd = static_cast<uint32_t>(link.get());
  const UniqueFd objects(static_cast<int>(command(BPF_ITER_CREATE, attr)));
  if (!objects) return errno_status(errno, "bpf(BPF_ITER_CREATE)");
  for (;;) {
    char nothing[64];
    const ssize_t n = ::read(objects.get(), nothing, sizeof nothing);
    if (n == 0) return absl::OkStatus();
    if (n < 0 && errno != EINTR) {
      return errno_status(errno, fmt::format("read(BPF iterator, process {})", process.value));
    }
  }
}

}  // namespace godwit::kernel::bpf
