// FIFOs: with content, with a child at the other end that waits, with a reader that has seen no
// writer yet.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checks.h"

namespace state {
namespace {

int open_fifo(const char* path, int flags) {
  return static_cast<int>(must(::open(path, flags | O_CLOEXEC), "open of a FIFO"));
}

Check fifos() {
  ::mkdir("/tmp/fifos", 0700);
  for (const char* path :
       {"/tmp/fifos/own", "/tmp/fifos/question", "/tmp/fifos/answer", "/tmp/fifos/quiet"})
    must(::mkfifo(path, 0640), "mkfifo");
  const int reader = open_fifo("/tmp/fifos/own", O_RDONLY | O_NONBLOCK);
  const int writer = open_fifo("/tmp/fifos/own", O_WRONLY);
  must(::fcntl(reader, F_SETPIPE_SZ, 8192), "F_SETPIPE_SZ");
  must(::write(writer, "inside", 6), "write");
  if (must(::fork(), "fork") == 0) {
    const int questions = open_fifo("/tmp/fifos/question", O_RDONLY);
    const int answers = open_fifo("/tmp/fifos/answer", O_WRONLY);
    for (char byte = 0; ::read(questions, &byte, 1) == 1;) {
      byte = static_cast<char>(byte + 2);
      must(::write(answers, &byte, 1), "write");
    }
    ::_exit(0);
  }
  const int questions = open_fifo("/tmp/fifos/question", O_WRONLY);
  const int answers = open_fifo("/tmp/fifos/answer", O_RDONLY);
  const int quiet = open_fifo("/tmp/fifos/quiet", O_RDONLY | O_NONBLOCK);
  return {"FIFOs", [=] {
            char text[16] = {};
            report().equal("size of a FIFO", ::fcntl(reader, F_GETPIPE_SZ), 8192);
            report().equal("bytes in a FIFO", ::read(reader, text, sizeof text), 6);
            report().expect(std::string(text) == "inside", "a FIFO has other content");
            must(::write(writer, "inside", 6), "write");
            char byte = 'a';
            must(::write(questions, &byte, 1), "write");
            pollfd answered{answers, POLLIN, 0};
            report().equal("an answer by FIFO", ::poll(&answered, 1, 5000), 1);
            report().equal("bytes of an answer", ::read(answers, &byte, 1), 1);
            report().equal("the answer", byte, 'c');
            pollfd nothing{quiet, POLLIN, 0};
            report().equal("events of a quiet FIFO", ::poll(&nothing, 1, 0), 0);
            struct stat stat {};
            report().equal("stat of a FIFO", ::stat("/tmp/fifos/quiet", &stat), 0);
            report().equal("mode of a FIFO", stat.st_mode, S_IFIFO | 0640);
          }};
}

}  // namespace

void add_fifo_checks(std::vector<Check>& checks) { checks.push_back(fifos()); }

}  // namespace state
