#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cinttypes>
#include <fstream>

#include "checks.h"

namespace state {
namespace {

constexpr size_t kPage = 4096;
constexpr long kSysMseal = 462;  // Linux 6.10

// "rw-p" and the VmFlags line of the mapping at `address`, from smaps.
struct Seen {
  std::string permissions;
  std::string flags;
  size_t bytes = 0;
};

Seen look_up(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  Seen seen;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t start = 0, end = 0;
    char permissions[8] = {};
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %7s", &start, &end, permissions) ==
        3) {
      inside = start <= wanted && wanted < end;
      if (inside) {
        seen.permissions = permissions;
        seen.bytes = end - start;
      }
    } else if (inside && line.rfind("VmFlags: ", 0) == 0) {
      seen.flags = line.substr(8) + " ";
    }
  }
  return seen;
}

char* map(size_t pages, int protection, int flags) {
  void* at = ::mmap(nullptr, pages * kPage, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (at == MAP_FAILED) must(-1, "mmap");
  return static_cast<char*>(at);
}

Check mapping_check() {
  char* guarded = map(3, PROT_READ | PROT_WRITE, 0);
  guarded[0] = 'a';
  guarded[2 * kPage] = 'c';
  guarded[kPage] = 'b';
  must(::mprotect(guarded + kPage, kPage, PROT_NONE), "mprotect");
  char* locked = map(2, PROT_READ | PROT_WRITE, 0);
  must(::mlock(locked, 2 * kPage), "mlock");
  char* advised = map(16, PROT_READ | PROT_WRITE, 0);
  must(::madvise(advised, 4 * kPage, MADV_DONTFORK), "madvise");
  must(::madvise(advised + 4 * kPage, 4 * kPage, MADV_WIPEONFORK), "madvise");
  must(::madvise(advised + 8 * kPage, 4 * kPage, MADV_DONTDUMP), "madvise");
  must(::madvise(advised + 12 * kPage, 4 * kPage, MADV_NOHUGEPAGE), "madvise");
  // Two of four pages, one of which cannot be written to; kernels before 6.10 have no such call.
  char* sealed = map(4, PROT_READ | PROT_WRITE, 0);
  std::memset(sealed, 's', 3 * kPage);
  must(::mprotect(sealed + 2 * kPage, kPage, PROT_READ), "mprotect");
  const bool seals = ::syscall(kSysMseal, sealed + kPage, 2 * kPage, 0) == 0;
  char* read_only = map(1, PROT_READ | PROT_WRITE, 0);
  read_only[7] = 'r';
  must(::mprotect(read_only, kPage, PROT_READ), "mprotect");
  return {"mappings", [=] {
            report().expect(look_up(guarded + kPage).permissions == "---p", "a guard page is gone");
            report().equal("size of the guard",
                           static_cast<long long>(look_up(guarded + kPage).bytes), kPage);
            must(::mprotect(guarded + kPage, kPage, PROT_READ), "mprotect");
            report().equal("before the guard", guarded[0], 'a');
            report().equal("in the guard", guarded[kPage], 'b');
            report().equal("behind the guard", guarded[2 * kPage], 'c');
            must(::mprotect(guarded + kPage, kPage, PROT_NONE), "mprotect");
            report().expect(look_up(read_only).permissions == "r--p", "PROT_READ is gone");
            report().equal("a read-only page", read_only[7], 'r');
            const auto flag = [](const char* at, const char* wanted) {
              const Seen seen = look_up(at);
              report().expect(seen.flags.find(wanted) != std::string::npos,
                              "VmFlags has no" + std::string(wanted) + ":" + seen.flags);
            };
            flag(locked, " lo ");
            flag(advised, " dc ");
            flag(advised + 4 * kPage, " wf ");
            flag(advised + 8 * kPage, " dd ");
            flag(advised + 12 * kPage, " nh ");
            if (!seals) return;
            flag(sealed + kPage, " sl ");
            flag(sealed + 2 * kPage, " sl ");
            report().expect(look_up(sealed).flags.find(" sl ") == std::string::npos,
                            "a neighbour is sealed");
            report().expect(::mprotect(sealed + 2 * kPage, kPage, PROT_READ | PROT_WRITE) != 0,
                            "a sealed page can be made writable");
            for (int page = 0; page < 3; ++page)
              report().equal("a page around a seal", sealed[page * kPage + 5], 's');
          }};
}

// A child that locks what it maps from now on says how it is: 'l' locked, 'f' on the first fault.
Check future_locks_check() {
  struct Child {
    int ask = -1, answer = -1;
    char wanted = 0;
  };
  const auto start = [](int flags, char wanted) {
    int ask[2], answer[2];
    must(::pipe(ask), "pipe");
    must(::pipe(answer), "pipe");
    if (must(::fork(), "fork") == 0) {
      must(::mlockall(flags), "mlockall");
      ::close(ask[1]);
      for (char asked = 0; ::read(ask[0], &asked, 1) == 1;) {
        char* fresh = map(2, PROT_READ | PROT_WRITE, 0);
        unsigned char there = 0;
        must(::mincore(fresh, kPage, &there), "mincore");
        const std::string seen = look_up(fresh).flags;
        ::munmap(fresh, 2 * kPage);
        const bool locked = seen.find(" lo ") != std::string::npos;
        const char said = !locked ? '-' : (there & 1) != 0 ? 'l' : 'f';
        must(::write(answer[1], &said, 1), "write");
      }
      ::_exit(0);
    }
    return Child{ask[1], answer[0], wanted};
  };
  const Child children[] = {start(MCL_FUTURE, 'l'), start(MCL_FUTURE | MCL_ONFAULT, 'f'),
                            start(MCL_CURRENT, '-')};
  return {"locks of what is mapped later", [children] {
            for (const Child& child : children) {
              char said = 0;
              must(::write(child.ask, "?", 1), "write");
              must(::read(child.answer, &said, 1), "read");
              report().equal("a new mapping", said, child.wanted);
            }
          }};
}

// The stack of main has used little yet: after the move it must still grow by itself.
__attribute__((noinline)) void go_deep(size_t pages) {
  auto* memory = static_cast<volatile char*>(__builtin_alloca(pages * kPage));
  for (size_t page = pages; page-- > 0;) memory[page * kPage] = 1;
}

Check growing_check() {
  // Far from its neighbours below, so that it may grow.
  char* room = map(4096, PROT_NONE, MAP_NORESERVE);
  must(::munmap(room, 4096 * kPage), "munmap");
  void* at = ::mmap(room + 4000 * kPage, 2 * kPage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED) must(-1, "mmap(MAP_GROWSDOWN)");
  auto* stack = static_cast<char*>(at);
  stack[0] = 's';
  size_t deep = 0;
  return {"stacks that grow", [=]() mutable {
            deep = deep < 1200 ? deep + 300 : 300;
            report().equal("a growing mapping", stack[0], 's');
            report().expect(look_up(stack).flags.find(" gd ") != std::string::npos,
                            "MAP_GROWSDOWN is gone");
            go_deep(deep);
          }};
}

Check heap_check() {
  // malloc goes on above what is taken here. The break stands inside a page.
  auto* heap = static_cast<char*>(::sbrk(10 * kPage + 24));
  heap[5 * kPage] = 'h';
  return {"heap", [heap, end = static_cast<char*>(::sbrk(0))]() mutable {
            const auto moved = static_cast<char*>(::sbrk(0)) - end;
            // malloc takes whole pages.
            report().expect(moved == 0 || moved >= static_cast<long>(kPage),
                            "the break has moved by " + std::to_string(moved) + " bytes");
            report().equal("a page of the heap", heap[5 * kPage], 'h');
            auto* more = static_cast<char*>(::sbrk(kPage));
            report().expect(more > heap, "the break does not move");
            *more = 'm';
            end = static_cast<char*>(::sbrk(0));
          }};
}

std::string link_of(int fd) {
  char link[300] = {};
  (void)!::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), link, sizeof link - 1);
  return link;
}

