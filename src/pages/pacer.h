// When bytes may go that are limited: by the migration's own limit and by its share of the node's.
#ifndef GODWIT_PAGES_PACER_H_
#define GODWIT_PAGES_PACER_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "pages/link_share.h"

namespace godwit::pages {

// One thread at a time.
class Pacer {
 public:
  // 0: no limit of its own. Null: the node has none.
  void set_limit(uint64_t bytes_per_s) { limit_ = bytes_per_s; }
  void set_share(std::unique_ptr<LinkShare> share) { share_ = std::move(share); }
  // Nothing is limited while it is lifted.
  void lift(bool lifted);

  // `bytes` go, as they are on the wire; what is beyond what may go has to be waited for before the
  // next ones.
  void charge(uint64_t bytes);
  // For how long, as things are now; 0: no longer.
  int64_t wait_ns();

 private:
  uint64_t rate() const;  // 0: no limit
  void refill(uint64_t rate);
  uint64_t wants(uint64_t now_rate) const;

  uint64_t limit_ = 0;
  std::unique_ptr<LinkShare> share_;
  bool lifted_ = false;
  double allowance_ = 0;    // bytes; below 0: owed
  int64_t counted_at_ = 0;  // monotonic ns
  bool waited_ = false;     // since the last charge
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PACER_H_
