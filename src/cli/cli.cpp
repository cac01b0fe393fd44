#include "cli/cli.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"

namespace godwit::cli {

int cli_main(int argc, char** argv) {
  // gRPC would print its own view of errors beside ours.
  ::setenv("GRPC_VERBOSITY", "NONE", 0);
  Context context;
  // What follows "--" is another program's command line: not ours to parse.
  int own = 1;
  while (own < argc && std::string_view(argv[own]) != "--") ++own;
  for (int i = own + 1; i < argc; ++i) context.tail.emplace_back(argv[i]);

  CLI::App app("Godwit moves running programs between Linux machines while they run.", "godwit");
  app.require_subcommand(1);
  app.get_formatter()->column_width(32);
  app.set_version_flag("--version", GODWIT_VERSION);
  app.add_option("--socket", context.socket,
                 "daemon to ask (default: $GODWIT_SOCKET, else the lab's n1, else "
                 "/run/godwit/node.sock)");
  for (const auto add :
       {add_run,    add_ps,    add_inspect,      add_logs,    add_exec,    add_attach,
        add_signal, add_stop,  add_wait,         add_rm,      add_migrate, add_rejuvenate,
        add_clone,  add_check, add_checkpoint,   add_restore, add_image,   add_vm,
        add_nodes,  add_node,  add_certificates, add_lab})
    add(app, context);
  try {
    app.parse(own, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11's way to report; nothing of ours throws.
    const std::vector<std::string> unknown = app.remaining();
    if (app.get_subcommands().empty() && !unknown.empty()) {
      fmt::print(stderr,
                 "godwit: there is no command \"{}\" (godwit --help lists those there are)\n",
                 unknown.front());
      return kUsage;
    }
    const int code = app.exit(error);
    return code == 0 ? 0 : kUsage;
  }
  return context.exit_code;
}

}  // namespace godwit::cli
