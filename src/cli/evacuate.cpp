// `migrate --all NODE`: everything that runs on a node to others, in good order.
#include "cli/evacuate.h"

#include <fmt/core.h>
#include <grpcpp/client_context.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

struct Step {
  api::Service what;
  std::string to;
  api::MigrateResult result;
};

// To the node that was named, or each to the one that has least then.
absl::StatusOr<std::vector<Step>> plan(api::Godwit::Stub& stub, const Evacuation& asked) {
  grpc::ClientContext list_call, nodes_call;
  api::ListReply all;
  GW_RETURN_IF_ERROR(api::from_grpc(stub.List(&list_call, api::ListRequest(), &all)));
  api::NodesReply nodes;
  GW_RETURN_IF_ERROR(api::from_grpc(stub.Nodes(&nodes_call, api::Empty(), &nodes)));
  std::map<std::string, uint32_t> load;
  bool known = false;
  for (const api::Node& each : nodes.nodes()) {
    known |= each.name() == asked.from;
    if (each.state() == "ready" && each.name() != asked.from &&
        (asked.to.empty() || each.name() == asked.to))
      load[each.name()] = each.services();
  }
  if (!known)
    return make_error(absl::StatusCode::kNotFound,
                      "no node \"{}\" (godwit nodes lists those there are)", asked.from);
  if (load.empty())
    return make_error(absl::StatusCode::kFailedPrecondition, "{} is not there to take anything",
                      asked.to.empty() ? "no other node" : asked.to);
  std::vector<Step> steps;
  for (const api::Service& each : all.services())
    if (each.node() == asked.from) steps.push_back({each, "", {}});
  // What takes long first, so that the rest runs beside it.
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
    return a.what.vm().memory_bytes() > b.what.vm().memory_bytes();
  });
  for (Step& each : steps) {
    const auto least = std::min_element(
        load.begin(), load.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    each.to = least->first;
    ++least->second;
  }
  return steps;
}

class Run {
 public:
  Run(api::Godwit::Stub& stub, const Evacuation& asked, std::vector<Step>& steps)
      : stub_(stub), asked_(asked), steps_(steps) {}

  void all() {
    std::vector<std::thread> workers;
    const size_t count = std::min<size_t>(std::max(1u, asked_.parallel), steps_.size());
    for (size_t i = 0; i < count; ++i)
      workers.emplace_back([this] {
        for (;;) {
          const size_t mine = next_++;
          if (mine >= steps_.size() || cancelled_) return;
          move(steps_[mine]);
        }
      });
    for (std::thread& each : workers) each.join();
  }

  // No further ones begin, and those under way go back if they can.
  void cancel() {
    cancelled_ = true;
    std::set<std::string> names;
    {
      std::lock_guard lock(mutex_);
      names = under_way_;
    }
    for (const std::string& each : names) {
      grpc::ClientContext call;
      api::InspectRequest request;
      request.set_name(each);
      api::Empty reply;
      stub_.CancelMigration(&call, request, &reply);
    }
  }

 private:
  void move(Step& step) {
    api::MigrateRequest request = asked_.request;
    request.set_name(step.what.name());
    request.set_node(step.to);
    {
      std::lock_guard lock(mutex_);
      under_way_.insert(step.what.name());
    }
    grpc::ClientContext call;
    const auto stream = stub_.Migrate(&call, request);
    api::MigrateEvent event;
    while (stream->Read(&event))
      if (event.has_result()) step.result = event.result();
    const absl::Status ended = api::from_grpc(stream->Finish());
    if (step.result.outcome().empty()) {
      step.result.set_name(step.what.name());
      step.result.set_node(step.what.node());
      step.result.set_outcome("error");
      step.result.set_error(std::string(message_of(ended)));
    }
    std::lock_guard lock(mutex_);
    under_way_.erase(step.what.name());
    if (asked_.json) return;
    const bool well = step.result.outcome() == "moved" || step.result.outcome() == "movable";
    fmt::print(well ? stdout : stderr, "{}", move_text(step.result, false));
    std::fflush(stdout);
  }

  api::Godwit::Stub& stub_;
  const Evacuation& asked_;
  std::vector<Step>& steps_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> cancelled_ = false;
  std::mutex mutex_;
  std::set<std::string> under_way_;
};

}  // namespace

int evacuate(const Context& context, const Evacuation& asked) {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGINT);
  ::sigaddset(&set, SIGTERM);
  // Before gRPC's threads exist, so that they inherit the mask.
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  auto client = Client::connect(context.socket);
  if (!client.ok()) return complain(client.status());
  auto steps = plan(client->stub(), asked);
  if (!steps.ok()) return complain(steps.status());
  Run run(client->stub(), asked, *steps);
  std::atomic<bool> over = false;
  std::thread watching([&] {
    while (!over) {
      pollfd one{signals.get(), POLLIN, 0};
      if (::poll(&one, 1, 100) != 1) continue;
      signalfd_siginfo info{};
      if (::read(signals.get(), &info, sizeof info) == sizeof info) run.cancel();
    }
  });
  run.all();
  over = true;
  watching.join();

  int exit_code = 0;
  size_t moved = 0;
  Json json;
  if (asked.json) json.array();
  for (const Step& each : *steps) {
    const std::string& outcome = each.result.outcome();
    const bool well = outcome == "moved" || outcome == "movable";
    moved += well ? 1 : 0;
    if (!well && exit_code == 0) exit_code = outcome == "refused" ? kRefused : kRolledBack;
    if (asked.json && !outcome.empty()) move_json(json, each.result);
  }
  if (asked.json)
    fmt::print("{}", json.end().str());
  else
    fmt::print("{} of {} {}\n", moved, steps->size(),
               asked.request.dry_run() ? "can move" : "moved");
  return exit_code;
}

}  // namespace godwit::cli
