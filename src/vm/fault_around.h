// Pages around those that a guest in post-copy waits for. QEMU at its destination asks for one page
// at a time, and each costs a way to the source and back, for which the guest stands still: so
// whoever carries its requests asks for those beside it as well.
//
// On QEMU's return path (migration/migration.c, since 2.5), big endian: type(2) size(2), and
//   3: start(8) len(4) name_size(1) name     pages of a block of memory
//   4: start(8) len(4)                       of the block that was named last
// The source sends those that it has not sent yet, in their order, before all that nobody asked
// for.
#ifndef GODWIT_VM_FAULT_AROUND_H_
#define GODWIT_VM_FAULT_AROUND_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace godwit::vm {

class FaultAround {
 public:
  // The next bytes from the destination's QEMU, as the source's is to have them: whole messages,
  // the rest with the next call.
  std::string pass(std::string_view bytes);

 private:
  void ask_beside(uint64_t start, uint64_t len, std::string& out);

  bool over_ = false;  // something else than messages follows, as in a recovery
  std::string waiting_;
  std::string block_;
  // Of each block: beyond what was asked for so far it may have ended, and a request that reaches
  // over its end breaks the migration.
  std::map<std::string, uint64_t> known_end_;
  std::map<std::string, uint64_t> last_;  // window that was asked for last, of each block
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_FAULT_AROUND_H_
