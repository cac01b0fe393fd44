// Descriptors under way in unix sockets (SCM_RIGHTS): of an open one, of ones that nobody has open,
// and of a socket in whose queue there is another one.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "checks.h"

namespace state {
namespace {

struct Pair {
  int ends[2];
  explicit Pair(int type) {
    must(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), "socketpair");
  }
};

void pass(int socket, const char* word, const std::vector<int>& fds) {
  iovec part{const_cast<char*>(word), std::strlen(word)};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(head), fds.data(), fds.size() * sizeof(int));
  must(::sendmsg(socket, &message, 0), "sendmsg");
}

std::vector<int> receive(int socket, const std::string& word) {
  char text[32] = {};
  iovec part{text, sizeof text};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  report().expect(got == static_cast<ssize_t>(word.size()) && word == text,
                  "a message is \"" + std::string(text) + "\", not \"" + word + "\"");
  std::vector<int> fds;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); got >= 0 && head != nullptr;
       head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_type != SCM_RIGHTS) continue;
    fds.resize((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds.data(), CMSG_DATA(head), fds.size() * sizeof(int));
  }
  return fds;
}

Check rights() {
  const Pair stream(SOCK_STREAM);
  const Pair packets(SOCK_SEQPACKET);
  const int event = static_cast<int>(must(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
  int pipe_reader = -1;
  const auto leave = [=] {
    int pipe[2];
    must(::pipe2(pipe, O_CLOEXEC), "pipe2");
    pass(stream.ends[0], "both", {event, pipe[1]});
    ::close(pipe[1]);
    must(::write(stream.ends[0], "plain", 5), "write");
    const Pair inner(SOCK_DGRAM);
    const int memory = static_cast<int>(must(::memfd_create("inner", MFD_CLOEXEC), "memfd_create"));
    must(::write(memory, "memory", 6), "write");
    pass(inner.ends[0], "deep", {memory});
    pass(packets.ends[0], "inner", {inner.ends[1], inner.ends[0]});
    for (const int fd : {memory, inner.ends[0], inner.ends[1]}) ::close(fd);
    return pipe[0];
  };
  pipe_reader = leave();
  return {"descriptors under way", [=]() mutable {
            const std::vector<int> both = receive(stream.ends[1], "both");
            report().equal("descriptors", static_cast<long long>(both.size()), 2);
            if (both.size() == 2) {
              unsigned long count = 5;
              must(::write(both[0], &count, sizeof count), "write");
              report().equal("bytes of an eventfd", ::read(event, &count, sizeof count), 8);
              report().equal("an eventfd that was passed", static_cast<long long>(count), 5);
              must(::write(both[1], "through", 7), "write");
              for (const int fd : both) ::close(fd);
            }
            char text[16] = {};
            report().equal("bytes of a pipe", ::read(pipe_reader, text, sizeof text), 7);
            report().equal("the end of a pipe", ::read(pipe_reader, text, sizeof text), 0);
            ::close(pipe_reader);
            report().equal("rights of a plain message",
                           static_cast<long long>(receive(stream.ends[1], "plain").size()), 0);
            const std::vector<int> inner = receive(packets.ends[1], "inner");
            report().equal("sockets", static_cast<long long>(inner.size()), 2);
            if (inner.size() == 2) {
              const std::vector<int> deep = receive(inner[0], "deep");
              report().equal("descriptors in a queue under way",
                             static_cast<long long>(deep.size()), 1);
              if (deep.size() == 1) {
                report().equal("bytes of a memfd", ::pread(deep[0], text, sizeof text, 0), 6);
                report().expect(std::string(text, 6) == "memory", "a memfd has other content");
                ::close(deep[0]);
              }
              must(::send(inner[1], "hello", 5, 0), "send");
              report().equal("bytes of a socket that was passed",
                             ::recv(inner[0], text, sizeof text, MSG_DONTWAIT), 5);
              for (const int fd : inner) ::close(fd);
            }
            pipe_reader = leave();
          }};
}

}  // namespace

void add_rights_checks(std::vector<Check>& checks) { checks.push_back(rights()); }

}  // namespace state
