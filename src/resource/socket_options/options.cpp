#include "resource/socket_options/options.h"

#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "resource/signal_owner/signal_owner.h"
#include "resource/socket_options/option_table.h"
#include "resource/state_codec.h"

namespace godwit::resource {
namespace {

bool applies(const OptionSpec& spec, SocketUse use, int family) {
  if ((spec.uses & use) == 0) return false;
  switch (spec.family) {
    case OptionFamily::kInet:
      return family == AF_INET;
    case OptionFamily::kInet6:
      return family == AF_INET6;
    case OptionFamily::kAny:
      break;
  }
  // IPPROTO_IP reaches a socket of AF_INET6 too: it may talk IPv4.
  return spec.level == SOL_SOCKET || spec.level == SOL_NETLINK || family == AF_INET ||
         family == AF_INET6;
}

std::string option_call(std::string_view call, int fd, int level, int name) {
  return fmt::format("{}({}, level {}, option {})", call, fd, level, name);
}

// False: this kernel or this kind of socket has no such option, so it has no value either.
absl::StatusOr<bool> read_option(int fd, const OptionSpec& spec, int64_t& value) {
  union {
    int number;
    uint64_t wide;
    linger lingering;
    timeval time;
    so_timestamping timestamping;
  } raw{};
  socklen_t size = sizeof raw;
  if (spec.form == OptionForm::kInt) size = sizeof raw.number;
  if (spec.form == OptionForm::kUnsigned64) size = sizeof raw.wide;
  if (spec.form == OptionForm::kTimestamping) size = sizeof raw.timestamping;
  if (::getsockopt(fd, spec.level, spec.name, &raw, &size) != 0) {
    if (errno == ENOPROTOOPT || errno == EOPNOTSUPP) return false;
    return errno_status(errno, option_call("getsockopt", fd, spec.level, spec.name));
  }
  switch (spec.form) {
    case OptionForm::kInt:
      value = raw.number;
      break;
    case OptionForm::kUnsigned64:
      value = static_cast<int64_t>(raw.wide);
      break;
    case OptionForm::kLinger:
      value = raw.lingering.l_onoff != 0 ? raw.lingering.l_linger : -1;
      break;
    case OptionForm::kTime:
      value = int64_t{raw.time.tv_sec} * 1'000'000 + raw.time.tv_usec;
      break;
    case OptionForm::kTimestamping:
      value = (int64_t{raw.timestamping.bind_phc} << 32) | uint32_t(raw.timestamping.flags);
      break;
  }
  return true;
}

absl::Status write_option(int fd, const OptionSpec& spec, int64_t value) {
  int result = 0;
  switch (spec.form) {
    case OptionForm::kInt: {
      const int number = static_cast<int>(value);
      result = ::setsockopt(fd, spec.level, spec.name, &number, sizeof number);
      break;
    }
    case OptionForm::kUnsigned64:
      result = ::setsockopt(fd, spec.level, spec.name, &value, sizeof value);
      break;
    case OptionForm::kLinger: {
      const linger lingering{.l_onoff = value >= 0, .l_linger = static_cast<int>(value)};
      result = ::setsockopt(fd, spec.level, spec.name, &lingering, sizeof lingering);
      break;
    }
    case OptionForm::kTime: {
      const timeval time{.tv_sec = value / 1'000'000, .tv_usec = value % 1'000'000};
      result = ::setsockopt(fd, spec.level, spec.name, &time, sizeof time);
      break;
    }
    case OptionForm::kTimestamping: {
      const so_timestamping timestamping{.flags = static_cast<int>(value & 0xffffffff),
                                         .bind_phc = static_cast<int>(value >> 32)};
      result = ::setsockopt(fd, spec.level, spec.name, &timestamping, sizeof timestamping);
      break;
    }
  }
  if (result != 0) return errno_status(errno, option_call("setsockopt", fd, spec.level, spec.name));
  return absl::OkStatus();
}

int64_t value_in(const SocketCommon& common, const OptionSpec& spec) {
  for (const SocketOption& option : common.options())
    if (option.level() == spec.level && option.name() == spec.name) return option.value();
  return spec.left_out;
}

// Classic BPF can be read back (SO_GET_FILTER); an eBPF program gives EACCES (sk_get_filter()).
absl::Status capture_filter(int fd, SocketCommon& common) {
  socklen_t count = 0;  // in instructions, not bytes
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "the socket has an eBPF filter, which cannot be read back");
    return errno_status(errno, option_call("getsockopt", fd, SOL_SOCKET, SO_GET_FILTER));
  }
  if (count == 0) return absl::OkStatus();
  std::vector<sock_filter> code(count);
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, code.data(), &count) != 0)
    return errno_status(errno, option_call("getsockopt", fd, SOL_SOCKET, SO_GET_FILTER));
  common.set_filter(code.data(), code.size() * sizeof(sock_filter));
  return absl::OkStatus();
}

