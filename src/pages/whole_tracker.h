// For a process that nothing can be watched with: nothing is carried while it runs, and all of it
// when it is frozen.
#ifndef GODWIT_PAGES_WHOLE_TRACKER_H_
#define GODWIT_PAGES_WHOLE_TRACKER_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "pages/pagemap.h"
#include "pages/tracker.h"

namespace godwit::pages {

class WholeTracker final : public DirtyTracker {
 public:
  static absl::StatusOr<std::unique_ptr<WholeTracker>> make(HostPid pid);

  absl::Status start(std::span<const TrackedMapping>) override { return absl::OkStatus(); }
  absl::Status scan(std::span<const TrackedMapping> mappings, ScanMode mode,
                    ScanResult& result) override;
  void forget(const PageSet&) override {}
  absl::Status stop(ScanMode) override { return absl::OkStatus(); }

 private:
  explicit WholeTracker(Pagemap pagemap) : pagemap_(std::move(pagemap)) {}
  Pagemap pagemap_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_WHOLE_TRACKER_H_
