// A source and a husk (two puppets with the same mappings in a window of addresses), and all that
// lies between: tracker, sender, stream over a socket, applier.
#ifndef GODWIT_PAGES_RIG_FOR_TEST_H_
#define GODWIT_PAGES_RIG_FOR_TEST_H_

#include <fcntl.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernel/proc/maps.h"
#include "pages/applier.h"
#include "pages/puppet_for_test.h"
#include "pages/sender.h"
#include "pages/uffd_tracker.h"
#include "stream/stream.h"

namespace godwit::pages {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;

class Rig {
 public:
  static constexpr uint64_t kBase = 0x2000'0000'0000;
  static constexpr uint64_t kEnd = 0x2100'0000'0000;

  explicit Rig(UffdTrackerOptions options = {}) {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    near_.reset(fds[0]);
    far_.reset(fds[1]);
    auto made = UffdTracker::make(source.make_uffd(), source.pid(), options);
    EXPECT_TRUE(made.ok()) << made.status();
    tracker = *std::move(made);
    sink_ = stream::fd_sink(near_.get());
    writer_ = std::make_unique<stream::Writer>(*sink_);
    sender_ = std::make_unique<PageSender>(source.pid(), *writer_, control);
    applier = std::make_unique<PageApplier>(husk.pid());
    receiver_ = std::thread([this] { receive(); });
    EXPECT_TRUE(writer_->preamble({}).ok());
  }
  ~Rig() {
    near_.reset();
    receiver_.join();
  }

  // Anonymous mappings of the husk are filled by UFFDIO_COPY from here on.
  void use_uffd_in_husk() {
    EXPECT_TRUE(applier->use_uffd(husk.make_uffd()).ok());
    husk_uffd_ = true;
  }

  // The same in both.
  void map(uint64_t address, uint64_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = 0) {
    EXPECT_EQ(source.map(address, bytes, prot, flags), address);
    EXPECT_EQ(husk.map(address, bytes, prot, flags), address);
    applier->forget({address, address + bytes});
    if (husk_uffd_) {
      EXPECT_TRUE(applier->fill_by_uffd({address, address + bytes}).ok());
    }
  }
  void unmap(uint64_t address, uint64_t bytes) {
    EXPECT_EQ(source.call(SYS_munmap, address, bytes), 0);
    EXPECT_EQ(husk.call(SYS_munmap, address, bytes), 0);
    applier->forget({address, address + bytes});
  }
  void protect(uint64_t address, uint64_t bytes, int prot) {
    EXPECT_EQ(source.call(SYS_mprotect, address, bytes, static_cast<uint64_t>(prot)), 0);
    EXPECT_EQ(husk.call(SYS_mprotect, address, bytes, static_cast<uint64_t>(prot)), 0);
  }

  std::vector<TrackedMapping> mappings() const {
    auto maps = kernel::read_maps(source.pid());
    EXPECT_TRUE(maps.ok()) << maps.status();
    std::vector<kernel::Mapping> window;
    for (const kernel::Mapping& mapping : *maps) {
      if (mapping.start >= kBase && mapping.end <= kEnd) window.push_back(mapping);
    }
    return private_mappings(window);
  }

  ScanResult scan(ScanMode mode = ScanMode::kRunning) {
    ScanResult result;
    const absl::Status status = tracker->scan(mappings(), mode, result);
    EXPECT_TRUE(status.ok()) << status;
    return result;
  }
  void send(const ScanResult& result) {
    EXPECT_TRUE(writer_->begin_epoch(false).ok());
    PageSet unreadable;
    absl::Status status = sender_->send(1, result.dirty, ZeroPages::kDrop, unreadable);
    EXPECT_TRUE(status.ok()) << status;
    status = sender_->send(1, result.dirty_file, ZeroPages::kCarry, unreadable);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(writer_->pages_dropped(1, result.dropped.runs()).ok());
    EXPECT_TRUE(writer_->end_epoch().ok());
    const uint64_t want = writer_->epoch();
    while (epochs_.load() < want && !failed_) epochs_.wait(epochs_.load());
  }
  ScanResult round(ScanMode mode = ScanMode::kRunning) {
    ScanResult result = scan(mode);
    send(result);
    return result;
  }
  // What a lead does by a batch in the husk.
  void run_drops() {
    for (const PageRange& range : applier->to_drop()) {
      EXPECT_EQ(husk.call(SYS_madvise, range.start, range.end - range.start, MADV_DONTNEED), 0);
    }
    applier->dropped();
  }

  // All of both windows, compared through /proc/PID/mem: first address that differs, 0 if none.
  uint64_t first_difference() {
    run_drops();
    applier->finish();
    husk_uffd_ = false;
    UniqueFd a(::open(("/proc/" + std::to_string(source.pid().value) + "/mem").c_str(), O_RDONLY));
    UniqueFd b(::open(("/proc/" + std::to_string(husk.pid().value) + "/mem").c_str(), O_RDONLY));
    std::string page_a(kPageSize, '\0');
    std::string page_b(kPageSize, '\0');
    for (const TrackedMapping& tracked : mappings()) {
      for (uint64_t at = tracked.mapping.start; at < tracked.mapping.end; at += kPageSize) {
        const auto offset = static_cast<off_t>(at);
        const ssize_t n = ::pread(a.get(), page_a.data(), kPageSize, offset);
        const ssize_t m = ::pread(b.get(), page_b.data(), kPageSize, offset);
        if (n != m || (n > 0 && page_a != page_b)) return at;
      }
    }
    return 0;
  }

  Puppet source;
  Puppet husk;
  std::unique_ptr<UffdTracker> tracker;
  SendControl control;
  std::unique_ptr<PageApplier> applier;

 private:
  void receive() {
    const auto feed = stream::fd_feed(far_.get());
    stream::Reader reader(*feed);
    while (true) {
      auto frame = reader.next();
      if (!frame.ok()) break;
      if (const auto* pages = std::get_if<stream::Pages>(&*frame)) {
        const absl::Status status = applier->apply(*pages);
        EXPECT_TRUE(status.ok()) << status;
      }
      if (const auto* dropped = std::get_if<stream::PagesDropped>(&*frame))
        applier->drop(dropped->runs);
      if (std::holds_alternative<stream::EpochEnd>(*frame)) {
        ++epochs_;
        epochs_.notify_all();
      }
    }
    failed_ = true;
    ++epochs_;
    epochs_.notify_all();
  }

  UniqueFd near_;
  UniqueFd far_;
  std::unique_ptr<stream::Sink> sink_;
  std::unique_ptr<stream::Writer> writer_;
  std::unique_ptr<PageSender> sender_;
  std::thread receiver_;
  bool husk_uffd_ = false;
  std::atomic<uint64_t> epochs_{0};
  std::atomic<bool> failed_{false};
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_RIG_FOR_TEST_H_
