// What the commands share. A command is one file with one function here, which adds its
// subcommand to the parser; its callback does the work and leaves the exit code in the context.
#ifndef GODWIT_CLI_COMMAND_H_
#define GODWIT_CLI_COMMAND_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "api/godwit.pb.h"

namespace godwit::cli {

// Of `run` and `exec` the exit code is the program's, so that errors of ours need their own.
constexpr int kOwnError = 125;
constexpr int kError = 1;
constexpr int kUsage = 2;
constexpr int kRefused = 3;     // precheck: nothing was touched
constexpr int kRolledBack = 4;  // the service runs on at the source

struct Context {
  std::string socket;             // --socket; "" finds one
  std::vector<std::string> tail;  // what follows "--", whole
  int exit_code = 0;
};

// Groups of --help.
constexpr char kServices[] = "Services";
constexpr char kMoving[] = "Moving";
constexpr char kCluster[] = "Nodes";

void add_run(CLI::App& app, Context& context);
void add_ps(CLI::App& app, Context& context);
void add_inspect(CLI::App& app, Context& context);
void add_logs(CLI::App& app, Context& context);
void add_exec(CLI::App& app, Context& context);
void add_attach(CLI::App& app, Context& context);
void add_signal(CLI::App& app, Context& context);
void add_stop(CLI::App& app, Context& context);
void add_wait(CLI::App& app, Context& context);
void add_rm(CLI::App& app, Context& context);
void add_migrate(CLI::App& app, Context& context);
void add_check(CLI::App& app, Context& context);
void add_rejuvenate(CLI::App& app, Context& context);
void add_clone(CLI::App& app, Context& context);
void add_checkpoint(CLI::App& app, Context& context);
void add_restore(CLI::App& app, Context& context);
void add_image(CLI::App& app, Context& context);
void add_nodes(CLI::App& app, Context& context);
void add_node(CLI::App& app, Context& context);
void add_certificates(CLI::App& app, Context& context);
void add_vm(CLI::App& app, Context& context);
void add_lab(CLI::App& app, Context& context);

// "godwit: <message>" to stderr; returns `code`.
int complain(const absl::Status& status, int code = kError);

// The same for a program that did not start: a shell's 126 or 127, else kOwnError.
int complain(const api::SessionFailure& failure);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_COMMAND_H_
