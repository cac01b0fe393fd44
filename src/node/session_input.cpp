#include "node/session_input.h"

#include <utility>

namespace godwit::node {
namespace {

// Of a user who types while nobody takes it: what is more than this is let go.
constexpr size_t kMostKept = 4096;

}  // namespace

SessionInput::SessionInput(Session& session, const api::ExecStart& first)
    : session_(session), window_(first.window()), thread_([this] { read(); }) {}

void SessionInput::read() {
  api::ExecInput input;
  // Ends when the user half-closes the call or goes.
  while (session_.Read(&input)) {
    std::lock_guard lock(mutex_);
    if (input.has_window()) window_ = input.window();
    ended_ = ended_ || input.end_of_input();
    if (kept_.size() < kMostKept) kept_.push_back(std::move(input));
    pass();
    input.Clear();
  }
}

void SessionInput::pass() {
  while (sink_ && !kept_.empty() && sink_(kept_.front())) kept_.pop_front();
}

void SessionInput::give_to(Sink sink) {
  std::lock_guard lock(mutex_);
  sink_ = std::move(sink);
  pass();
}

void SessionInput::keep() {
  std::lock_guard lock(mutex_);
  sink_ = nullptr;
}

void SessionInput::put_back(api::ExecInput input) {
  std::lock_guard lock(mutex_);
  kept_.push_front(std::move(input));
}

std::string SessionInput::take_kept() {
  std::lock_guard lock(mutex_);
  std::string data;
  for (const api::ExecInput& each : kept_)
    if (each.has_data()) data += each.data();
  kept_.clear();
  return data;
}

bool SessionInput::ended() const {
  std::lock_guard lock(mutex_);
  return ended_;
}

api::WindowSize SessionInput::window() const {
  std::lock_guard lock(mutex_);
  return window_;
}

void SessionInput::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace godwit::node
