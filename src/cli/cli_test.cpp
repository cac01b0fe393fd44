// What users type and read.
#include "cli/cli.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "base/status.h"
#include "cli/json.h"
#include "cli/render.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

TEST(TextTest, DurationsNeedAUnit) {
  EXPECT_EQ(*parse_duration_ns("500us"), 500'000);
  EXPECT_EQ(*parse_duration_ns("1.5ms"), 1'500'000);
  EXPECT_EQ(*parse_duration_ns("0s"), 0);
  EXPECT_EQ(*parse_duration_ns("2m"), 120'000'000'000);
  for (const char* bad : {"", "5", "ms", "-5ms", "5 ms", "5ms ", "inf s", "nanms", "1e300s"})
    EXPECT_FALSE(parse_duration_ns(bad).ok()) << bad;
}

TEST(TextTest, BandwidthInBytesAndBits) {
  EXPECT_EQ(*parse_bandwidth("1000"), 1000);
  EXPECT_EQ(*parse_bandwidth("100MiB"), 100 << 20);
  EXPECT_EQ(*parse_bandwidth("1.5GB"), 1'500'000'000);
  EXPECT_EQ(*parse_bandwidth("1Gbit"), 125'000'000);
  for (const char* bad : {"", "fast", "1gib", "-1M", "1M/s"})
    EXPECT_FALSE(parse_bandwidth(bad).ok()) << bad;
}

TEST(TextTest, SignalsByNameAndNumber) {
  EXPECT_EQ(*parse_signal("TERM"), SIGTERM);
  EXPECT_EQ(*parse_signal("SIGUSR1"), SIGUSR1);
  EXPECT_EQ(*parse_signal("9"), 9);
  for (const char* bad : {"", "0", "-9", "65", "SIGNOTHING", "9x"})
    EXPECT_FALSE(parse_signal(bad).ok()) << bad;
}

TEST(TextTest, AmountsForPeople) {
  EXPECT_EQ(format_ns(850'000), "850 us");
  EXPECT_EQ(format_ns(1'310'000), "1.31 ms");
  EXPECT_EQ(format_bytes(259ull << 20), "259 MiB");
  EXPECT_EQ(format_bytes(17), "17 B");
}

TEST(TextTest, TablesHaveNoTrailingSpace) {
  Table table({"A", "B"});
  table.row({"long one", "x"});
  EXPECT_EQ(table.str(), "A         B\nlong one  x\n");
}

TEST(JsonTest, QuotesWhatJsonForbids) {
  EXPECT_EQ(json_quote("a\"b\\c\n\x01"), "\"a\\\"b\\\\c\\n\\u0001\"");
  EXPECT_EQ(json_quote("größe"), "\"größe\"");
  EXPECT_EQ(json_quote("\xff\xc0\x80z"), "\"\\ufffd\\ufffd\\ufffdz\"");
  EXPECT_EQ(json_quote("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");
}

TEST(JsonTest, NestsAndSeparates) {
  Json json;
  json.object().text("a", "x").number("n", -3);
  json.array("list").number("", 1).number("", 2).end();
  json.array("empty").end();
  json.boolean("b", true).end();
  EXPECT_EQ(json.str(),
            "{\n  \"a\": \"x\",\n  \"n\": -3,\n  \"list\": [\n    1,\n    2\n  ],\n"
            "  \"empty\": [],\n  \"b\": true\n}\n");
}

TEST(RenderTest, ServiceJsonHasTheNamesThatAreFixed) {
  api::Service service;
  service.set_name("x");
  service.set_pid(42);
  service.mutable_last_migration()->set_freeze_ns(7);
  Json json;
  service_json(json, service);
  for (const char* field : {"\"name\": \"x\"", "\"node\":", "\"state\":", "\"address\":",
                            "\"pid\": 42", "\"freeze_ns\": 7", "\"bytes_wire\":"})
    EXPECT_NE(json.str().find(field), std::string::npos) << field;
}

TEST(RenderTest, MoveJsonHasTheNamesThatAreFixed) {
  api::MigrateResult result;
  result.set_outcome("moved");
  Json json;
  move_json(json, result);
  for (const char* field : {"\"strategy\":", "\"rounds\":", "\"freeze_ns\":", "\"total_ns\":",
                            "\"bytes_wire\":", "\"outcome\": \"moved\"", "\"chosen_because\":",
                            "\"predicted_downtime_ns\":", "\"predicted_total_ns\":"})
    EXPECT_NE(json.str().find(field), std::string::npos) << field;
}

TEST(RenderTest, ADryRunSaysInWordsWhatWillHappen) {
  api::MigrateResult result;
  result.set_name("cache");
  result.set_outcome("movable");
  result.set_based_on("the last move of cache");
  result.set_layer_bytes(3 << 20);
  api::MigrationStatistics& s = *result.mutable_statistics();
  s.set_destination("n2");
  s.set_strategy("precopy");
  s.set_chosen_because("it holds the limits");
  s.set_predicted_downtime_ns(1'200'000);
  s.set_predicted_total_ns(2'400'000'000);
  s.set_processes(1);
  s.set_threads(4);
  s.set_memory_bytes(uint64_t{1} << 30);
  api::Refusal* warning = result.add_warnings();
  warning->set_code("clock.skew");
  warning->set_object("n2");
  warning->set_reason("its clock is wrong");
  const std::string text = move_text(result, false);
  for (const char* part :
       {"cache can move to n2", "by precopy: it holds the limits", "freeze 1.20 ms, total 2.40 s",
        "based on the last move of cache", "1 process, 4 threads, 1.0 GiB of memory",
        "3.0 MiB of files of its own", "warning: n2: its clock is wrong"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  Json json;
  move_json(json, result);
  EXPECT_NE(json.str().find("\"code\": \"clock.skew\""), std::string::npos) << json.str();
}

TEST(RenderTest, CommandLinesCanBePastedIntoAShell) {
  api::Service service;
  for (const char* each : {"redis-server", "--save", "", "it's"}) service.add_argv(each);
  EXPECT_EQ(command_line(service), "redis-server --save '' 'it'\\''s'");
}

int run_cli(std::vector<std::string> words, std::string* error = nullptr) {
  words.insert(words.begin(), "godwit");
  std::vector<char*> argv;
  for (std::string& each : words) argv.push_back(each.data());
  argv.push_back(nullptr);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = cli_main(static_cast<int>(words.size()), argv.data());
  testing::internal::GetCapturedStdout();
  const std::string said = testing::internal::GetCapturedStderr();
  if (error != nullptr) *error = said;
  return code;
}

TEST(CommandLineTest, EveryCommandHasHelp) {
  for (const char* command :
       {"run", "ps", "inspect", "logs", "exec", "attach", "signal", "stop", "wait", "rm", "migrate",
        "checkpoint", "restore", "image", "nodes", "node", "certificates", "lab"})
    EXPECT_EQ(run_cli({command, "--help"}), 0) << command;
}

TEST(CommandLineTest, MistakesAreUsageErrors) {
  EXPECT_EQ(run_cli({}), 2);
  std::string error;
  EXPECT_EQ(run_cli({"frobnicate", "x", "--y"}, &error), 2);
  EXPECT_NE(error.find("no command \"frobnicate\""), std::string::npos) << error;
  EXPECT_EQ(run_cli({"migrate", "x"}), 2);
  EXPECT_EQ(run_cli({"migrate", "x", "n2", "--strategy", "teleport"}), 2);
  EXPECT_EQ(run_cli({"migrate", "x", "n2", "--max-downtime", "5"}), 2);
  EXPECT_EQ(run_cli({"migrate", "x", "n2", "--max-total", "5"}), 2);
  EXPECT_EQ(run_cli({"run", "--", "true"}), 2);
  EXPECT_EQ(run_cli({"signal", "x", "NOTHING"}), 2);
}

TEST(CommandLineTest, WithoutADaemonItSaysSo) {
  EXPECT_EQ(run_cli({"--socket", "/nonexistent/s", "ps"}), 1);
  EXPECT_EQ(run_cli({"--socket", "/nonexistent/s", "exec", "x", "--", "true"}), 125);
  EXPECT_EQ(run_cli({"--socket", "/nonexistent/s", "run", "--name", "x", "-d", "--", "true"}), 125);
}

}  // namespace
}  // namespace godwit::cli
