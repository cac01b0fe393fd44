#include "pages/fault_service.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/abi/userfaultfd.h"
#include "kernel/slice.h"

namespace godwit::pages {
namespace {

// Spaces are process numbers and what follows 2^32: these are neither.
constexpr uint64_t kWake = UINT64_MAX;
constexpr uint64_t kFaults = UINT64_MAX - 1;
constexpr uint64_t kPush = UINT64_MAX - 2;
constexpr int kTickMs = 100;
constexpr size_t kReceiveBytes = size_t{64} << 10;
// Encrypted, of what is pushed.
constexpr size_t kReadAhead = size_t{128} << 10;
// What is left of a message moves to the front when less than a whole read has room behind it.
constexpr size_t kRoom = 2 * kReceiveBytes + sizeof(PageHeader) + kMaxWirePages * kPageSize;
constexpr int kNice = -10;
constexpr absl::Duration kSlice = absl::Microseconds(100);

absl::Status lost(std::string_view what, int error) {
  return make_error(absl::StatusCode::kUnavailable, "{}: {}", what,
                    error == 0 ? "the source has closed" : std::strerror(error));
}

void watch(const UniqueFd& epoll, int fd, uint64_t what) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = what;
  ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event);
}

// 0 or -errno, and how many bytes were filled. `data` null: zeros.
int fill(int uffd, PageRange range, const std::byte* data, uint64_t& done) {
  int64_t filled = 0;
  int result = 0;
  if (data != nullptr) {
    uffdio_copy copy{};
    copy.dst = range.start;
    copy.src = reinterpret_cast<uint64_t>(data);
    copy.len = range.end - range.start;
    result = ::ioctl(uffd, UFFDIO_COPY, &copy) == 0 ? 0 : -errno;
    filled = copy.copy;
  } else {
    uffdio_zeropage zero{};
    zero.range = {range.start, range.end - range.start};
    result = ::ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0 ? 0 : -errno;
    filled = zero.zeropage;
  }
  done = filled > 0 ? static_cast<uint64_t>(filled) : 0;
  return result;
}

void wake(int uffd, PageRange range) {
  uffdio_range request = {range.start, range.end - range.start};
  ::ioctl(uffd, UFFDIO_WAKE, &request);
}

}  // namespace

absl::Status enable_missing(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                 UFFD_FEATURE_EVENT_UNMAP | kernel::abi::kUffdFeaturePoison;
  if (::ioctl(uffd, UFFDIO_API, &api) == 0) return absl::OkStatus();
  if (errno == EINVAL)
    return make_error(absl::StatusCode::kUnimplemented,
                      "ioctl({}, UFFDIO_API, EVENT_*|POISON): this kernel cannot let a program run "
                      "before its pages are there (Linux 6.6)",
                      uffd);
  return errno_status(errno, fmt::format("ioctl({}, UFFDIO_API, EVENT_*|POISON)", uffd));
}

absl::Status register_missing(int uffd, PageRange mapping) {
  uffdio_register request{};
  request.range = {mapping.start, mapping.end - mapping.start};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(uffd, UFFDIO_REGISTER, &request) == 0) return absl::OkStatus();
  return errno_status(errno,
                      fmt::format("ioctl(UFFDIO_REGISTER, {:x}-{:x})", mapping.start, mapping.end));
}

absl::StatusOr<std::unique_ptr<FaultService>> FaultService::start(std::vector<Space> spaces) {
  std::unique_ptr<FaultService> service(new FaultService());
  service->wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  service->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!service->wake_ || !service->epoll_) return errno_status(errno, "eventfd(), epoll_create1()");
  watch(service->epoll_, service->wake_.get(), kWake);
  for (Space& space : spaces) {
    service->missing_.add(space.pages.id, space.pages.missing);
    watch(service->epoll_, space.uffd.get(), space.pages.id);
    service->memories_.emplace(space.pages.id, Memory{space.pages.pid, std::move(space.uffd)});
  }
  for (Incoming* in : {&service->from_faults_, &service->from_push_}) in->bytes.resize(kRoom);
  service->publish();
  service->thread_ = std::thread([self = service.get()] { self->run(); });
  return service;
}

FaultService::~FaultService() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ::eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

void FaultService::connect(Connection connection) {
  {
    const std::lock_guard lock(mutex_);
    new_source_ = std::move(connection);
    state_.connected = true;
  }
  ::eventfd_write(wake_.get(), 1);
}

