// Joins the streams of a program to those of a call: input messages to a descriptor, what comes
// from descriptors to output messages, until the program has ended.
#ifndef GODWIT_NODE_SESSION_PUMP_H_
#define GODWIT_NODE_SESSION_PUMP_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/godwit.grpc.pb.h"
#include "base/unique_fd.h"
#include "node/session_input.h"

namespace godwit::node {

class SessionPump {
 public:
  using Session = grpc::ServerReaderWriter<api::ExecOutput, api::ExecInput>;

  struct Streams {
    UniqueFd in;  // what the user types is written here; may be the same description as `out`
    UniqueFd out;
    UniqueFd err;       // none: with a terminal
    UniqueFd returned;  // what was written to `in` and comes back at the end; may be none
    int ended_fd = -1;  // borrowed; readable when the program has ended; -1: the end of `out` tells
  };
  struct Actions {
    std::function<void()> end_of_input;
    std::function<void(unsigned rows, unsigned columns)> resize;
    std::function<void(int signal)> signal;
  };

  SessionPump(Session& session, SessionInput& input, Streams streams, Actions actions);
  // Returns when the program has ended and what it wrote has been passed on, or when the user has
  // gone (kCancelled). Input is not taken any more then.
  absl::Status run(grpc::ServerContext& context);

 private:
  // False: it, or what is left of it, was not taken, since the end has come.
  bool take_input(api::ExecInput& input);
  bool write_input(std::string& data);
  void take_back();
  // False: nothing more will come.
  bool pass_output(int fd, bool error);

  Session& session_;
  SessionInput& given_;
  Streams streams_;
  Actions actions_;
  UniqueFd stop_;  // eventfd: input is not taken any more
  bool open_ = true;
};

// For a message; the errno is lost.
api::SessionFailure failure_of(const absl::Status& status);
// What a shell's exit code is for a program that could not be started: 127 it is not there, 126 it
// cannot be executed; 0: the error is another one.
int not_started_code(const absl::Status& status);
// The last message of a session.
api::ExecOutput session_end(const absl::StatusOr<int>& exit_code);

}  // namespace godwit::node

#endif  // GODWIT_NODE_SESSION_PUMP_H_
