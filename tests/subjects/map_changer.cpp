#include "map_changer.h"

#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxPages = 16;
// Below the executable, between heap and libraries, and where the kernel likes.
constexpr std::array<uint64_t, 3> kRegions = {0x0100'0000'0000, 0x5900'0000'0000, 0};
// Of the first two no place is used twice, and advice is given only there: of a mapping that is
// made anew just before the freeze, and looks like the one before it, the engine would not see that
// the advice has gone.
constexpr uint64_t kStride = uint64_t{1} << 20;

[[noreturn]] void fail(const char* what, const void* where) {
  std::fprintf(stderr, "map_changer: %s is wrong at %p: %s\n", what, where, std::strerror(errno));
  std::abort();
}

struct Mapping {
  char* at = nullptr;
  uint64_t pages = 0;
  std::array<uint64_t, kMaxPages> tags{};  // what each page holds; 0: nothing
  bool read_only = false;                  // the inner part
  bool advised = false;                    // the inner part
  bool placed = false;                     // by us, where nothing was before
  bool cut = false;                        // was ever in parts, which may not have become one again

  bool has_inner() const { return pages >= 3; }
  char* inner() const { return at + kPage; }
  uint64_t inner_bytes() const { return (pages - 2) * kPage; }
};

class Changer {
 public:
  explicit Changer(uint64_t seed) : random_(seed * 0x9e3779b97f4a7c15 + 1), seed_(seed) {}

  void step() {
    Mapping& one = slots_[next() % slots_.size()];
    if (one.at == nullptr) {
      make(one);
      return;
    }
    check(one);
    switch (next() % 6) {
      case 0:
        must(::munmap(one.at, one.pages * kPage), "munmap", one);
        one = Mapping();
        break;
      case 1:
        write(one, next() % one.pages);
        break;
      case 2:
        drop(one, next() % one.pages);
        break;
      case 3:
        if (!one.has_inner()) break;
        one.cut = true;
        one.read_only = !one.read_only;
        must(::mprotect(one.inner(), one.inner_bytes(),
                        one.read_only ? PROT_READ : PROT_READ | PROT_WRITE),
             "mprotect", one);
        break;
      case 4:
        if (!one.has_inner() || !one.placed) break;
        one.cut = true;
        one.advised = !one.advised;
        must(::madvise(one.inner(), one.inner_bytes(), one.advised ? MADV_DONTDUMP : MADV_DODUMP),
             "madvise", one);
        break;
      case 5:
        move(one);
        break;
    }
  }

 private:
  uint64_t next() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ >> 8;
  }
  static void must(int result, const char* what, const Mapping& one) {
    if (result != 0) fail(what, one.at);
  }

  char* place() {
    const uint64_t region = kRegions[next() % kRegions.size()];
    if (region == 0) return nullptr;  // where the kernel likes
    return reinterpret_cast<char*>(region + (seed_ << 36) + ++places_ * kStride);
  }

  void make(Mapping& one) {
    one.pages = 1 + next() % kMaxPages;
    char* const hint = place();
    void* const got =
        ::mmap(hint, one.pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) fail("mmap", hint);
    one.at = static_cast<char*>(got);
    one.placed = got == hint;
    for (uint64_t page = 0; page < one.pages; ++page)
      if (next() % 4 != 0) write(one, page);
  }

  void write(Mapping& one, uint64_t page) {
    if (one.read_only && page != 0 && page != one.pages - 1) return;
    one.tags[page] = next() | 1;
    auto* const words = reinterpret_cast<uint64_t*>(one.at + page * kPage);
    words[0] = words[511] = one.tags[page];
  }

  void drop(Mapping& one, uint64_t page) {
    must(::madvise(one.at + page * kPage, kPage, MADV_DONTNEED), "madvise", one);
    one.tags[page] = 0;
  }

  // Only what is one mapping for sure: of several the kernel moves those before the first that has
  // a userfaultfd on it, and then fails (mm/mremap.c, Linux 6.17; before, it moves none).
  void move(Mapping& one) {
    if (one.cut || !one.placed) return;
    char* const to = place();
    if (to == nullptr) return;
    const uint64_t bytes = one.pages * kPage;
    void* const got = ::mremap(one.at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (got == MAP_FAILED) fail("mremap", one.at);
    one.at = static_cast<char*>(got);
  }

  static void check(const Mapping& one) {
    for (uint64_t page = 0; page < one.pages; ++page) {
      const auto* const words = reinterpret_cast<const uint64_t*>(one.at + page * kPage);
      if (words[0] != one.tags[page] || words[511] != one.tags[page] || words[100] != 0)
        fail("memory", words);
    }
  }

  uint64_t random_;
  uint64_t seed_;
  uint64_t places_ = 0;
  std::array<Mapping, 64> slots_{};
};

}  // namespace

void change_maps(uint64_t seed) {
  Changer changer(seed);
  const timespec nap{0, 50'000};
  for (;;) {
    for (int i = 0; i < 4; ++i) changer.step();
    ::nanosleep(&nap, nullptr);
  }
}