void FaultService::poison() {
  {
    const std::lock_guard lock(mutex_);
    poison_ordered_ = true;
  }
  ::eventfd_write(wake_.get(), 1);
}

FaultService::State FaultService::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

void FaultService::publish() {
  const std::lock_guard lock(mutex_);
  state_.missing = missing_.pages();
  state_.connected = source_.faults != nullptr || new_source_.faults != nullptr;
  state_.faults = fault_count_;
  state_.poisoned = poisoned_;
}

void FaultService::run() {
  // Everything that the program waits for waits for this.
  ::setpriority(PRIO_PROCESS, 0, kNice);
  kernel::set_slice(0, kSlice);
  std::array<epoll_event, 32> events{};
  for (;;) {
    take_orders();
    {
      const std::lock_guard lock(mutex_);
      if (ending_) return;
    }
    if (missing_.pages() == 0) break;
    const int ready = ::epoll_wait(epoll_.get(), events.data(), events.size(), kTickMs);
    const auto some = std::span(events).first(static_cast<size_t>(std::max(ready, 0)));
    // The program's own first, then what it waits for.
    std::sort(some.begin(), some.end(), [](const epoll_event& a, const epoll_event& b) {
      return static_cast<uint64_t>(a.data.u64) < static_cast<uint64_t>(b.data.u64);
    });
    bool push = false;
    for (const epoll_event& event : some) {
      const uint64_t what = event.data.u64;
      if (what == kPush)
        push = true;
      else if (what == kFaults)
        disconnect(source_.faults ? receive(source_.faults, from_faults_) : absl::OkStatus());
      else if (what != kWake)
        take_events(what);
    }
    if (push && source_.push) disconnect(receive(source_.push, from_push_));
    if (source_.faults &&
        monotonic_ns() - heard_at_ns_ > absl::ToInt64Nanoseconds(source_.patience))
      disconnect(make_error(absl::StatusCode::kUnavailable, "the source has been silent for {}",
                            absl::FormatDuration(source_.patience)));
    for (const uint64_t space : std::exchange(dead_, {})) remove_dead(space);
    publish();
  }
  let_go();
}

void FaultService::take_orders() {
  uint64_t count = 0;
  Connection source;
  bool poison = false;
  (void)!::read(wake_.get(), &count, sizeof count);
  {
    const std::lock_guard lock(mutex_);
    source = std::exchange(new_source_, {});
    poison = std::exchange(poison_ordered_, false);
  }
  if (poison) poison_missing();
  if (!source.faults || !source.push) return;
  source_ = std::move(source);  // what was there before is closed, and so out of the epoll
  source_.push->read_ahead(kReadAhead);
  for (Incoming* in : {&from_faults_, &from_push_}) in->from = in->filled = 0;
  watch(epoll_, source_.faults->fd(), kFaults);
  watch(epoll_, source_.push->fd(), kPush);
  heard_at_ns_ = monotonic_ns();
  disconnect(send_list());
}

void FaultService::disconnect(const absl::Status& why) {
  if (why.ok()) return;
  source_ = {};
  const std::lock_guard lock(mutex_);
  state_.error = std::string(message_of(why));
}

// A source that takes nothing must not keep the program waiting for us.
absl::Status FaultService::send(std::span<const PageHeader> headers) {
  return source_.faults->write_all(
      std::string_view(reinterpret_cast<const char*>(headers.data()), headers.size_bytes()),
      source_.patience);
}

absl::Status FaultService::send(PageMessage type, uint64_t space, uint64_t address,
                                uint32_t count) {
  const PageHeader header = page_header(type, space, address, count);
  return send({&header, 1});
}

absl::Status FaultService::send_list() {
  std::vector<PageHeader> list;
  for (const auto& [space, pages] : missing_.wanted())
    for (const stream::PageRun& run : pages.runs())
      list.push_back(page_header(PageMessage::kMissing, space, run.address, run.count));
  const bool proven = source_.faults->encrypted() && source_.push->encrypted();
  list.push_back(page_header(PageMessage::kListEnd, 0, 0, proven ? kTakesProven : 0));
  for (const SourcePage& page : asked_)
    list.push_back(page_header(PageMessage::kRequest, page.space, page.address, 1));
  return send(list);
}

