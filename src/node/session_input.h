// What a user sends in a session, given to whoever has the program: its streams here, another node,
// and after a move somebody else.
#ifndef GODWIT_NODE_SESSION_INPUT_H_
#define GODWIT_NODE_SESSION_INPUT_H_

#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>

#include "api/godwit.grpc.pb.h"

namespace godwit::node {

class SessionInput {
 public:
  using Session = grpc::ServerReaderWriter<api::ExecOutput, api::ExecInput>;
  // Called for one message after the other, by a thread of ours. False: it has not been taken (or
  // in part, and has then become what is left of it); whoever comes next gets it first.
  using Sink = std::function<bool(api::ExecInput&)>;

  // `first` has been read already.
  SessionInput(Session& session, const api::ExecStart& first);
  ~SessionInput() { join(); }
  SessionInput(const SessionInput&) = delete;
  SessionInput& operator=(const SessionInput&) = delete;

  // From here on; first what came while there was nobody.
  void give_to(Sink sink);
  // It is not called any more when this returns.
  void keep();
  // Before everything that is kept; while there is no sink.
  void put_back(api::ExecInput input);
  // What is kept of the data, taken out. After join(): all that nobody has taken.
  std::string take_kept();
  // The user has told the end of the input.
  bool ended() const;
  // As the user told last.
  api::WindowSize window() const;
  // Waits for the user's end of the call.
  void join();

 private:
  void read();
  void pass();  // with the lock held

  Session& session_;
  mutable std::mutex mutex_;
  Sink sink_;
  std::list<api::ExecInput> kept_;
  api::WindowSize window_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_SESSION_INPUT_H_