// Shared by two processes and a descriptor, or mapped alone; one whose name is taken by now.
Check removed_files_check() {
  constexpr size_t kPages = 3;
  char name[] = "/dev/shm/state-removed-XXXXXX";
  const int fd = static_cast<int>(must(::mkstemp(name), "mkstemp"));
  must(::ftruncate(fd, kPages * kPage - 100), "ftruncate");
  auto* shared = static_cast<char*>(
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  must(::unlink(name), "unlink");
  std::strcpy(shared + kPage, "shared");
  auto* turns = reinterpret_cast<volatile int*>(shared + 2 * kPage);
  if (must(::fork(), "fork") == 0)
    for (;;) {
      *turns = *turns + 1;
      ::usleep(1000);
    }
  char other[] = "/tmp/state-removed-XXXXXX";
  const int alone = static_cast<int>(must(::mkstemp(other), "mkstemp"));
  const std::string text(kPages * kPage, 't');
  must(::write(alone, text.data(), text.size()), "write");
  const int reading = static_cast<int>(must(::open(other, O_RDONLY), "open"));
  auto* copied = static_cast<char*>(
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, reading, 0));
  auto* looked_at =
      static_cast<char*>(::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, reading, kPage));
  ::close(reading);
  ::close(alone);
  must(::unlink(other), "unlink");
  must(::close(static_cast<int>(must(::open(other, O_CREAT | O_RDWR, 0600), "open"))), "close");
  std::strcpy(copied + kPage, "copied");
  return {"removed files", [=, path = std::string(name)] {
            report().expect(link_of(fd) == path + " (deleted)", "a removed file is " + link_of(fd));
            struct stat of_fd {};
            ::fstat(fd, &of_fd);
            report().equal("size of a removed file", of_fd.st_size, kPages * kPage - 100);
            report().equal("names of a removed file", static_cast<long>(of_fd.st_nlink), 0);
            report().equal("a removed file", std::strcmp(shared + kPage, "shared"), 0);
            char seen[8] = {};
            report().equal("pread", ::pread(fd, seen, 7, kPage), 7);
            report().equal("a removed file by its descriptor", std::strcmp(seen, "shared"), 0);
            must(::pwrite(fd, "by fd", 6, 100), "pwrite");
            report().equal("one file under both", std::strcmp(shared + 100, "by fd"), 0);
            must(::pwrite(fd, "", 1, 100), "pwrite");
            const int before = *turns;
            report().expect(soon([&] { return *turns > before; }),
                            "another process's writes to a removed file do not come");
            report().equal("a page of a removed file", copied[0], 't');
            report().equal("a copied page", std::strcmp(copied + kPage, "copied"), 0);
            report().equal("the page below it", looked_at[0], 't');
            report().equal("mprotect", ::mprotect(looked_at, kPage, PROT_READ | PROT_WRITE), -1);
          }};
}

}  // namespace

void add_memory_checks(std::vector<Check>& checks) {
  checks.push_back(mapping_check());
  checks.push_back(future_locks_check());
  checks.push_back(growing_check());
  checks.push_back(heap_check());
  checks.push_back(removed_files_check());
}

}  // namespace state
