// Services, nodes and moves as text and as JSON. The JSON names are part of the interface.
#ifndef GODWIT_CLI_RENDER_H_
#define GODWIT_CLI_RENDER_H_

#include <string>

#include "api/godwit.pb.h"
#include "cli/json.h"

namespace godwit::cli {

// As one value: of an array, or at the top.
void service_json(Json& json, const api::Service& service);
std::string service_text(const api::Service& service);
void node_json(Json& json, const api::Node& node);
void move_json(Json& json, const api::MigrateResult& result);
std::string move_text(const api::MigrateResult& result, bool verbose);
// One line: round, pages left, rate, dirty rate, time left.
std::string progress_text(const api::MigrateProgress& progress);
std::string command_line(const api::Service& service);
std::string state_text(const api::Service& service);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_RENDER_H_
