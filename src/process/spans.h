// Named spans of time, for `migrate --verbose` and the benchmark.
#ifndef GODWIT_PROCESS_SPANS_H_
#define GODWIT_PROCESS_SPANS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace godwit::process {

class Spans {
 public:
  struct Span {
    std::string name;
    int64_t ns;
  };
  void restart() {
    list_.clear();
    last_ns_ = monotonic_ns();
  }
  // What has passed since the last mark (or restart) is `name`.
  void mark(std::string_view name) {
    const int64_t now = monotonic_ns();
    list_.push_back({std::string(name), now - last_ns_});
    last_ns_ = now;
  }
  const std::vector<Span>& list() const { return list_; }

 private:
  std::vector<Span> list_;
  int64_t last_ns_ = monotonic_ns();
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_SPANS_H_