void FaultService::take_events(uint64_t space) {
  const auto found = memories_.find(space);
  if (found == memories_.end()) return;
  const int uffd = found->second.uffd.get();
  std::array<uffd_msg, 16> messages;
  const ssize_t n = ::read(uffd, messages.data(), sizeof messages);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    dead_.insert(space);
    return;
  }
  for (const uffd_msg& message :
       std::span(messages).first(static_cast<size_t>(n) / sizeof(uffd_msg))) {
    switch (message.event) {
      case UFFD_EVENT_PAGEFAULT:
        on_fault(space, message.arg.pagefault.address / kPageSize * kPageSize);
        break;
      case UFFD_EVENT_FORK:
        on_fork(space, static_cast<int>(message.arg.fork.ufd));
        break;
      case UFFD_EVENT_REMAP:
        missing_.move(space, message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
        break;
      case UFFD_EVENT_REMOVE:
      case UFFD_EVENT_UNMAP:
        removed(space, {message.arg.remove.start, message.arg.remove.end});
        break;
      default:
        log_warning("userfaultfd: event {} is not known", message.event);
    }
  }
}

void FaultService::on_fault(uint64_t space, uint64_t address) {
  ++fault_count_;
  const auto source = missing_.source_of(space, address);
  if (!source) {
    // Never populated, or it came while the fault was on its way.
    fill_zeros(space, {address, address + kPageSize});
    return;
  }
  if (asked_.insert(*source).second) request(*source);
}

void FaultService::request(SourcePage page) {
  if (source_.faults) disconnect(send(PageMessage::kRequest, page.space, page.address, 1));
}

void FaultService::on_fork(uint64_t parent, int uffd) {
  const uint64_t child = next_child_++;
  missing_.fork(parent, child);
  watch(epoll_, uffd, child);
  memories_.emplace(child, Memory{HostPid{0}, UniqueFd(uffd)});
}

void FaultService::removed(uint64_t space, PageRange range) {
  // With children in between it is simpler to let it come and find no place.
  if (source_.faults && memories_.size() == 1) {
    // In runs: a page at a time would keep those waiting that a fault has stopped.
    for (const stream::PageRun& run : missing_.sources_in(space, range).runs())
      if (source_.faults) disconnect(send(PageMessage::kGone, space, run.address, run.count));
  }
  missing_.remove(space, range);
}

void FaultService::remove_dead(uint64_t space) {
  missing_.remove_space(space);
  memories_.erase(space);
}

void FaultService::fill_zeros(uint64_t space, PageRange range) {
  const auto found = memories_.find(space);
  if (found == memories_.end()) return;
  const int uffd = found->second.uffd.get();
  uint64_t done = 0;
  const int result = fill(uffd, range, nullptr, done);
  if (result == -ESRCH)
    dead_.insert(space);
  else if (result != 0)
    wake(uffd, range);  // there by now, or about to change: the thread looks again
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): source_ may let go of it meanwhile.
absl::Status FaultService::receive(std::shared_ptr<tls::Channel> from, Incoming& in) {
  do {
    const iovec room{in.bytes.data() + in.filled,
                     std::min(kReceiveBytes, in.bytes.size() - in.filled)};
    const ssize_t n = from->readv({&room, 1});
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
    if (n < 0) return tls::Channel::failure(errno, "recv(pages)");
    if (n == 0) return lost("recv(pages)", 0);
    heard_at_ns_ = monotonic_ns();
    in.filled += static_cast<size_t>(n);
    GW_RETURN_IF_ERROR(understand(in, from->encrypted()));
  } while (source_.faults && from->unread());
  return absl::OkStatus();
}

absl::Status FaultService::understand(Incoming& in, bool proven) {
  while (in.filled - in.from >= sizeof(PageHeader)) {
    PageHeader header;
    std::memcpy(&header, in.bytes.data() + in.from, sizeof header);
    const bool bare = header.type == static_cast<uint32_t>(PageMessage::kPagesProven);
    const bool data = bare || header.type == static_cast<uint32_t>(PageMessage::kPages);
    if (header.count > kMaxWirePages)
      return make_error(absl::StatusCode::kDataLoss, "{} pages in one message", header.count);
    const size_t bytes = data ? header.count * kPageSize : 0;
    if (in.filled - in.from < sizeof header + bytes) break;
    const std::span<const std::byte> body(in.bytes.data() + in.from + sizeof header, bytes);
    if (bare && !proven)
      return absl::DataLossError("a page from the source: neither under TLS nor with a checksum");
    if (header.checksum != wire_checksum(header, body.first(bare ? 0 : bytes)))
      return absl::DataLossError("a page from the source: checksum");
    GW_RETURN_IF_ERROR(place(header, data ? body.data() : nullptr));
    in.from += sizeof header + bytes;
  }
  if (in.from < in.filled && in.bytes.size() - in.filled >= kReceiveBytes) return absl::OkStatus();
  std::memmove(in.bytes.data(), in.bytes.data() + in.from, in.filled - in.from);
  in.filled -= std::exchange(in.from, 0);
  return absl::OkStatus();
}

