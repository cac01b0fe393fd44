// From the source's memory into the stream. One thread reads pages, and compresses them where that
// pays, while another hashes and writes them; a few buffers of 2 MiB go round between them. An
// aligned block of 2 MiB that is sent whole is in one frame, so that the other side can make a huge
// page for it.
#ifndef GODWIT_PAGES_SENDER_H_
#define GODWIT_PAGES_SENDER_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "pages/compression.h"
#include "pages/pacer.h"
#include "pages/page_reader.h"
#include "pages/page_set.h"
#include "stream/stream.h"

namespace godwit::pages {

// What the owner of a migration sets and reads while pages flow, from any thread. One for all
// senders of a migration: the rate is shared.
class SendControl {
 public:
  void set_bytes_per_second(uint64_t rate);  // 0: no limit
  void share(std::unique_ptr<LinkShare> share);
  // In the freeze nothing is limited.
  void lift_limits(bool lifted);
  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

  // Waits until `bytes` may go, as they are on the wire. kCancelled when cancel() was called.
  absl::Status admit(uint64_t bytes);

  PageCompression& compression() { return compression_; }
  const PageCompression& compression() const { return compression_; }

  std::atomic<uint64_t> pages_sent{0};     // with contents
  std::atomic<uint64_t> zero_pages{0};     // sent as dropped
  std::atomic<uint64_t> pages_skipped{0};  // were not there any more

 private:
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  Pacer pacer_;
  PageCompression compression_;
};

enum class ZeroPages {
  kDrop,   // anonymous memory: a zero page is sent as dropped, but for a few in a whole block
  kCarry,  // private file mappings: dropped would mean the file's content
};

// Not thread-safe. The writer is used only inside send().
class PageSender {
 public:
  PageSender(HostPid pid, stream::Writer& writer, SendControl& control);
  ~PageSender();
  PageSender(const PageSender&) = delete;
  PageSender& operator=(const PageSender&) = delete;

  // Sends `pages` as Pages and PagesDropped frames of `space`, within an open epoch; back when all
  // of it was handed to the writer (not flushed). Pages that cannot be read are not errors: they
  // went away since the scan (the next maps or the next scan will say so) and are added to
  // `unreadable`. kCancelled between batches. kNotFound (ESRCH): the source is gone.
  absl::Status send(uint64_t space, const PageSet& pages, ZeroPages zero, PageSet& unreadable);

 private:
  // At most kBatchPages pages and IOV_MAX ranges.
  using Wanted = std::vector<PageRange>;
  struct Batch {
    std::byte* bytes = nullptr;
    std::vector<PageRange> got;
    PageSet unreadable;
    absl::Status status;
    // As they go out.
    std::vector<stream::PageRun> runs;
    std::vector<iovec> data;
    PageSet zeros;
    PageCompression::Packed packed;
    BatchFigures figures;
  };
  static constexpr size_t kBatches = PageCompression::kSlots;
  static constexpr size_t kBatchPages = PageCompression::kSlotBytes / kPageSize;

  static std::vector<Wanted> cut(const PageSet& pages);
  void read(const Wanted& wanted, size_t slot, ZeroPages zero, PageCompression::Pipeline pipeline);
  void find_zeros(const Batch& batch, ZeroPages zero);
  void arrange(Batch& batch);
  void compress(Batch& batch, size_t slot, PageCompression::Pipeline pipeline);
  absl::Status write(uint64_t space, Batch& batch, int64_t previous_ns, PageSet& unreadable);
  absl::Status send_pipelined(uint64_t space, std::span<const Wanted> work, ZeroPages zero,
                              PageSet& unreadable);
  void read_loop();

  stream::Writer& writer_;
  SendControl& control_;
  PageReader reader_;
  std::unique_ptr<std::byte[]> memory_;
  Batch batches_[kBatches];
  std::vector<bool> is_zero_;  // of the pages of the batch that is read

  // The reading thread fills batch n of work_ into batches_[n % kBatches] while n < written_ +
  // kBatches, and then sets read_ to n + 1.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::span<const Wanted> work_;
  ZeroPages zero_ = ZeroPages::kDrop;
  size_t read_ = 0;
  size_t written_ = 0;
  bool reading_ = false;
  bool abandoned_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_SENDER_H_
