#include "pages/page_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"

namespace godwit::pages {
namespace {

constexpr int64_t kTellEveryNs = 200'000'000;
constexpr int kIdleMs = 100;
// A sign of life at least this often; the other end gives up after a multiple of it.
constexpr int64_t kAliveEveryNs = 300'000'000;
// As TCP's own patience (migration/peer.h), but for a window that stays closed.
constexpr absl::Duration kSendPatience = absl::Seconds(15);
constexpr absl::Duration kLastWords = absl::Milliseconds(200);
constexpr size_t kReadBytes = size_t{64} << 10;
// What is pushed at once, of several messages: a request waits behind it for some 50 us.
constexpr size_t kPushPages = 2 * kMaxWirePages;

absl::Status lost(std::string_view what, int error) {
  return make_error(absl::StatusCode::kUnavailable, "{}: {}", what,
                    error == 0 ? "the other end has closed" : std::strerror(error));
}

}  // namespace

PageServer::Parcel::Parcel(size_t most)
    : data(std::make_unique_for_overwrite<std::byte[]>(most * kPageSize)) {
  headers.reserve(most);
  parts.reserve(2 * most);
}

void PageServer::Parcel::clear() {
  headers.clear();
  parts.clear();
  pages = first = bytes = 0;
}

void PageServer::Parcel::advance(size_t sent) {
  while (sent > 0) {
    iovec& part = parts[first];
    const size_t step = std::min(sent, part.iov_len);
    part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
    part.iov_len -= step;
    sent -= step;
    if (part.iov_len == 0) ++first;
  }
}

PageServer::PageServer(PageSource& source, Pacer pacer)
    : source_(source),
      pacer_(std::move(pacer)),
      in_(std::make_unique_for_overwrite<std::byte[]>(kReadBytes)),
      answer_(1),
      pushed_(kPushPages) {}

absl::StatusOr<PageServer::Left*> PageServer::left_of(uint64_t space) {
  if (!source_.has(space))
    return make_error(absl::StatusCode::kDataLoss,
                      "pages of process {} are wanted, which is not here", space);
  return &spaces_[space];
}

PageRange PageServer::take(Left& left, uint64_t address, uint64_t most) {
  auto next = left.upper_bound(address);
  if (next == left.begin()) return {};
  const auto found = std::prev(next);
  const uint64_t end = found->second;
  if (address >= end) return {};
  const PageRange taken{address, std::min(end, address + most * kPageSize)};
  if (found->first == taken.start)
    left.erase(found);
  else
    found->second = taken.start;
  if (taken.end < end) left.emplace(taken.end, end);
  figures_.left -= taken.pages();
  return taken;
}

absl::Status PageServer::append(uint64_t space, PageRange range, Parcel& to) {
  FAULT_POINT("pages.serve");
  std::byte* at = to.data.get() + to.pages * kPageSize;
  absl::Status read = source_.read(space, range, {at, range.pages() * kPageSize});
  if (absl::IsDataLoss(read) && range.pages() > 1) {
    for (uint64_t page = range.start; page < range.end; page += kPageSize)
      GW_RETURN_IF_ERROR(append(space, {page, page + kPageSize}, to));
    return absl::OkStatus();
  }
  if (absl::IsDataLoss(read)) {
    if (figures_.unreadable++ == 0) figures_.error = message_of(read);
    return absl::OkStatus();
  }
  GW_RETURN_IF_ERROR(read);
  to.pages += range.pages();
  for (uint64_t page = range.start; page < range.end;) {
    const bool zero = is_zero_page(at);
    uint32_t count = 1;
    while (page + count * kPageSize < range.end && is_zero_page(at + count * kPageSize) == zero)
      ++count;
    const PageMessage type = zero      ? PageMessage::kZeros
                             : proven_ ? PageMessage::kPagesProven
                                       : PageMessage::kPages;
    const iovec data{at, zero ? 0 : count * kPageSize};
    to.headers.push_back(page_header(type, space, page, count,
                                     {at, type == PageMessage::kPages ? data.iov_len : 0}));
    to.parts.push_back({&to.headers.back(), sizeof(PageHeader)});
    if (!zero) to.parts.push_back(data);
    to.bytes += sizeof(PageHeader) + data.iov_len;
    (zero ? figures_.zeros : figures_.given) += count;
    page += count * kPageSize;
    at += count * kPageSize;
  }
  return absl::OkStatus();
}

absl::Status PageServer::answer(uint64_t space, uint64_t address) {
  GW_ASSIGN_OR_RETURN(Left * left, left_of(space));
  ++figures_.faults;
  // Whatever it does next is near.
  cursor_space_ = space;
  cursor_ = address + kPageSize;
  const PageRange page = take(*left, address, 1);
  if (page.start == page.end) return absl::OkStatus();  // on its way
  answer_.clear();
  GW_RETURN_IF_ERROR(append(space, page, answer_));
  return faults_->write_all(answer_.parts, kSendPatience);
}

absl::Status PageServer::obey(const PageHeader& header) {
  const auto damaged = [&](std::string_view what) {
    return make_error(absl::StatusCode::kDataLoss, "the destination's wish for pages: {}", what);
  };
  if (header.checksum != wire_checksum(header, {})) return damaged("checksum");
  const uint64_t bytes = uint64_t{header.count} * kPageSize;
  if (header.address % kPageSize != 0 || header.address + bytes < header.address)
    return damaged("address");
  switch (static_cast<PageMessage>(header.type)) {
    case PageMessage::kMissing: {
      GW_ASSIGN_OR_RETURN(Left * left, left_of(header.space));
      if (header.count == 0) return absl::OkStatus();
      const auto next = left->lower_bound(header.address);
      const bool overlaps = (next != left->end() && next->first < header.address + bytes) ||
                            (next != left->begin() && std::prev(next)->second > header.address);
      if (overlaps) return damaged("a page is named twice");
      left->emplace_hint(next, header.address, header.address + bytes);
      figures_.left += header.count;
      return absl::OkStatus();
    }
    case PageMessage::kListEnd:
      listed_ = true;
      proven_ = header.count == kTakesProven && faults_->encrypted() && push_->encrypted();
      return absl::OkStatus();
    case PageMessage::kRequest:
      return answer(header.space, header.address);
    case PageMessage::kGone: {
      GW_ASSIGN_OR_RETURN(Left * left, left_of(header.space));
      // By what is left, not by what is said: that may be all of the address space.
      const uint64_t end = header.address + bytes;
      take(*left, header.address, header.count);
      for (auto run = left->lower_bound(header.address); run != left->end() && run->first < end;
           run = left->lower_bound(header.address))
        take(*left, run->first, (end - run->first) / kPageSize);
      return absl::OkStatus();
    }
    case PageMessage::kComplete:
      complete_ = true;
      return absl::OkStatus();
    default:
      return damaged("type");
  }
}

absl::Status PageServer::take_in() {
  const iovec room{in_.get() + in_bytes_, kReadBytes - in_bytes_};
  const ssize_t n = faults_->readv({&room, 1});
  if (n == 0) return lost("recv(faults)", 0);
  if (n < 0)
    return errno == EAGAIN || errno == EINTR ? absl::OkStatus() : lost("recv(faults)", errno);
  in_bytes_ += static_cast<size_t>(n);
  size_t at = 0;
  for (; at + sizeof(PageHeader) <= in_bytes_ && !complete_; at += sizeof(PageHeader)) {
    PageHeader header;
    std::memcpy(&header, in_.get() + at, sizeof header);
    GW_RETURN_IF_ERROR(obey(header));
  }
  std::memmove(in_.get(), in_.get() + at, in_bytes_ - at);
  in_bytes_ -= at;
  return absl::OkStatus();
}

// From the cursor on, and round. False: nothing is left.
bool PageServer::fill_push() {
  if (spaces_.empty()) return false;
  auto space = spaces_.lower_bound(cursor_space_);
  for (size_t turns = 0; turns <= spaces_.size(); ++turns) {
    if (space == spaces_.end()) space = spaces_.begin();
    const Left& left = space->second;
    if (space->first != cursor_space_) cursor_ = 0;
    auto run = left.lower_bound(cursor_);
    if (run != left.begin() && std::prev(run)->second > cursor_) run = std::prev(run);
    if (run != left.end()) {
      cursor_space_ = space->first;
      cursor_ = std::max(cursor_, run->first);
      return true;
    }
    ++space;
    cursor_ = 0;
    cursor_space_ = space == spaces_.end() ? spaces_.begin()->first : space->first;
  }
  return false;
}

// False: the connection takes no more for now.
absl::StatusOr<bool> PageServer::push_some() {
  if (push_->unsent() && push_->flush() != 0)
    return errno == EAGAIN ? absl::StatusOr<bool>(false) : lost("send(pages)", errno);
  if (pushed_.rest().empty()) {
    pushed_.clear();
    // Small runs go together.
    for (uint64_t room = kPushPages; room > 0 && fill_push();) {
      const uint64_t most = std::min<uint64_t>(room, kMaxWirePages);
      const PageRange run = take(spaces_.at(cursor_space_), cursor_, most);
      cursor_ = run.end;
      GW_RETURN_IF_ERROR(append(cursor_space_, run, pushed_));
      room -= run.pages();
    }
    // None of them can be had.
    if (pushed_.parts.empty()) return true;
    pacer_.charge(pushed_.bytes);
  }
  const ssize_t n = push_->writev(pushed_.rest());
  if (n < 0 && errno != EAGAIN && errno != EINTR) return lost("send(pages)", errno);
  if (n > 0) pushed_.advance(static_cast<size_t>(n));
  return n > 0;
}

uint64_t PageServer::wire_bytes() const { return faults_->wire_sent() + push_->wire_sent(); }

absl::Status PageServer::serve(tls::Channel& faults, tls::Channel& push,
                               absl::FunctionRef<void(const PageServerFigures&)> told) {
  faults_ = &faults;
  push_ = &push;
  push.write_ahead(kPushPages * (kPageSize + sizeof(PageHeader)));
  absl::Status served = run(told);
  // A destination that has all says so and closes both; which of them shows it first is chance.
  const Deadline deadline = Deadline::in(kLastWords);
  while (!served.ok() && !complete_ && !deadline.passed()) {
    pollfd one{faults.fd(), POLLIN, 0};
    if (::poll(&one, 1, deadline.remaining_ms()) <= 0 || !take_in().ok()) break;
  }
  if (!complete_) return served;
  figures_.bytes = wire_bytes() - wire_before_;
  told(figures_);
  return absl::OkStatus();
}

absl::Status PageServer::run(absl::FunctionRef<void(const PageServerFigures&)> told) {
  wire_before_ = wire_bytes();
  listed_ = complete_ = proven_ = false;
  in_bytes_ = 0;
  pushed_.clear();
  figures_ = {};
  spaces_.clear();
  int64_t told_at = 0;
  int64_t alive_at = monotonic_ns();
  for (;;) {
    const int64_t now = monotonic_ns();
    if (now - told_at > kTellEveryNs) {
      told_at = now;
      figures_.bytes = wire_bytes() - wire_before_;
      told(figures_);
    }
    if (now - alive_at > kAliveEveryNs) {
      alive_at = now;
      const PageHeader alive = page_header(PageMessage::kAlive, 0, 0, 0);
      const iovec all{const_cast<PageHeader*>(&alive), sizeof alive};
      GW_RETURN_IF_ERROR(faults_->write_all({&all, 1}, kSendPatience));
    }
    // What is waited for goes before each piece of the rest.
    GW_RETURN_IF_ERROR(take_in());
    if (complete_) return absl::OkStatus();
    const bool to_push =
        push_->unsent() || !pushed_.rest().empty() || (listed_ && figures_.left > 0);
    const int64_t wait_ns = to_push ? pacer_.wait_ns() : 0;
    bool full = false;
    if (to_push && wait_ns == 0) {
      GW_ASSIGN_OR_RETURN(const bool taken, push_some());
      if (taken) continue;
      full = true;
    }
    std::array<pollfd, 2> both{
        pollfd{faults_->fd(), POLLIN, 0},
        pollfd{push_->fd(), static_cast<short>(full ? POLLIN | POLLOUT : POLLIN), 0}};
    const int64_t timeout = wait_ns > 0 ? wait_ns / 1'000'000 + 1 : kIdleMs;
    const int ready =
        ::poll(both.data(), both.size(), static_cast<int>(std::min<int64_t>(timeout, kIdleMs)));
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll(pages)");
    // Nothing is ever said there.
    if ((both[1].revents & ~POLLOUT) != 0) return lost("pages", 0);
  }
}

}  // namespace godwit::pages
