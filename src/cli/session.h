// Standard streams of a program in a capsule, joined to ours: exec, attach, run.
#ifndef GODWIT_CLI_SESSION_H_
#define GODWIT_CLI_SESSION_H_

#include <functional>
#include <memory>
#include <string>

#include "api/godwit.grpc.pb.h"

namespace godwit::cli {

struct SessionOptions {
  bool tty = false;          // our terminal becomes raw, its size follows
  bool interactive = false;  // our standard input is passed on
  // SIGINT, SIGTERM, SIGHUP and SIGQUIT that we get go to the program (without tty, where keys do
  // that already).
  bool pass_signals = false;
  // This key ends the session, with exit code 0; 0: none does.
  char leave_key = 0;
};

using SessionStream = grpc::ClientReaderWriter<api::ExecInput, api::ExecOutput>;
// Opens the call, sends `start`, copies until the program ends. Returns its exit code, or
// kOwnError after a message. Threads must not have been started before: it blocks signals.
int run_session(const std::string& socket, const SessionOptions& options,
                const api::ExecStart& start,
                const std::function<std::unique_ptr<SessionStream>(api::Godwit::Stub&,
                                                                   grpc::ClientContext*)>& open);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_SESSION_H_
