// `migrate --all NODE`.
#ifndef GODWIT_CLI_EVACUATE_H_
#define GODWIT_CLI_EVACUATE_H_

#include <cstdint>
#include <string>

#include "api/godwit.pb.h"
#include "cli/command.h"

namespace godwit::cli {

struct Evacuation {
  std::string from;
  std::string to;               // "": each to the node that has least
  uint32_t parallel = 1;        // moves at a time
  api::MigrateRequest request;  // but for name and node
  bool json = false;
};

// Prints each result. The exit code is that of the first that did not move; those that Ctrl-C kept
// from beginning count as that.
int evacuate(const Context& context, const Evacuation& asked);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_EVACUATE_H_
