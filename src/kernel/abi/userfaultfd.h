// What <linux/userfaultfd.h> got after Linux 6.1: WP_UNPOPULATED (6.4), POISON (6.6), WP_ASYNC
// (6.7), MOVE (6.8). The rest is in the system's header, which this includes.
#ifndef GODWIT_KERNEL_ABI_USERFAULTFD_H_
#define GODWIT_KERNEL_ABI_USERFAULTFD_H_

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace godwit::kernel::abi {

// Write-protect also keeps its mark where no page is yet (anonymous memory).
inline constexpr uint64_t kUffdFeatureWpUnpopulated = 1 << 13;
inline constexpr uint64_t kUffdFeaturePoison = 1 << 14;
// A write to a protected page is let through by the kernel itself and the mark dropped; no event.
inline constexpr uint64_t kUffdFeatureWpAsync = 1 << 15;
inline constexpr uint64_t kUffdFeatureMove = 1 << 16;

// struct uffdio_poison: the next access to these pages gives SIGBUS.
struct UffdioPoison {
  uffdio_range range;
  uint64_t mode;
  int64_t updated;  // out: bytes, or -errno
};
static_assert(sizeof(UffdioPoison) == 32);

// struct uffdio_move: pages change place within one address space, without a copy.
struct UffdioMove {
  uint64_t dst;
  uint64_t src;
  uint64_t len;
  uint64_t mode;
  int64_t move;  // out: bytes, or -errno
};
static_assert(sizeof(UffdioMove) == 40 && offsetof(UffdioMove, move) == 32);

inline constexpr uint64_t kUffdioPoisonModeDontWake = 1 << 0;
inline constexpr uint64_t kUffdioMoveModeDontWake = 1 << 0;
inline constexpr uint64_t kUffdioMoveModeAllowSrcHoles = 1 << 1;

inline constexpr unsigned kUffdioMoveNumber = 0x05;
inline constexpr unsigned kUffdioPoisonNumber = 0x08;
inline constexpr unsigned long kUffdioMove = _IOWR(UFFDIO, kUffdioMoveNumber, UffdioMove);
inline constexpr unsigned long kUffdioPoison = _IOWR(UFFDIO, kUffdioPoisonNumber, UffdioPoison);
static_assert(kUffdioMove == 0xc028aa05 && kUffdioPoison == 0xc020aa08);
static_assert(sizeof(uffdio_api) == 24 && UFFDIO_API == 0xc018aa3f);
static_assert(sizeof(uffd_msg) == 32 && sizeof(uffdio_writeprotect) == 24);

#ifdef UFFD_FEATURE_MOVE
static_assert(kUffdFeatureMove == UFFD_FEATURE_MOVE && kUffdioMove == UFFDIO_MOVE);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
static_assert(kUffdFeatureWpAsync == UFFD_FEATURE_WP_ASYNC);
#endif
#ifdef UFFD_FEATURE_POISON
static_assert(kUffdFeaturePoison == UFFD_FEATURE_POISON && kUffdioPoison == UFFDIO_POISON);
#endif
#ifdef UFFD_FEATURE_WP_UNPOPULATED
static_assert(kUffdFeatureWpUnpopulated == UFFD_FEATURE_WP_UNPOPULATED);
#endif

}  // namespace godwit::kernel::abi

#endif  // GODWIT_KERNEL_ABI_USERFAULTFD_H_
