#include "pages/sender.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <ctime>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/slice.h"

namespace godwit::pages {
namespace {

constexpr int64_t kLongestNap_ns = 10'000'000;
constexpr uint64_t kBlockBytes = uint64_t{2} << 20;  // a huge page
constexpr int64_t kFewZeros = 32;                    // of its 512 pages

absl::Status cancelled_status() {
  return make_error(absl::StatusCode::kCancelled, "sending pages was cancelled");
}

}  // namespace

void SendControl::set_bytes_per_second(uint64_t rate) {
  const std::lock_guard lock(mutex_);
  pacer_.set_limit(rate);
}

void SendControl::share(std::unique_ptr<LinkShare> share) {
  const std::lock_guard lock(mutex_);
  pacer_.set_share(std::move(share));
}

void SendControl::lift_limits(bool lifted) {
  const std::lock_guard lock(mutex_);
  pacer_.lift(lifted);
}

absl::Status SendControl::admit(uint64_t bytes) {
  // Charged once, and what goes beyond the allowance is waited for.
  for (bool charged = false;; charged = true) {
    if (cancelled_) return cancelled_status();
    int64_t nap_ns = 0;
    {
      const std::lock_guard lock(mutex_);
      if (!charged) pacer_.charge(bytes);
      nap_ns = pacer_.wait_ns();
    }
    if (nap_ns == 0) return absl::OkStatus();
    const timespec time{.tv_sec = 0, .tv_nsec = std::min(nap_ns, kLongestNap_ns)};
    ::nanosleep(&time, nullptr);
  }
}

PageSender::PageSender(HostPid pid, stream::Writer& writer, SendControl& control)
    : writer_(writer),
      control_(control),
      reader_(pid),
      // Not zeroed: 4 ms in one go, while clients wait for the CPU.
      memory_(
          std::make_unique_for_overwrite<std::byte[]>((kBatches * kBatchPages + 1) * kPageSize)) {
  void* start = memory_.get();
  size_t room = (kBatches * kBatchPages + 1) * kPageSize;
  auto* bytes = static_cast<std::byte*>(
      std::align(kPageSize, kBatches * kBatchPages * kPageSize, start, room));
  for (size_t i = 0; i < kBatches; ++i) batches_[i].bytes = bytes + i * kBatchPages * kPageSize;
  thread_ = std::thread([this] { read_loop(); });
}

PageSender::~PageSender() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::vector<PageSender::Wanted> PageSender::cut(const PageSet& pages) {
  std::vector<Wanted> work;
  uint64_t room = 0;
  for (PageRange range : pages) {
    while (range.start < range.end) {
      // Up to the next block's border; a whole block is not divided.
      const uint64_t border = (range.start / kBlockBytes + 1) * kBlockBytes;
      const PageRange piece{range.start, std::min(range.end, border)};
      const bool whole = piece.end - piece.start == kBlockBytes;
      if (room == 0 || work.back().size() == IOV_MAX || (whole && room < kBatchPages)) {
        work.emplace_back();
        room = kBatchPages;
      }
      const uint64_t count = std::min(room, piece.pages());
      const PageRange some{piece.start, piece.start + count * kPageSize};
      if (!work.back().empty() && work.back().back().end == some.start)
        work.back().back().end = some.end;
      else
        work.back().push_back(some);
      range.start = some.end;
      room -= count;
    }
  }
  return work;
}

void PageSender::read(const Wanted& wanted, size_t slot, ZeroPages zero,
                      PageCompression::Pipeline pipeline) {
  Batch& batch = batches_[slot];
  batch.got.clear();
  batch.unreadable.clear();
  const int64_t begin = monotonic_ns();
  batch.status =
      reader_.read(wanted, {batch.bytes, kBatchPages * kPageSize}, batch.got, batch.unreadable);
  if (!batch.status.ok()) return;
  find_zeros(batch, zero);
  arrange(batch);
  batch.figures.read_ns = monotonic_ns() - begin;
  compress(batch, slot, pipeline);
}

void PageSender::find_zeros(const Batch& batch, ZeroPages zero) {
  is_zero_.clear();
  const std::byte* bytes = batch.bytes;
  for (const PageRange& range : batch.got) {
    for (uint64_t page = range.start; page < range.end; page += kPageSize, bytes += kPageSize)
      is_zero_.push_back(zero == ZeroPages::kDrop && is_zero_page(bytes));
  }
  // A whole block with a few of them goes as it is: there it can be a huge page, without them not.
  if (batch.got.size() != 1 || is_zero_.size() != kBatchPages ||
      batch.got.front().start % kBlockBytes != 0)
    return;
  if (std::count(is_zero_.begin(), is_zero_.end(), true) <= kFewZeros)
    is_zero_.assign(is_zero_.size(), false);
}

void PageSender::arrange(Batch& batch) {
  batch.runs.clear();
  batch.data.clear();
  batch.zeros.clear();
  batch.figures = {};
  std::byte* bytes = batch.bytes;
  size_t index = 0;
  for (const PageRange& range : batch.got) {
    for (uint64_t page = range.start; page < range.end; page += kPageSize, bytes += kPageSize) {
      if (is_zero_[index++]) {
        batch.zeros.add({page, page + kPageSize});
        continue;
      }
      batch.figures.bytes += kPageSize;
      if (!batch.runs.empty() &&
          batch.runs.back().address + batch.runs.back().count * kPageSize == page)
        ++batch.runs.back().count;
      else
        batch.runs.push_back({page, 1});
      if (!batch.data.empty() &&
          static_cast<std::byte*>(batch.data.back().iov_base) + batch.data.back().iov_len == bytes)
        batch.data.back().iov_len += kPageSize;
      else
        batch.data.push_back({bytes, kPageSize});
    }
  }
}

void PageSender::compress(Batch& batch, size_t slot, PageCompression::Pipeline pipeline) {
  PageCompression& compression = control_.compression();
  batch.packed = {};
  if (batch.data.empty()) return;
  const stream::Codec codec = compression.choose(batch.figures.bytes, pipeline);
  if (codec != stream::Codec::kNone) {
    // Closed up where zero pages were.
    std::byte* to = batch.bytes;
    for (const iovec& part : batch.data) {
      if (part.iov_base != to) std::memmove(to, part.iov_base, part.iov_len);
      to += part.iov_len;
    }
    batch.data.assign(1, {batch.bytes, batch.figures.bytes});
    batch.packed = compression.compress(codec, {batch.bytes, batch.figures.bytes}, slot);
  }
  if (pipeline == PageCompression::Pipeline::kAlone) return;
  compression.look(batch.data);
}

absl::Status PageSender::write(uint64_t space, Batch& batch, int64_t previous_ns,
                               PageSet& unreadable) {
  GW_RETURN_IF_ERROR(batch.status);
  FAULT_POINT("pages.send");
  BatchFigures& figures = batch.figures;
  const PageCompression::Packed& packed = batch.packed;
  figures.codec = packed.codec;
  figures.compress_ns = packed.ns;
  figures.wire_bytes = packed.stored.empty() ? figures.bytes : packed.stored.size();
  const int64_t begin = monotonic_ns();
  GW_RETURN_IF_ERROR(control_.admit(figures.wire_bytes));
  GW_RETURN_IF_ERROR(PageCompression::write(writer_, space, batch.runs, batch.data, packed));
  const int64_t end = monotonic_ns();
  figures.write_ns = end - begin;
  figures.cycle_ns = previous_ns == 0 ? 0 : end - previous_ns;
  GW_RETURN_IF_ERROR(writer_.pages_dropped(space, batch.zeros.runs()));
  unreadable.add(batch.unreadable);
  control_.compression().sent(figures);
  control_.pages_sent += figures.bytes / kPageSize;
  control_.zero_pages += batch.zeros.pages();
  control_.pages_skipped += batch.unreadable.pages();
  return absl::OkStatus();
}

absl::Status PageSender::send(uint64_t space, const PageSet& pages, ZeroPages zero,
                              PageSet& unreadable) {
  const std::vector<Wanted> work = cut(pages);
  // A hand-over to another thread costs as much as reading some tens of pages.
  if (work.size() > 1) return send_pipelined(space, work, zero, unreadable);
  for (const Wanted& wanted : work) {
    read(wanted, 0, zero, PageCompression::Pipeline::kAlone);
    GW_RETURN_IF_ERROR(write(space, batches_[0], 0, unreadable));
  }
  return absl::OkStatus();
}

absl::Status PageSender::send_pipelined(uint64_t space, std::span<const Wanted> work,
                                        ZeroPages zero, PageSet& unreadable) {
  std::unique_lock lock(mutex_);
  work_ = work;
  zero_ = zero;
  read_ = 0;
  written_ = 0;
  abandoned_ = false;
  reading_ = true;
  changed_.notify_all();
  absl::Status status;
  int64_t previous_ns = 0;
  for (size_t n = 0; n < work.size() && status.ok(); ++n) {
    changed_.wait(lock, [&] { return read_ > n; });
    lock.unlock();
    status = write(space, batches_[n % kBatches], previous_ns, unreadable);
    previous_ns = monotonic_ns();
    kernel::let_others_run();
    lock.lock();
    written_ = n + 1;
    changed_.notify_all();
  }
  abandoned_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !reading_; });
  return status;
}

void PageSender::read_loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ending_ || reading_; });
    if (ending_) return;
    for (size_t n = 0; n < work_.size(); ++n) {
      changed_.wait(lock, [&] { return abandoned_ || n < written_ + kBatches; });
      if (abandoned_) break;
      lock.unlock();
      read(work_[n], n % kBatches, zero_, PageCompression::Pipeline::kOne);
      kernel::let_others_run();
      lock.lock();
      read_ = n + 1;
      changed_.notify_all();
    }
    reading_ = false;
    changed_.notify_all();
  }
}

}  // namespace godwit::pages
