// One binary for all parts. What a capsule or a move waits for is told apart before anything else.
#include <string>
#include <string_view>
#include <vector>

#include "capsule/shim.h"
#include "cli/cli.h"
#include "node/mover.h"

int main(int argc, char** argv) {
  const std::string_view part = argc > 1 ? argv[1] : "";
  if (part == "shim")
    return godwit::capsule::shim_main(std::vector<std::string>(argv + 2, argv + argc));
  if (part == "mover") return godwit::node::mover_main(argc, argv);
  return godwit::cli::cli_main(argc, argv);
}
