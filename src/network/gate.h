// The gate of a capsule's port: two TCX programs on the node's end of its veth, and a page of words
// that they read. A flip is a store into that page.
//
//            bridge gw0
//                | tx                    ^ rx
//        [egress: towards]        [ingress: from]         node's end "gwp…"
//                |                       |
//   - - - - - - -|- - - - - - - - - - - -|- - - - - - - - veth
//                v                       |
//                     capsule's eth0
//
// Programs, links and page are pinned in a bpffs, so that the gate stays as it is when its maker
// dies, and any process of the node can go on with it.
#ifndef GODWIT_NETWORK_GATE_H_
#define GODWIT_NETWORK_GATE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace godwit::network {

enum class GateMode : uint32_t {
  kDrop = 0,  // what a new gate does, in both directions
  kPass = 1,
  kHold = 2,    // towards the capsule only: into the hold
  kReplay = 3,  // towards only: as kHold while a held frame has not been replayed, else as kPass
};

struct GateCounters {
  uint64_t held = 0;  // frames (before segmentation) sent into the hold
  uint64_t dropped_towards = 0;
  uint64_t dropped_from = 0;
};

class Gate {
 public:
  // Closed in both directions. `name` is the port's; pins are `pin_dir`/<name>-*, and `pin_dir`
  // becomes a bpffs if it is none. Takes 14-58 ms (the kernel waits for RCU).
  static absl::StatusOr<Gate> create(const std::string& pin_dir, const std::string& name,
                                     int ifindex);
  // The gate that another process made; checks that it still sits on `ifindex`.
  static absl::StatusOr<Gate> open(const std::string& pin_dir, const std::string& name,
                                   int ifindex);
  // Takes the pins away (the gate lives on while a process has it open), and the bpffs with the
  // last of them. OK when there are none.
  static absl::Status unpin(const std::string& pin_dir, const std::string& name);

  Gate(Gate&& other) noexcept { *this = std::move(other); }
  Gate& operator=(Gate&& other) noexcept;
  ~Gate();

  void set_towards(GateMode mode);
  void set_from(GateMode mode);
  GateMode towards() const;
  GateMode from() const;
  // Where held frames go. 0: nowhere, they are dropped.
  void set_hold_ifindex(int ifindex);
  GateCounters counters() const;
  // In kReplay: all of the first `held` frames are in the capsule.
  void set_replayed(uint64_t held);

 private:
  struct Words;
  Gate() = default;
  absl::Status map_words();
  UniqueFd map_;
  UniqueFd towards_link_;
  UniqueFd from_link_;
  Words* words_ = nullptr;
};

}  // namespace godwit::network

#endif  // GODWIT_NETWORK_GATE_H_
