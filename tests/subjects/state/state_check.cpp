// A subject with many kinds of kernel state, which it checks when it is asked.
//
//   state_check PORT
//
// A line on a connection to PORT is answered by "OK N" (N checks), or by a line for each difference
// and then "END". Asked without a move it answers OK as well: the control run.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "checks.h"

namespace state {

Report& report() {
  static Report one;
  return one;
}

}  // namespace state

namespace {

std::string answer(const std::vector<state::Check>& checks) {
  std::string text;
  for (const state::Check& one : checks) {
    one.check();
    for (const std::string& line : state::report().take())
      text += std::string(one.name) + ": " + line + "\n";
  }
  return text.empty() ? "OK " + std::to_string(checks.size()) + "\n" : text + "END\n";
}

// Signals arrive all the time here; an EINTR is the program's own.
template <typename Call>
auto again(const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::vector<state::Check> checks;
  state::add_process_checks(checks);  // before there are threads: it forks
  state::add_seccomp_checks(checks);
  state::add_pidfd_checks(checks);
  state::add_signal_owner_checks(checks);
  state::add_terminal_checks(checks);
  state::add_ipc_checks(checks);
  state::add_fifo_checks(checks);
  state::add_memory_checks(checks);
  state::add_descriptor_checks(checks);
  state::add_lock_checks(checks);
  state::add_watch_checks(checks);
  state::add_segment_checks(checks);
  state::add_signal_checks(checks);
  state::add_rights_checks(checks);
  state::add_aio_checks(checks);
  state::add_ring_checks(checks);
  const int listener = static_cast<int>(state::must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(argv[1])));
  state::must(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
  state::must(::listen(listener, 16), "listen");
  state::add_thread_checks(checks);
  std::puts("ready");
  std::fflush(stdout);
  for (;;) {
    const int client = again([&] { return ::accept(listener, nullptr, nullptr); });
    if (client < 0) return 1;
    char bytes[64];
    while (again([&] { return ::read(client, bytes, sizeof bytes); }) > 0) {
      const std::string text = answer(checks);
      if (again([&] { return ::write(client, text.data(), text.size()); }) < 0) break;
    }
    ::close(client);
  }
}
