// What the migrations of a node share its bandwidth by: a page of memory that all of its movers
// have mapped. Each says there what it uses; each reckons from that what it may, max-min fair: who
// wants less than an equal share gets what it wants, the others get equal shares of the rest.
// Nobody is waited for or woken, and a mover that dies leaves nothing: what it has not touched for
// a while counts no more.
#ifndef GODWIT_PAGES_LINK_SHARE_H_
#define GODWIT_PAGES_LINK_SHARE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit::pages {

// The rate for one that takes what it gets, beside others that use `demands`, UINT64_MAX for those
// that do so too. In whatever unit `total` is.
uint64_t fair_rate(uint64_t total, std::span<uint64_t> demands);

class LinkShare {
 public:
  // For a daemon. A file that is there stays, with who sends now.
  static absl::Status create(const std::string& path, uint64_t bytes_per_s);
  // kResourceExhausted: more migrations than there is room for, 128.
  static absl::StatusOr<std::unique_ptr<LinkShare>> join(const std::string& path);
  ~LinkShare();
  LinkShare(const LinkShare&) = delete;
  LinkShare& operator=(const LinkShare&) = delete;

  // Bytes a second for this one now, at least 1. One thread at a time.
  uint64_t rate() const;
  // `bytes` go. `wants`: what it is held back from, bytes a second: its own limit, or UINT64_MAX if
  // it takes what it gets; 0: it is not held back.
  void use(uint64_t bytes, uint64_t wants);
  // Sends nothing that is limited for now: the others need not count with it.
  void rest();

 private:
  struct Memory;
  struct Slot;
  LinkShare(Memory* memory, Slot* own) : memory_(memory), own_(own) {}

  Memory* memory_;
  Slot* own_;
  int64_t window_begin_ns_ = 0;
  uint64_t window_bytes_ = 0;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_LINK_SHARE_H_