absl::Status FaultService::place(const PageHeader& header, const std::byte* data) {
  switch (static_cast<PageMessage>(header.type)) {
    case PageMessage::kAlive:
      return absl::OkStatus();
    case PageMessage::kPages:
    case PageMessage::kPagesProven:
    case PageMessage::kZeros:
      break;
    default:
      return make_error(absl::StatusCode::kDataLoss, "a message of type {} from the source",
                        header.type);
  }
  FAULT_POINT("pages.place");
  const PageRange source{header.address, header.address + header.count * kPageSize};
  if (source.start % kPageSize != 0 || source.end < source.start)
    return absl::DataLossError("a page from the source: address");
  // Each step places, or finds that less is missing than before.
  for (;;) {
    const auto places = missing_.places(header.space, source);
    if (places.empty()) break;
    for (const MissingPages::Place& at : places)
      put(at.space, at.range, data == nullptr ? nullptr : data + (at.source_start - source.start));
  }
  if (!asked_.empty())
    asked_.erase(asked_.lower_bound({header.space, source.start}),
                 asked_.lower_bound({header.space, source.end}));
  return absl::OkStatus();
}

void FaultService::put(uint64_t space, PageRange range, const std::byte* data) {
  const auto found = memories_.find(space);
  if (found == memories_.end() || dead_.contains(space)) {
    missing_.remove(space, range);
    return;
  }
  const int uffd = found->second.uffd.get();
  uint64_t done = 0;
  const int result = fill(uffd, range, data, done);
  if (done > 0) missing_.remove(space, {range.start, range.start + done});
  if (result == 0 || done > 0) return;
  const PageRange first{range.start, range.start + kPageSize};
  switch (-result) {
    case EAGAIN:
      // The program is changing its memory: what it does there has to be known first.
      take_events(space);
      ::sched_yield();
      return;
    case ENOENT:
      // Over the border of two mappings, or not mapped any more.
      if (range.pages() > 1) {
        put(space, first, data);
        return;
      }
      take_events(space);
      missing_.remove(space, first);
      return;
    case ESRCH:
      dead_.insert(space);
      missing_.remove(space, range);
      return;
    case ENOMEM: {
      const timespec moment{0, 10'000'000};
      ::nanosleep(&moment, nullptr);
      return;
    }
    default:
      // EEXIST: something is there, and nothing that comes late may take its place.
      missing_.remove(space, first);
      wake(uffd, first);
  }
}

void FaultService::poison_missing() {
  for (const auto& [space, memory] : memories_) {
    for (PageRange range : missing_.missing_in(space)) {
      poisoned_ += range.pages();
      while (range.start < range.end) {
        kernel::abi::UffdioPoison request{};
        request.range = {range.start, range.end - range.start};
        const bool failed = ::ioctl(memory.uffd.get(), kernel::abi::kUffdioPoison, &request) != 0;
        if (request.updated > 0) range.start += static_cast<uint64_t>(request.updated);
        if (!failed || request.updated > 0) continue;
        if (errno == ESRCH) break;
        range.start += kPageSize;  // not missing, or not mapped any more
      }
    }
    missing_.remove(space, PageRange{0, UINT64_MAX / kPageSize * kPageSize});
  }
}

// Nothing is missing: close(2) lets go of all mappings, and whoever waits goes on. Nothing was
// write-protected, so it walks no page tables.
void FaultService::let_go() {
  memories_.clear();
  if (source_.faults) (void)send(PageMessage::kComplete, 0, 0, 0);
  source_ = {};
  publish();
  const std::lock_guard lock(mutex_);
  state_.done = true;
}

}  // namespace godwit::pages
