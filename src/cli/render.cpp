#include "cli/render.h"

#include <fmt/core.h>

#include "cli/text.h"

namespace godwit::cli {
namespace {

constexpr uint64_t kPageSize = 4096;

void statistics_json(Json& json, const api::MigrationStatistics& s) {
  json.text("id", s.id())
      .text("source", s.source())
      .text("destination", s.destination())
      .text("strategy", s.strategy())
      .number("rounds", s.rounds())
      .number("freeze_ns", s.freeze_ns())
      .number("total_ns", s.total_ns())
      .number("setup_ns", s.setup_ns())
      .number("first_stop_ns", s.first_stop_ns())
      .number("bytes_wire", s.bytes_wire())
      .number("bytes_pages", s.bytes_pages())
      .number("bytes_pages_wire", s.bytes_pages_wire())
      .text("compression", s.compression())
      .number("pages_sent", s.pages_sent())
      .number("pages_zero", s.pages_zero())
      .number("source_cpu_ns", s.source_cpu_ns())
      .number("processes", s.processes())
      .number("threads", s.threads())
      .number("descriptors", s.descriptors())
      .number("connections", s.connections())
      .number("frames_replayed", s.frames_replayed())
      .number("pages_left_behind", s.pages_left_behind())
      .number("page_faults", s.page_faults())
      .number("post_copy_ns", s.post_copy_ns())
      .text("chosen_because", s.chosen_because())
      .number("predicted_downtime_ns", s.predicted_downtime_ns())
      .number("predicted_total_ns", s.predicted_total_ns())
      .number("bytes_per_s", s.bytes_per_s())
      .number("dirty_pages_per_s", s.dirty_pages_per_s())
      .number("pages_cold", s.pages_cold())
      .number("pages_warm", s.pages_warm())
      .number("pages_hot", s.pages_hot())
      .number("memory_bytes", s.memory_bytes())
      .number("throttled_ns", s.throttled_ns())
      .number("throttle_percent", s.throttle_percent());
  json.array("forecasts");
  for (const api::StrategyForecast& each : s.forecasts())
    json.object()
        .text("strategy", each.strategy())
        .number("downtime_ns", each.downtime_ns())
        .number("total_ns", each.total_ns())
        .boolean("feasible", each.feasible())
        .text("reason", each.reason())
        .end();
  json.end();
  json.array("spans");
  for (const api::MigrationSpan& each : s.spans())
    json.object().text("name", each.name()).number("ns", each.ns()).end();
  json.end();
}

// "pages 1.0 GiB, 0.3 GiB on the wire (3.4 times less, zstd)"
std::string compression_text(const api::MigrationStatistics& s) {
  if (s.bytes_pages_wire() == 0 || s.bytes_pages_wire() == s.bytes_pages())
    return fmt::format("pages {}, not compressed", format_bytes(s.bytes_pages()));
  return fmt::format(
      "pages {}, {} on the wire ({:.1f} times less, {})", format_bytes(s.bytes_pages()),
      format_bytes(s.bytes_pages_wire()),
      static_cast<double>(s.bytes_pages()) / static_cast<double>(s.bytes_pages_wire()),
      s.compression());
}

void reasons_json(Json& json, std::string_view name,
                  const google::protobuf::RepeatedPtrField<api::Refusal>& reasons) {
  json.array(name);
  for (const api::Refusal& each : reasons)
    json.object()
        .text("code", each.code())
        .text("object", each.object())
        .text("reason", each.reason())
        .text("way_out", each.way_out())
        .end();
  json.end();
}

std::string forecasts_text(const api::MigrationStatistics& s) {
  std::string out;
  for (const api::StrategyForecast& each : s.forecasts())
    out += fmt::format("  {:<10}downtime {}, total {}{}{}\n", each.strategy(),
                       format_ns(each.downtime_ns()), format_ns(each.total_ns()),
                       each.reason().empty() ? "" : ": ", each.reason());
  return out;
}

std::string plan_text(const api::MigrateResult& result) {
  const api::MigrationStatistics& s = result.statistics();
  std::string out = fmt::format("  by {}: {}\n", s.strategy(), s.chosen_because());
  if (s.predicted_total_ns() > 0)
    out += fmt::format("  expected: freeze {}, total {}, at {}/s\n",
                       format_ns(s.predicted_downtime_ns()), format_ns(s.predicted_total_ns()),
                       format_bytes(s.bytes_per_s()));
  if (!result.based_on().empty()) out += fmt::format("  based on {}\n", result.based_on());
  if (s.processes() == 0) {  // a virtual machine
    if (s.memory_bytes() > 0)
      out += fmt::format("  carries {} of memory\n", format_bytes(s.memory_bytes()));
    return out;
  }
  out += fmt::format(
      "  carries {}, {}, {} of memory ({} of it zero), {},\n  {}, {} of files of its own\n",
      format_amount(s.processes(), "process", "processes"),
      format_amount(s.threads(), "thread", "threads"), format_bytes(s.memory_bytes()),
      format_bytes(s.pages_zero() * kPageSize),
      format_amount(s.descriptors(), "descriptor", "descriptors"),
      format_amount(s.connections(), "connection", "connections"),
      format_bytes(result.layer_bytes()));
  if (result.differences_size() > 0)
    out += fmt::format(
        "  and {} that the other node has not or not the same:\n",
        format_amount(static_cast<uint32_t>(result.differences_size()), "file", "files"));
  for (const api::FileDifference& each : result.differences())
    out += fmt::format("    {} {}\n", each.path(), each.what());
  return out;
}

std::string decision_text(const api::MigrationStatistics& s) {
  std::string out =
      fmt::format("  {}: {}; expected: freeze {}, total {}\n", s.strategy(), s.chosen_because(),
                  format_ns(s.predicted_downtime_ns()), format_ns(s.predicted_total_ns()));
  out += fmt::format("  link {}/s, dirty {}/s", format_bytes(s.bytes_per_s()),
                     format_bytes(s.dirty_pages_per_s() * kPageSize));
  if (s.pages_cold() + s.pages_warm() + s.pages_hot() > 0)
    out += fmt::format(
        "; memory cold {}, warm {}, hot {}", format_bytes(s.pages_cold() * kPageSize),
        format_bytes(s.pages_warm() * kPageSize), format_bytes(s.pages_hot() * kPageSize));
  return out + "\n" + forecasts_text(s);
}

std::string quoted_if_needed(const std::string& word) {
  const bool plain =
      !word.empty() && word.find_first_of(" \t\n\"'\\$`*?[]{}()<>|&;#~!") == std::string::npos;
  if (plain) return word;
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

std::string time_text(int64_t unix_ns) {
  if (unix_ns <= 0) return "-";
  const time_t seconds = unix_ns / 1'000'000'000;
  tm parts{};
  ::gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

std::string command_line(const api::Service& service) {
  std::string out;
  if (service.has_vm())
    return fmt::format("virtual machine{}", service.vm().memory_bytes() == 0
                                                ? ""
                                                : ", " + format_bytes(service.vm().memory_bytes()));
  for (const std::string& each : service.argv()) {
    if (!out.empty()) out += ' ';
    out += quoted_if_needed(each);
  }
  return out;
}

std::string state_text(const api::Service& service) {
  if (service.state() == "exited") return fmt::format("exited ({})", service.exit_code());
  if (!service.pages_at().empty()) {
    const bool file = !service.pages_file().empty();
    const std::string text = fmt::format(
        "{}, {} {} {} yet", service.state(), format_bytes(service.pages_missing() * kPageSize),
        file ? "in" : "at", file ? service.pages_file() : service.pages_at());
    if (!service.pages_error().empty()) return fmt::format("{} ({})", text, service.pages_error());
    return text + (service.pages_connected() ? "" : ", which cannot be reached");
  }
  if (service.state() == "migrating" && service.throttle_percent() > 0)
    return fmt::format("migrating to {}, with {} % of its CPU time", service.destination(),
                       service.throttle_percent());
  if (service.state() == "migrating") return fmt::format("migrating to {}", service.destination());
  return service.state();
}

void service_json(Json& json, const api::Service& s) {
  json.object()
      .text("name", s.name())
      .text("node", s.node())
      .text("state", s.state())
      .text("address", s.address())
      .number("pid", s.pid())
      .number("exit_code", s.exit_code())
      .text("mac", s.mac())
      .text("user", s.user())
      .text("workdir", s.workdir())
      .text("rootfs", s.rootfs())
      .text("layer", s.layer())
      .boolean("tty", s.tty())
      .number("generation", s.generation())
      .text("destination", s.destination())
      .text("pages_at", s.pages_at())
      .text("pages_file", s.pages_file())
      .number("pages_missing", s.pages_missing())
      .text("pages_error", s.pages_error())
      .number("throttle_percent", s.throttle_percent())
      .text("created", time_text(s.created_unix_ns()))
      .text("started", time_text(s.started_unix_ns()));
  json.array("command");
  for (const std::string& each : s.argv()) json.text("", each);
  json.end();
  json.array("env");
  for (const std::string& each : s.env()) json.text("", each);
  json.end();
  json.array("binds");
  for (const api::Bind& each : s.binds())
    json.object()
        .text("host_path", each.host_path())
        .text("capsule_path", each.capsule_path())
        .end();
  json.end();
  if (s.has_vm()) {
    json.object("vm")
        .text("uuid", s.vm().uuid())
        .text("state", s.vm().state())
        .number("memory_bytes", s.vm().memory_bytes())
        .number("cpus", s.vm().cpus())
        .text("machine", s.vm().machine())
        .text("error", s.vm().error());
    json.array("disks");
    for (const std::string& each : s.vm().disks()) json.text("", each);
    json.end().end();
  }
  if (s.has_last_migration()) {
    json.object("last_migration").text("outcome", s.last_migration().outcome());
    statistics_json(json, s.last_migration());
    json.end();
  }
  json.end();
}

std::string service_text(const api::Service& s) {
  std::string out;
  const auto line = [&](const char* name, const std::string& value) {
    if (!value.empty()) out += fmt::format("{:<12}{}\n", name, value);
  };
  line("name", s.name());
  line("node", s.node());
  line("state", state_text(s));
  line("address", s.address());
  line("mac", s.mac());
  if (s.pid() != 0) line("pid", std::to_string(s.pid()));
  if (!s.has_vm()) line("command", command_line(s));
  if (s.has_vm()) {
    const api::Vm& vm = s.vm();
    line("machine", fmt::format("{}, {}, {}", vm.machine(), format_amount(vm.cpus(), "CPU", "CPUs"),
                                format_bytes(vm.memory_bytes())));
    line("uuid", vm.uuid());
    for (const std::string& each : vm.disks()) line("disk", each);
    line("libvirt", vm.error());
  }
  line("user", s.user());
  line("workdir", s.workdir());
  line("rootfs", s.rootfs());
  for (const api::Bind& each : s.binds())
    line("bind", each.host_path() + " at " + each.capsule_path());
  line("layer", s.layer());
  line("started", time_text(s.started_unix_ns()));
  if (s.has_last_migration()) {
    const api::MigrationStatistics& m = s.last_migration();
    line("last move", fmt::format("{} to {}, {}: {}, {} rounds, freeze {}, total {}, {}",
                                  m.source(), m.destination(), m.outcome(), m.strategy(),
                                  m.rounds(), format_ns(m.freeze_ns()), format_ns(m.total_ns()),
                                  format_bytes(m.bytes_wire())));
    line("chosen", m.chosen_because());
  }
  return out;
}

void node_json(Json& json, const api::Node& n) {
  json.object()
      .text("name", n.name())
      .text("state", n.state())
      .text("host", n.host())
      .number("port", n.port())
      .text("kernel", n.kernel())
      .text("version", n.version())
      .number("services", n.services())
      .text("subnet", n.subnet())
      .boolean("keeps_store", n.keeps_store());
  json.array("features");
  for (const std::string& each : n.features()) json.text("", each);
  json.end().end();
}

void move_json(Json& json, const api::MigrateResult& result) {
  json.object()
      .text("name", result.name())
      .text("node", result.node())
      .text("outcome", result.outcome())
      .text("error", result.error());
  statistics_json(json, result.statistics());
  json.array("differences");
  for (const api::FileDifference& each : result.differences())
    json.object().text("path", each.path()).text("what", each.what()).end();
  json.end();
  json.text("based_on", result.based_on()).number("layer_bytes", result.layer_bytes());
  reasons_json(json, "refusals", result.refusals());
  reasons_json(json, "warnings", result.warnings());
  json.end();
}

static std::string followed_text(const api::MigrateResult& result) {
  const api::MigrationStatistics& s = result.statistics();
  std::string out;
  if (s.pages_left_behind() > 0)
    out = fmt::format("  {} followed in {}, {} waited for\n",
                      format_bytes(s.pages_left_behind() * kPageSize), format_ns(s.post_copy_ns()),
                      format_bytes(s.page_faults() * kPageSize));
  if (!result.error().empty()) out += fmt::format("  {}\n", result.error());
  return out;
}

std::string move_text(const api::MigrateResult& result, bool verbose) {
  const api::MigrationStatistics& s = result.statistics();
  std::string out;
  if (result.outcome() == "moved") {
    out =
        fmt::format("{} moved from {} to {} in {}: freeze {}, {} round{}, {}\n", result.name(),
                    s.source(), s.destination(), format_ns(s.total_ns()), format_ns(s.freeze_ns()),
                    s.rounds(), s.rounds() == 1 ? "" : "s", format_bytes(s.bytes_wire()));
    if (s.throttled_ns() > 0)
      out += fmt::format("  its CPU time was limited for {}, to {} % at last\n",
                         format_ns(s.throttled_ns()), s.throttle_percent());
    out += followed_text(result);
  } else if (result.outcome() == "cloned") {
    out =
        fmt::format("{} runs on {}, made in {}: the original stood still for {}, {} round{}, {}\n",
                    result.name(), result.node(), format_ns(s.total_ns()), format_ns(s.freeze_ns()),
                    s.rounds(), s.rounds() == 1 ? "" : "s", format_bytes(s.bytes_wire()));
  } else if (result.outcome() == "movable") {
    out = fmt::format("{} can move to {}\n", result.name(), s.destination()) + plan_text(result);
  } else if (result.outcome() == "saved") {
    out = fmt::format("{} saved in {}: freeze {}, {}\n", result.name(), format_ns(s.total_ns()),
                      format_ns(s.freeze_ns()), format_bytes(s.bytes_wire()));
    if (!s.chosen_because().empty()) out += fmt::format("  {}\n", s.chosen_because());
  } else if (result.outcome() == "restored") {
    out = fmt::format("{} runs on {}\n", result.name(), result.node()) + followed_text(result);
  } else if (result.outcome() == "refused") {
    out = fmt::format("{} cannot move{}{}\n", result.name(), result.error().empty() ? "" : ": ",
                      result.error());
    for (const api::Refusal& each : result.refusals())
      out += fmt::format("  {}: {}\n    {}\n", each.object(), each.reason(), each.way_out());
  } else {
    out = fmt::format("{} was not moved and runs on at {}: {}\n", result.name(), result.node(),
                      result.error());
  }
  for (const api::Refusal& each : result.warnings())
    out += fmt::format("  warning: {}: {}\n    {}\n", each.object(), each.reason(), each.way_out());
  if (verbose && result.outcome() == "movable") out += forecasts_text(s);
  if (verbose && s.total_ns() > 0) {
    out += fmt::format(
        "  {} processes, {} threads, {} descriptors, {} connections; {} pages sent, {} zero;\n"
        "  setup {}, first stop {}, source CPU {}, {} frames replayed\n",
        s.processes(), s.threads(), s.descriptors(), s.connections(), s.pages_sent(),
        s.pages_zero(), format_ns(s.setup_ns()), format_ns(s.first_stop_ns()),
        format_ns(s.source_cpu_ns()), s.frames_replayed());
    if (s.bytes_pages() > 0) out += "  " + compression_text(s) + "\n";
    out += decision_text(s);
    for (const api::MigrationSpan& each : s.spans())
      out += fmt::format("  {:<32}{:>12}\n", each.name(), format_ns(each.ns()));
  }
  return out;
}

std::string progress_text(const api::MigrateProgress& p) {
  if (p.phase() == "post-copy" || p.phase() == "disconnected")
    return fmt::format("{}  {} left", p.phase(), format_bytes(p.pages_left() * kPageSize));
  if (p.phase() != "round") return p.phase();
  const std::string strategy = p.strategy().empty() ? "" : p.strategy() + ", ";
  const std::string throttled =
      p.throttle_percent() == 0 ? "" : fmt::format("  CPU {} %", p.throttle_percent());
  return fmt::format("{}round {}  {} left  {}/s  dirty {}/s  {} to go{}", strategy, p.round(),
                     format_bytes(p.pages_left() * kPageSize), format_bytes(p.bytes_per_s()),
                     format_bytes(p.dirty_pages_per_s() * kPageSize), format_ns(p.time_left_ns()),
                     throttled);
}

}  // namespace godwit::cli
