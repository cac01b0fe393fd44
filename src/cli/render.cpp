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
      .number("post_copy_ns", s.post_copy_ns());
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
  for (const std::string& each : service.argv()) {
    if (!out.empty()) out += ' ';
    out += quoted_if_needed(each);
  }
  return out;
}

std::string state_text(const api::Service& service) {
  if (service.state() == "exited") return fmt::format("exited ({})", service.exit_code());
  if (!service.pages_at().empty())
    return fmt::format("{}, {} at {} yet{}", service.state(),
                       format_bytes(service.pages_missing() * kPageSize), service.pages_at(),
                       service.pages_connected() ? "" : ", which cannot be reached");
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
      .number("pages_missing", s.pages_missing())
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
  line("command", command_line(s));
  line("user", s.user());
  line("workdir", s.workdir());
  line("rootfs", s.rootfs());
  for (const api::Bind& each : s.binds())
    line("bind", each.host_path() + " at " + each.capsule_path());
  line("layer", s.layer());
  line("started", time_text(s.started_unix_ns()));
  if (s.has_last_migration()) {
    const api::MigrationStatistics& m = s.last_migration();
    line("last move",
         fmt::format("{} to {}, {}: {} rounds, freeze {}, total {}, {}", m.source(),
                     m.destination(), m.outcome(), m.rounds(), format_ns(m.freeze_ns()),
                     format_ns(m.total_ns()), format_bytes(m.bytes_wire())));
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
  json.array("refusals");
  for (const api::Refusal& each : result.refusals())
    json.object()
        .text("code", each.code())
        .text("object", each.object())
        .text("reason", each.reason())
        .text("way_out", each.way_out())
        .end();
  json.end().end();
}

std::string move_text(const api::MigrateResult& result, bool verbose) {
  const api::MigrationStatistics& s = result.statistics();
  std::string out;
  if (result.outcome() == "moved") {
    out =
        fmt::format("{} moved from {} to {} in {}: freeze {}, {} round{}, {}\n", result.name(),
                    s.source(), s.destination(), format_ns(s.total_ns()), format_ns(s.freeze_ns()),
                    s.rounds(), s.rounds() == 1 ? "" : "s", format_bytes(s.bytes_wire()));
    if (s.pages_left_behind() > 0)
      out += fmt::format("  {} followed in {}, {} waited for\n",
                         format_bytes(s.pages_left_behind() * kPageSize),
                         format_ns(s.post_copy_ns()), format_bytes(s.page_faults() * kPageSize));
    if (!result.error().empty()) out += fmt::format("  {}\n", result.error());
  } else if (result.outcome() == "movable") {
    out = fmt::format("{} can move to {}\n", result.name(), s.destination());
  } else if (result.outcome() == "saved") {
    out = fmt::format("{} saved in {}: freeze {}, {}\n", result.name(), format_ns(s.total_ns()),
                      format_ns(s.freeze_ns()), format_bytes(s.bytes_wire()));
  } else if (result.outcome() == "restored") {
    out = fmt::format("{} runs on {}\n", result.name(), result.node());
  } else if (result.outcome() == "refused") {
    out = fmt::format("{} cannot move{}{}\n", result.name(), result.error().empty() ? "" : ": ",
                      result.error());
    for (const api::Refusal& each : result.refusals())
      out += fmt::format("  {}: {}\n    {}\n", each.object(), each.reason(), each.way_out());
  } else {
    out = fmt::format("{} was not moved and runs on at {}: {}\n", result.name(), result.node(),
                      result.error());
  }
  if (verbose && s.total_ns() > 0) {
    out += fmt::format(
        "  {} processes, {} threads, {} descriptors, {} connections; {} pages sent, {} zero;\n"
        "  setup {}, first stop {}, source CPU {}, {} frames replayed\n",
        s.processes(), s.threads(), s.descriptors(), s.connections(), s.pages_sent(),
        s.pages_zero(), format_ns(s.setup_ns()), format_ns(s.first_stop_ns()),
        format_ns(s.source_cpu_ns()), s.frames_replayed());
    if (s.bytes_pages() > 0) out += "  " + compression_text(s) + "\n";
    for (const api::MigrationSpan& each : s.spans())
      out += fmt::format("  {:<32}{:>12}\n", each.name(), format_ns(each.ns()));
  }
  return out;
}

std::string progress_text(const api::MigrateProgress& p) {
  if (p.phase() == "post-copy" || p.phase() == "disconnected")
    return fmt::format("{}  {} left", p.phase(), format_bytes(p.pages_left() * kPageSize));
  if (p.phase() != "round") return p.phase();
  return fmt::format("round {}  {} left  {}/s  dirty {}/s  {} to go", p.round(),
                     format_bytes(p.pages_left() * kPageSize), format_bytes(p.bytes_per_s()),
                     format_bytes(p.dirty_pages_per_s() * kPageSize), format_ns(p.time_left_ns()));
}

}  // namespace godwit::cli