absl::Status restore_filter(int fd, const SocketCommon* before, const SocketCommon& now) {
  if (now.filter() == (before != nullptr ? before->filter() : std::string()))
    return absl::OkStatus();
  if (now.filter().empty()) return set_int_option(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
  const size_t count = now.filter().size() / sizeof(sock_filter);
  if (count > BPF_MAXINSNS || count * sizeof(sock_filter) != now.filter().size())
    return make_error(absl::StatusCode::kDataLoss, "socket filter of {} bytes",
                      now.filter().size());
  std::vector<sock_filter> code(count);
  std::memcpy(code.data(), now.filter().data(), now.filter().size());
  const sock_fprog program{.len = static_cast<unsigned short>(count), .filter = code.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    return errno_status(errno, option_call("setsockopt", fd, SOL_SOCKET, SO_ATTACH_FILTER));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> get_int_option(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  if (::getsockopt(fd, level, name, &value, &size) != 0)
    return errno_status(errno, option_call("getsockopt", fd, level, name));
  return value;
}

absl::Status set_int_option(int fd, int level, int name, int value) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0)
    return errno_status(
        errno, fmt::format("setsockopt({}, level {}, option {}, {})", fd, level, name, value));
  return absl::OkStatus();
}

absl::Status capture_common(const OpenFile& file, SocketUse use, int family, bool buffers,
                            SocketCommon& common) {
  GW_RETURN_IF_ERROR(capture_options(file, use, family, buffers, common));
  return capture_owners(file, common);
}

absl::Status capture_owners(const OpenFile& file, SocketCommon& common) {
  common.set_uid(file.stat.st_uid);
  common.set_gid(file.stat.st_gid);
  common.set_mode(file.stat.st_mode & 07777);
  common.set_status_flags(static_cast<uint32_t>(file.status_flags));
  GW_ASSIGN_OR_RETURN(auto owner, signal_owner_of(file));
  if (owner) *common.mutable_owner() = *std::move(owner);
  return absl::OkStatus();
}

absl::Status capture_options(const OpenFile& file, SocketUse use, int family, bool buffers,
                             SocketCommon& common) {
  for (const OptionSpec& spec : option_table()) {
    if (!applies(spec, use, family)) continue;
    int64_t value = spec.left_out;
    GW_ASSIGN_OR_RETURN(const bool known, read_option(file.fd, spec, value));
    if (!known || value == spec.left_out) continue;
    SocketOption& option = *common.add_options();
    option.set_level(spec.level);
    option.set_name(spec.name);
    option.set_value(value);
  }
  GW_RETURN_IF_ERROR(capture_filter(file.fd, common));
  char device[IFNAMSIZ] = {};
  socklen_t size = sizeof device;
  if (::getsockopt(file.fd, SOL_SOCKET, SO_BINDTODEVICE, device, &size) != 0)
    return errno_status(errno, option_call("getsockopt", file.fd, SOL_SOCKET, SO_BINDTODEVICE));
  common.set_bind_device(device);
  GW_ASSIGN_OR_RETURN(const int lock, get_int_option(file.fd, SOL_SOCKET, SO_BUF_LOCK));
  common.set_buffer_lock(static_cast<uint32_t>(lock));
  uint32_t memory[SK_MEMINFO_VARS] = {};
  size = sizeof memory;
  if ((buffers || lock != 0) && ::getsockopt(file.fd, SOL_SOCKET, SO_MEMINFO, memory, &size) != 0)
    return errno_status(errno, option_call("getsockopt", file.fd, SOL_SOCKET, SO_MEMINFO));
  // Sizes are set in halves: an odd one, which only the kernel's tuning makes, loses a byte.
  if (buffers || (lock & SOCK_RCVBUF_LOCK) != 0)
    common.set_receive_buffer(memory[SK_MEMINFO_RCVBUF] & ~1U);
  if (buffers || (lock & SOCK_SNDBUF_LOCK) != 0)
    common.set_send_buffer(memory[SK_MEMINFO_SNDBUF] & ~1U);
  return absl::OkStatus();
}

absl::Status restore_common(int fd, SocketUse use, int family, const SocketCommon* before,
                            const SocketCommon& now) {
  for (const OptionSpec& spec : option_table()) {
    if (!applies(spec, use, family)) continue;
    const int64_t wanted = value_in(now, spec);
    if (before != nullptr) {
      if (value_in(*before, spec) == wanted) continue;
    } else {
      int64_t fresh = 0;
      GW_ASSIGN_OR_RETURN(const bool known, read_option(fd, spec, fresh));
      if ((known && fresh == wanted) || (!known && wanted == spec.left_out)) continue;
    }
    GW_RETURN_IF_ERROR(write_option(fd, spec, wanted));
  }
  GW_RETURN_IF_ERROR(restore_filter(fd, before, now));
  if (before == nullptr || before->uid() != now.uid() || before->gid() != now.gid())
    if (::fchown(fd, now.uid(), now.gid()) != 0)
      return errno_status(errno, fmt::format("fchown(socket, {}, {})", now.uid(), now.gid()));
  if ((before != nullptr ? before->mode() : 0777) != now.mode() && ::fchmod(fd, now.mode()) != 0)
    return errno_status(errno, fmt::format("fchmod(socket, {:o})", now.mode()));
  constexpr uint32_t kByUs = O_NONBLOCK;
  const uint32_t flags = now.status_flags() & kByUs;
  if ((before != nullptr ? before->status_flags() & kByUs : 0) != flags &&
      ::fcntl(fd, F_SETFL, flags) != 0)
    return errno_status(errno, fmt::format("fcntl(socket, F_SETFL, {:#x})", flags));
  return absl::OkStatus();
}

absl::Status restore_buffers(int fd, const SocketCommon& now) {
  const auto set_force = [&](int name, int64_t bytes) {
    return bytes == 0
               ? absl::OkStatus()
               : set_int_option(fd, SOL_SOCKET, name,
                                static_cast<int>(std::min<int64_t>(bytes / 2, INT32_MAX / 2)));
  };
  GW_RETURN_IF_ERROR(set_force(SO_RCVBUFFORCE, now.receive_buffer()));
  GW_RETURN_IF_ERROR(set_force(SO_SNDBUFFORCE, now.send_buffer()));
  return set_int_option(fd, SOL_SOCKET, SO_BUF_LOCK, static_cast<int>(now.buffer_lock()));
}

absl::Status restore_device(int fd, const SocketCommon& now) {
  const std::string& name = now.bind_device();
  if (name.empty()) return absl::OkStatus();
  if (::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name.data(),
                   static_cast<socklen_t>(name.size())) != 0)
    return errno_status(errno, fmt::format("setsockopt({}, SO_BINDTODEVICE, {})", fd, name));
  return absl::OkStatus();
}

FileKind::Check finish_signal_owner(const SocketCommon& now, int remote_fd, tracee::Batch& batch) {
  return now.has_owner() ? add_signal_owner_calls(now.owner(), remote_fd, now.status_flags(), batch)
                         : FileKind::Check();
}

std::optional<SocketIdentity> socket_identity(int fd) {
  auto domain = get_int_option(fd, SOL_SOCKET, SO_DOMAIN);
  auto type = get_int_option(fd, SOL_SOCKET, SO_TYPE);
  auto protocol = get_int_option(fd, SOL_SOCKET, SO_PROTOCOL);
  if (!domain.ok() || !type.ok() || !protocol.ok()) return std::nullopt;
  return SocketIdentity{*domain, *type, *protocol};
}

bool socket_kind(const OpenFile& file, SocketIdentity& kind) {
  if (!S_ISSOCK(file.stat.st_mode) || !file.link.starts_with("socket:")) return false;
  const auto identity = file.socket ? file.socket : socket_identity(file.fd);
  if (identity) kind = *identity;
  return identity.has_value();
}

}  // namespace godwit::resource
