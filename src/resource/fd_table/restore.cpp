#include "resource/fd_table/fd_table.h"

namespace godwit::resource {

FdTableChange compare_fd_tables(const FdTableState& now, const FdTableState& wanted,
                                absl::FunctionRef<bool(uint64_t)> remade) {
  FdTableChange change;
  int n = 0;
  for (const auto& want : wanted.entries()) {
    while (n < now.entries_size() && now.entries(n).fd() < want.fd())
      change.close.push_back(now.entries(n++).fd());
    if (n < now.entries_size() && now.entries(n).fd() == want.fd()) {
      const auto& have = now.entries(n++);
      if (have.description() == want.description() && !remade(want.description())) {
        if (have.close_on_exec() != want.close_on_exec()) change.set_flags.push_back(want);
        continue;
      }
      change.close.push_back(have.fd());
    }
    change.place.push_back(want);
  }
  while (n < now.entries_size()) change.close.push_back(now.entries(n++).fd());
  return change;
}

}  // namespace godwit::resource
