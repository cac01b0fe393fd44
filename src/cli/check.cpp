#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <memory>

#include "base/status.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/text.h"
#include "node/process_check.h"

namespace godwit::cli {
namespace {

// By the daemon of its node: a dry run that names no destination.
absl::StatusOr<node::ProcessCheck> check_service(const Context& context, const std::string& name) {
  GW_ASSIGN_OR_RETURN(Client client, Client::connect(context.socket));
  api::MigrateRequest request;
  request.set_name(name);
  request.set_dry_run(true);
  grpc::ClientContext call;
  const auto stream = client.stub().Migrate(&call, request);
  node::ProcessCheck check;
  api::MigrateEvent event;
  while (stream->Read(&event))
    if (event.has_result()) check.result = event.result();
  GW_RETURN_IF_ERROR(api::from_grpc(stream->Finish()));
  return check;
}

void print(const node::ProcessCheck& check) {
  const api::MigrateResult& result = check.result;
  const api::MigrationStatistics& s = result.statistics();
  fmt::print("{} {} move\n", result.name(), result.outcome() == "movable" ? "can" : "cannot");
  fmt::print("  holds {}, {}, {} of memory, {}, {}\n",
             format_amount(s.processes(), "process", "processes"),
             format_amount(s.threads(), "thread", "threads"), format_bytes(s.memory_bytes()),
             format_amount(s.descriptors(), "descriptor", "descriptors"),
             format_amount(s.connections(), "connection", "connections"));
  std::string kinds;
  for (const auto& [kind, count] : check.descriptions)
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, kind);
  if (!kinds.empty()) fmt::print("  open files: {}\n", kinds);
  for (const api::Refusal& each : result.refusals())
    fmt::print("  {}: {}: {}\n    {}\n", each.code(), each.object(), each.reason(), each.way_out());
}

int check(const Context& context, const std::string& what, bool as_json) {
  const bool is_pid = !what.empty() && std::all_of(what.begin(), what.end(), [](unsigned char c) {
    return std::isdigit(c) != 0;
  });
  int32_t pid = 0;
  if (is_pid &&
      (std::from_chars(what.data(), what.data() + what.size(), pid).ec != std::errc() || pid <= 0))
    return complain(absl::InvalidArgumentError(fmt::format("{} is no process id", what)), kUsage);
  const auto checked = is_pid ? node::check_process(HostPid{pid}) : check_service(context, what);
  if (!checked.ok()) return complain(checked.status());
  if (as_json) {
    Json json;
    move_json(json, checked->result);
    fmt::print("{}", json.str());
  } else {
    print(*checked);
  }
  return checked->result.outcome() == "movable" ? 0 : kRefused;
}

}  // namespace

void add_check(CLI::App& app, Context& context) {
  struct CheckOptions {
    std::string what;
    bool json = false;
  };
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command =
      app.add_subcommand("check", "say what a program holds, and what of it could not move")
          ->group(kMoving);
  command
      ->add_option("WHAT", options->what,
                   "a service, or the pid of any process of this machine: it and all below it")
      ->required();
  command->add_flag("--json", options->json, "the result as JSON, as of migrate --dry-run");
  command->footer(
      "The program runs on and nothing is changed. A process that is no service yet is looked at\n"
      "as if it had been started as one; its standard streams do not count, a service's are\n"
      "connected by Godwit. As root.\n\n"
      "Exit codes: 0 it can move; 3 it cannot, every reason is printed; 1 another error.");
  command->callback(
      [&context, options] { context.exit_code = check(context, options->what, options->json); });
}

}  // namespace godwit::cli
