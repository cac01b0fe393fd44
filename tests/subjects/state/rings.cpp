// Rings of io_uring, without a library: entries that are not submitted yet, results that nobody has
// read, a ring that only the first thread may use, registered files and an eventfd.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "checks.h"

namespace state {
namespace {

class Ring {
 public:
  Ring(unsigned entries, unsigned setup) {
    params_.flags = setup;
    fd_ =
        static_cast<int>(must(::syscall(SYS_io_uring_setup, entries, &params_), "io_uring_setup"));
    const size_t bytes = params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe);
    const size_t with_array = params_.sq_off.array + params_.sq_entries * sizeof(unsigned);
    rings_ = map(bytes > with_array ? bytes : with_array, IORING_OFF_SQ_RING);
    entries_ = reinterpret_cast<io_uring_sqe*>(
        map(params_.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
  }
  int fd() const { return fd_; }
  // An entry that the kernel does not know of until submit().
  void add(unsigned char opcode, int file, void* buffer, unsigned bytes, unsigned long mark,
           unsigned char flags = 0) {
    const unsigned at = tail_ & (params_.sq_entries - 1);
    io_uring_sqe& entry = entries_[at];
    entry = {};
    entry.opcode = opcode;
    entry.fd = file;
    entry.addr = reinterpret_cast<unsigned long>(buffer);
    entry.len = bytes;
    entry.user_data = mark;
    entry.flags = flags;
    reinterpret_cast<unsigned*>(rings_ + params_.sq_off.array)[at] = at;
    __atomic_store_n(at_(params_.sq_off.tail), ++tail_, __ATOMIC_RELEASE);
  }
  long submit(unsigned count, unsigned wait = 0) {
    return ::syscall(SYS_io_uring_enter, fd_, count, wait, wait > 0 ? IORING_ENTER_GETEVENTS : 0,
                     nullptr, 0);
  }
  // Mark and result of the next one; -1 and -1: there is none.
  std::pair<long long, long long> next() {
    if (__atomic_load_n(at_(params_.cq_off.tail), __ATOMIC_ACQUIRE) == head_) return {-1, -1};
    const auto* results = reinterpret_cast<const io_uring_cqe*>(rings_ + params_.cq_off.cqes);
    const io_uring_cqe result = results[head_ & (params_.cq_entries - 1)];
    __atomic_store_n(at_(params_.cq_off.head), ++head_, __ATOMIC_RELEASE);
    return {static_cast<long long>(result.user_data), result.res};
  }
  long attach(unsigned what, const void* argument, unsigned count) {
    return ::syscall(SYS_io_uring_register, fd_, what, argument, count);
  }

 private:
  char* map(size_t bytes, unsigned long long offset) const {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_,
                      static_cast<off_t>(offset));
    if (at == MAP_FAILED) must(-1, "mmap of a ring");
    return static_cast<char*>(at);
  }
  unsigned* at_(unsigned offset) const { return reinterpret_cast<unsigned*>(rings_ + offset); }
  io_uring_params params_{};
  int fd_ = -1;
  char* rings_ = nullptr;
  io_uring_sqe* entries_ = nullptr;
  unsigned tail_ = 0;  // as the program counts
  unsigned head_ = 0;
};

using Pair = std::pair<long long, long long>;

void expect(Ring& ring, Pair wanted, const char* what) {
  // A wait for it may have been ended by a signal.
  Pair got = ring.next();
  if (wanted.first >= 0 && got.first < 0)
    soon([&] {
      ring.submit(0, 1);
      return (got = ring.next()).first >= 0;
    });
  report().expect(got == wanted, std::string(what) + " is " + std::to_string(got.first) + " " +
                                     std::to_string(got.second));
}

Check ring_of(const char* name, unsigned entries, unsigned setup, bool attached) {
  auto* ring = new Ring(entries, setup);
  const int file = static_cast<int>(must(::memfd_create("ring", MFD_CLOEXEC), "memfd_create"));
  must(::write(file, "content", 7), "write");
  const int event = static_cast<int>(must(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
  if (attached) {
    const int files[] = {-1, file, -1};
    must(ring->attach(IORING_REGISTER_FILES, files, 3), "IORING_REGISTER_FILES");
    must(ring->attach(IORING_REGISTER_EVENTFD, &event, 1), "IORING_REGISTER_EVENTFD");
  }
  const int used = attached ? 1 : file;
  const unsigned char flags = attached ? IOSQE_FIXED_FILE : 0;
  static char buffer[16];
  const auto leave = [=] {
    ring->add(IORING_OP_READ, used, buffer, 7, 81, flags);
    ring->add(IORING_OP_READ, used, buffer, 3, 82, flags);
    must(ring->submit(2, 2), "io_uring_enter");
    ring->add(IORING_OP_NOP, -1, nullptr, 0, 83);  // not submitted
  };
  leave();
  return {name, [=] {
            expect(*ring, {81, 7}, "the first result");
            expect(*ring, {82, 3}, "the second result");
            expect(*ring, {-1, -1}, "what comes without being submitted");
            report().equal("entries taken", ring->submit(1, 1), 1);
            expect(*ring, {83, 0}, "the entry that was not submitted");
            unsigned long count = 0;
            const long events = ::read(event, &count, sizeof count);
            report().expect(attached ? events == 8 && count > 0 : events < 0, "events are wrong");
            for (int i = 0; i < 300; ++i) {
              ring->add(IORING_OP_READ, used, buffer, 1, 1000UL + static_cast<unsigned>(i), flags);
              report().equal("a request", ring->submit(1, 1), 1);
              expect(*ring, {1000 + i, 1}, "its result");
            }
            if (attached) {
              report().equal("an event", ::read(event, &count, sizeof count), 8);
              // One that defers its work gives one more for each.
              report().expect(count == 300 || count == 600, "events: " + std::to_string(count));
            }
            leave();
          }};
}

}  // namespace

void add_ring_checks(std::vector<Check>& checks) {
  checks.push_back(ring_of("io_uring", 8, 0, false));
  checks.push_back(ring_of("io_uring with files", 4, IORING_SETUP_CLAMP, true));
  checks.push_back(ring_of("io_uring of one thread", 16,
                           IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, true));
}

}  // namespace state
