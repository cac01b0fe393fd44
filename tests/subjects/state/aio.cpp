// Queues of asynchronous I/O: events that nobody has read, and requests that the next move finds
// ended.
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "checks.h"

namespace state {
namespace {

struct Ring {  // fs/aio.c
  unsigned id;
  unsigned events;
  unsigned head;
  unsigned tail;
};

unsigned long set_up(unsigned requests) {
  unsigned long queue = 0;
  must(::syscall(SYS_io_setup, requests, &queue), "io_setup");
  return queue;
}

void submit(unsigned long queue, int file, unsigned opcode, void* at, unsigned long bytes,
            unsigned long mark, int event = -1) {
  iocb request{};
  request.aio_lio_opcode = static_cast<unsigned short>(opcode);
  request.aio_fildes = static_cast<unsigned>(file);
  request.aio_buf = reinterpret_cast<unsigned long>(at);
  request.aio_nbytes = bytes;
  request.aio_data = mark;
  if (event >= 0) {
    request.aio_flags = IOCB_FLAG_RESFD;
    request.aio_resfd = static_cast<unsigned>(event);
  }
  iocb* list[] = {&request};
  must(::syscall(SYS_io_submit, queue, 1, list), "io_submit");
}

// The mark and result of the next event; -1 and -1: there is none.
std::pair<long long, long long> next(unsigned long queue) {
  timespec none{};
  io_event event{};
  if (::syscall(SYS_io_getevents, queue, 0, 1, &event, &none) != 1) return {-1, -1};
  return {static_cast<long long>(event.data), static_cast<long long>(event.res)};
}

Check queues() {
  const unsigned long first = set_up(1);
  const unsigned long queue = set_up(150);
  must(::syscall(SYS_io_destroy, first), "io_destroy");  // the other one stays number 1
  const int file = static_cast<int>(must(::memfd_create("aio", 0), "memfd_create"));
  must(::write(file, "content", 7), "write");
  static char buffer[16];
  const auto leave_two = [=] {
    submit(queue, file, IOCB_CMD_PREAD, buffer, 7, 71);
    submit(queue, file, IOCB_CMD_PREAD, buffer, 3, 72);
  };
  leave_two();
  return {"asynchronous I/O", [=, turns = 0U]() mutable {
            const auto* ring = reinterpret_cast<const Ring*>(queue);
            report().equal("number of the queue", ring->id, 1);
            report().equal("tail", ring->tail, (2 + turns * 52) % ring->events);
            report().expect(next(queue) == std::pair(71LL, 7LL), "the first event is another one");
            report().expect(next(queue) == std::pair(72LL, 3LL), "the second event is another one");
            report().expect(next(queue) == std::pair(-1LL, -1LL), "there is a third event");
            for (unsigned i = 0; i < 50; ++i) {  // round it goes, turn by turn
              submit(queue, file, IOCB_CMD_PREAD, buffer, 1, i);
              report().expect(next(queue) == std::pair(static_cast<long long>(i), 1LL),
                              "an event of a new request is another one");
            }
            const unsigned long another = set_up(1);
            report().equal("number of the next queue", reinterpret_cast<const Ring*>(another)->id,
                           0);
            ::syscall(SYS_io_destroy, another);
            leave_two();
            ++turns;
          }};
}

}  // namespace

void add_aio_checks(std::vector<Check>& checks) { checks.push_back(queues()); }

}  // namespace state
