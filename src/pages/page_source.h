// Where a page server has its pages from: processes that the freezer holds, or a file.
#ifndef GODWIT_PAGES_PAGE_SOURCE_H_
#define GODWIT_PAGES_PAGE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "pages/page_reader.h"
#include "pages/page_set.h"

namespace godwit::pages {

class PageSource {
 public:
  virtual ~PageSource() = default;
  virtual bool has(uint64_t space) const = 0;
  // Contents of all pages of `range`, whose size `to` has. kDataLoss: one of them cannot be had,
  // which says nothing of others.
  virtual absl::Status read(uint64_t space, PageRange range, std::span<std::byte> to) = 0;
};

class ProcessPages final : public PageSource {
 public:
  struct Space {
    uint64_t id;
    HostPid pid;
  };
  explicit ProcessPages(const std::vector<Space>& spaces) {
    for (const Space& space : spaces) readers_.emplace(space.id, PageReader(space.pid));
  }
  bool has(uint64_t space) const override { return readers_.contains(space); }
  absl::Status read(uint64_t space, PageRange range, std::span<std::byte> to) override;

 private:
  std::map<uint64_t, PageReader> readers_;
  std::vector<PageRange> got_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_PAGE_SOURCE_H_
