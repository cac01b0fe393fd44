// Descriptors into a husk: SCM_RIGHTS (unix(7)) over the channel, received by a batch in the husk.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/husk.h"

namespace godwit::process {
namespace {

constexpr size_t kPerMessage = 250;  // the kernel takes 253 (SCM_MAX_FD)

// Numbers at which the husk received `fds`: its lowest free ones, ascending.
absl::StatusOr<std::vector<int>> receive(Husk& husk, const DescriptorChannel& channel,
                                         std::span<const int> fds) {
  GW_RETURN_IF_ERROR(
      kernel::send_with_fds(channel.near.get(), "d", std::vector<int>(fds.begin(), fds.end())));
  tracee::Batch batch;
  const auto byte = batch.reserve(8);
  iovec part{nullptr, 8};
  const auto parts = batch.data(std::as_bytes(std::span(&part, 1)));
  batch.patch_pointer(parts, offsetof(iovec, iov_base), byte);
  const size_t control_bytes = CMSG_SPACE(fds.size() * sizeof(int));
  const auto control = batch.reserve(control_bytes);
  msghdr message{};
  message.msg_iovlen = 1;
  message.msg_controllen = control_bytes;
  const auto header = batch.data(std::as_bytes(std::span(&message, 1)));
  batch.patch_pointer(header, offsetof(msghdr, msg_iov), parts);
  batch.patch_pointer(header, offsetof(msghdr, msg_control), control);
  batch.call(SYS_recvmsg, {channel.husk_number, header, MSG_DONTWAIT}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  GW_RETURN_IF_ERROR(batch.check_all());
  const std::span<const std::byte> raw = batch.bytes(control);
  cmsghdr first{};
  std::memcpy(&first, raw.data(), sizeof first);
  if (first.cmsg_type != SCM_RIGHTS || first.cmsg_len != CMSG_LEN(fds.size() * sizeof(int)))
    return make_error(absl::StatusCode::kResourceExhausted,
                      "process {}: the kernel passed fewer than {} descriptors; its limit of open "
                      "files (RLIMIT_NOFILE) is too low here",
                      husk.pid().value, fds.size());
  std::vector<int> numbers(fds.size());
  std::memcpy(numbers.data(), raw.data() + CMSG_LEN(0), fds.size() * sizeof(int));
  return numbers;
}

}  // namespace

absl::StatusOr<std::vector<int>> Husk::lend(const DescriptorChannel& channel,
                                            std::span<const int> fds) {
  std::vector<int> numbers;
  for (size_t at = 0; at < fds.size(); at += kPerMessage) {
    GW_ASSIGN_OR_RETURN(
        const std::vector<int> some,
        receive(*this, channel, fds.subspan(at, std::min(kPerMessage, fds.size() - at))));
    numbers.insert(numbers.end(), some.begin(), some.end());
  }
  return numbers;
}

absl::Status Husk::place(const DescriptorChannel& channel, std::vector<Placement> placements) {
  std::sort(placements.begin(), placements.end(),
            [](const Placement& a, const Placement& b) { return a.number < b.number; });
  for (size_t at = 0; at < placements.size(); at += kPerMessage) {
    const std::span<const Placement> some(placements.data() + at,
                                          std::min(kPerMessage, placements.size() - at));
    std::vector<int> fds;
    for (const Placement& p : some) fds.push_back(p.fd);
    GW_ASSIGN_OR_RETURN(const std::vector<int> got, receive(*this, channel, fds));
    // The k-th lowest free number is never above the k-th wanted one (all wanted ones are free),
    // so moving from the highest down overwrites nothing.
    tracee::Batch batch;
    for (size_t i = some.size(); i-- > 0;) {
      const Placement& p = some[i];
      if (got[i] == p.number) {
        if (p.close_on_exec) batch.call(SYS_fcntl, {p.number, F_SETFD, FD_CLOEXEC}, true);
        continue;
      }
      batch.call(SYS_dup3, {got[i], p.number, p.close_on_exec ? O_CLOEXEC : 0}, true);
      batch.call(SYS_close, {got[i]}, true);
    }
    GW_RETURN_IF_ERROR(run(batch));
    GW_RETURN_IF_ERROR(batch.check_all());
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
