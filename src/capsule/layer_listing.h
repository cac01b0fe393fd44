// What is in a writable layer, without content.
#ifndef GODWIT_CAPSULE_LAYER_LISTING_H_
#define GODWIT_CAPSULE_LAYER_LISTING_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "capsule/file_layer.pb.h"
#include "capsule/paths.h"

namespace godwit::capsule {

// One name. Hard links are several entries with one inode.
struct LayerEntry {
  LayerNode node;
  uint64_t inode = 0;
  uint64_t links = 1;
  int64_t ctime_ns = 0;
};

// Path to entry, sorted: a folder comes before what is in it. The root is "".
using LayerTreeListing = std::map<std::string, LayerEntry>;

struct LayerListing {
  LayerTreeListing upper;
  LayerTreeListing shm;
  // CLOCK_REALTIME_COARSE before the first name was read.
  int64_t taken_ns = 0;
};

// What an entry of `before` (may be null) that surely has not changed holds is not read again.
absl::StatusOr<LayerListing> list_layer(const ServicePaths& paths, const LayerListing* before);

// False if the inode may have changed since `before` was listed at `listed_ns`: any change of
// content or metadata sets ctime, but kernels before 6.13 only to the last timer tick, so that
// what was fresh then is not trusted. Listing first writes back what is mapped shared (see
// LayerSource), so that later stores into a mapping fault and set ctime as well.
bool surely_unchanged(const LayerEntry& before, const LayerEntry& now, int64_t listed_ns);

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_LAYER_LISTING_H_
