// A subject with memory of explicit huge pages of all kinds, which it checks when it is asked.
//
//   huge_pages PORT [KIB]
//
// A page has KIB KiB, 2048 if nothing is said; of larger ones it has little. It answers as
// state_check does.
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <fstream>
#include <thread>

#include "state/checks.h"

namespace state {

Report& report() {
  static Report one;
  return one;
}

}  // namespace state

namespace {

using state::Check;
using state::must;
using state::report;

size_t page_bytes = size_t{2} << 20;
int size_flag = 21 << 26;  // MAP_HUGE_SHIFT, also that of memfd_create(2) and shmget(2)

struct Seen {
  std::string permissions;
  std::string flags;
  std::string path;
  long long bytes = 0;
  long long page_kib = 0;
  long long there_kib = 0;
};

// The mapping that `address` is in.
Seen look_up(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  Seen seen;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t start = 0, end = 0;
    char permissions[8] = {};
    long long value = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %7s", &start, &end, permissions) ==
        3) {
      inside = start <= wanted && wanted < end;
      if (!inside) continue;
      seen.permissions = permissions;
      seen.bytes = static_cast<long long>(end - start);
      const size_t path = line.find('/');
      if (path != std::string::npos) seen.path = line.substr(path);
    } else if (inside && line.rfind("VmFlags: ", 0) == 0) {
      seen.flags = line.substr(8) + " ";
    } else if (inside && std::sscanf(line.c_str(), "KernelPageSize: %lld", &value) == 1) {
      seen.page_kib = value;
    } else if (inside && (std::sscanf(line.c_str(), "Private_Hugetlb: %lld", &value) == 1 ||
                          std::sscanf(line.c_str(), "Shared_Hugetlb: %lld", &value) == 1)) {
      seen.there_kib += value;
    }
  }
  return seen;
}

char* map(size_t pages, int flags, int fd = -1) {
  void* at = ::mmap(nullptr, pages * page_bytes, PROT_READ | PROT_WRITE,
                    flags | (fd < 0 ? MAP_ANONYMOUS | MAP_HUGETLB | size_flag : 0), fd, 0);
  if (at == MAP_FAILED) must(-1, "mmap");
  return static_cast<char*>(at);
}

// Of every 4 KiB, so that no part of a page can be missing.
void fill(char* page, char seed) {
  for (size_t at = 0; at < page_bytes; at += 4096) {
    page[at] = static_cast<char>(seed + at / 4096);
    page[at + 4095] = seed;
  }
}

void expect_filled(const char* what, const char* page, char seed) {
  for (size_t at = 0; at < page_bytes; at += 4096)
    if (page[at] != static_cast<char>(seed + at / 4096) || page[at + 4095] != seed) {
      report().add(std::string(what) + " has other contents at " + std::to_string(at));
      return;
    }
}

void expect_zero(const char* what, const char* page) {
  for (size_t at = 0; at < page_bytes; at += 512)
    if (page[at] != 0) {
      report().add(std::string(what) + " is not zero at " + std::to_string(at));
      return;
    }
}

void expect_mapping(const char* what, const void* at, const char* permissions, size_t pages,
                    size_t there) {
  const Seen seen = look_up(at);
  const auto kib = static_cast<long long>(page_bytes >> 10);
  report().expect(seen.permissions == permissions,
                  std::string(what) + " is " + seen.permissions + ", not " + permissions);
  report().equal((std::string(what) + ": bytes").c_str(), seen.bytes,
                 static_cast<long long>(pages * page_bytes));
  report().equal((std::string(what) + ": KiB a page").c_str(), seen.page_kib, kib);
  report().equal((std::string(what) + ": pages there").c_str(), seen.there_kib / kib,
                 static_cast<long long>(there));
  report().expect(seen.flags.find(" ht ") != std::string::npos,
                  std::string(what) + " has flags" + seen.flags);
}

// Of all of what a shared mapping shows, who ever touched it.
void expect_object(const char* what, const void* at, size_t pages) {
  const Seen seen = look_up(at);
  char link[64];
  std::snprintf(link, sizeof link, "/proc/self/map_files/%lx-%lx",
                reinterpret_cast<unsigned long>(at),
                reinterpret_cast<unsigned long>(at) + static_cast<unsigned long>(seen.bytes));
  struct stat stat {};
  report().equal((std::string(what) + ": stat").c_str(), ::stat(link, &stat), 0);
  report().equal((std::string(what) + ": pages in all").c_str(),
                 stat.st_blocks * 512 / static_cast<long>(page_bytes),
                 static_cast<long long>(pages));
}

Check protections_check() {
  // Filled, untouched, dropped, read-only, PROT_NONE, unmapped, of zeros.
  char* pages = map(7, MAP_PRIVATE);
  fill(pages, 'a');
  fill(pages + 2 * page_bytes, 'x');
  must(::madvise(pages + 2 * page_bytes, page_bytes, MADV_DONTNEED), "madvise");
  fill(pages + 3 * page_bytes, 'r');
  must(::mprotect(pages + 3 * page_bytes, page_bytes, PROT_READ), "mprotect");
  fill(pages + 4 * page_bytes, 'n');
  must(::mprotect(pages + 4 * page_bytes, page_bytes, PROT_NONE), "mprotect");
  must(::munmap(pages + 5 * page_bytes, page_bytes), "munmap");
  pages[6 * page_bytes] = 1;
  pages[6 * page_bytes] = 0;
  return {"private", [=] {
            expect_mapping("private", pages, "rw-p", 3, 1);
            expect_mapping("read-only", pages + 3 * page_bytes, "r--p", 1, 1);
            expect_mapping("PROT_NONE", pages + 4 * page_bytes, "---p", 1, 1);
            report().expect(look_up(pages + 5 * page_bytes).permissions.empty(),
                            "what was unmapped is there");
            expect_mapping("zeros", pages + 6 * page_bytes, "rw-p", 1, 1);
            expect_filled("private", pages, 'a');
            expect_filled("read-only", pages + 3 * page_bytes, 'r');
            must(::mprotect(pages + 4 * page_bytes, page_bytes, PROT_READ), "mprotect");
            expect_filled("PROT_NONE", pages + 4 * page_bytes, 'n');
            must(::mprotect(pages + 4 * page_bytes, page_bytes, PROT_NONE), "mprotect");
            expect_zero("zeros", pages + 6 * page_bytes);
          }};
}

// A child that got these pages by fork(2) and a parent, both of which write to theirs.
Check forked_check() {
  char* own = map(2, MAP_PRIVATE);
  char* shared = map(1, MAP_SHARED);
  fill(own, 'f');
  fill(own + page_bytes, 'g');
  auto* turns = reinterpret_cast<std::atomic<long>*>(shared);
  auto* wrong = turns + 1;
  if (must(::fork(), "fork") == 0) {
    for (long turn = 1;; ++turn) {
      if (own[4095] != 'f' || own[page_bytes + 4095] != (turn == 1 ? 'g' : 'c')) wrong->store(turn);
      own[page_bytes + 4095] = 'c';
      turns->store(turn);
      ::usleep(1000);
    }
  }
  while (turns->load() == 0) ::usleep(1000);
  own[page_bytes + 4095] = 'p';
  return {"forked", [=, before = 0L]() mutable {
            expect_mapping("forked", own, "rw-p", 2, 2);
            expect_filled("what both have", own, 'f');
            report().equal("the parent's own", own[page_bytes + 4095], 'p');
            report().equal("the child's is wrong in turn", wrong->load(), 0);
            report().expect(state::soon([&] { return turns->load() > before; }),
                            "the child does not run");
            before = turns->load();
          }};
}

Check shared_check() {
  char* shared = map(3, MAP_SHARED);
  fill(shared + page_bytes, 's');
  return {"shared", [=] {
            expect_filled("shared", shared + page_bytes, 's');
            expect_mapping("shared", shared, "rw-s", 3, 1);
            expect_object("shared", shared, 1);
            report().expect(look_up(shared).path == "/anon_hugepage (deleted)", "shared: its name");
          }};
}

Check memfd_check() {
  const int fd = static_cast<int>(must(
      ::memfd_create("large", MFD_HUGETLB | MFD_ALLOW_SEALING | static_cast<unsigned>(size_flag)),
      "memfd_create"));
  must(::ftruncate(fd, static_cast<off_t>(4 * page_bytes)), "ftruncate");
  must(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "F_ADD_SEALS");
  char* memory = map(4, MAP_SHARED, fd);
  char* second = static_cast<char*>(
      ::mmap(nullptr, page_bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(2 * page_bytes)));
  if (second == MAP_FAILED) must(-1, "mmap");
  fill(memory + 2 * page_bytes, 'm');
  // Nobody maps it.
  const int alone = static_cast<int>(
      must(::memfd_create("alone", MFD_HUGETLB | static_cast<unsigned>(size_flag)), "memfd"));
  must(::ftruncate(alone, static_cast<off_t>(2 * page_bytes)), "ftruncate");
  char* for_now = map(2, MAP_SHARED, alone);
  fill(for_now + page_bytes, 'l');
  must(::munmap(for_now, 2 * page_bytes), "munmap");
  must(::lseek(alone, 77, SEEK_SET), "lseek");
  return {"memfd", [=] {
            expect_filled("memfd", memory + 2 * page_bytes, 'm');
            expect_filled("second view", second, 'm');
            expect_mapping("memfd", memory, "rw-s", 4, 1);
            expect_mapping("second view", second, "r--s", 1, 1);
            expect_object("memfd", memory, 1);
            struct stat stat {};
            must(::fstat(alone, &stat), "fstat");
            report().equal("size of one that is not mapped", stat.st_size,
                           static_cast<long long>(2 * page_bytes));
            report().equal("pages of it", stat.st_blocks * 512 / static_cast<long>(page_bytes), 1);
            report().equal("bytes in a page of it", stat.st_blksize,
                           static_cast<long long>(page_bytes));
            report().equal("its offset", ::lseek(alone, 0, SEEK_CUR), 77);
            std::string content(page_bytes, '\0');
            must(::pread(alone, content.data(), page_bytes, static_cast<off_t>(page_bytes)),
                 "pread");
            expect_filled("one that is not mapped", content.data(), 'l');
            report().equal("seals", ::fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
          }};
}

char* attach(int shmid, int flags) {
  void* at = ::shmat(shmid, nullptr, flags);
  if (reinterpret_cast<intptr_t>(at) == -1) must(-1, "shmat");
  return static_cast<char*>(at);
}

Check segment_check() {
  const size_t bytes = 3 * page_bytes - 12345;
  const int flags = IPC_CREAT | IPC_EXCL | 0640 | SHM_HUGETLB | size_flag;
  const int shmid = static_cast<int>(must(::shmget(0x60d8, bytes, flags), "shmget"));
  char* whole = attach(shmid, 0);
  char* part = attach(shmid, SHM_RDONLY);
  must(::munmap(part, page_bytes), "munmap");
  must(::munmap(part + 2 * page_bytes, page_bytes), "munmap");
  part += page_bytes;
  fill(whole + page_bytes, 'w');
  const int alone = static_cast<int>(must(::shmget(0x60d9, 5000, flags), "shmget"));
  char* for_now = attach(alone, 0);
  fill(for_now, 'u');
  must(::shmdt(for_now), "shmdt");
  return {"segments", [=] {
            shmid_ds ds{};
            must(::shmctl(shmid, IPC_STAT, &ds), "shmctl");
            report().equal("size of a segment", static_cast<long long>(ds.shm_segsz),
                           static_cast<long long>(bytes));
            report().equal("attaches", static_cast<long long>(ds.shm_nattch), 2);
            expect_filled("segment", whole + page_bytes, 'w');
            expect_filled("part of it", part, 'w');
            expect_mapping("segment", whole, "rw-s", 3, 1);
            expect_mapping("part of it", part, "r--s", 1, 1);
            expect_object("segment", whole, 1);
            must(::shmctl(alone, IPC_STAT, &ds), "shmctl");
            report().equal("size of one without attaches", static_cast<long long>(ds.shm_segsz),
                           5000);
            char* look = attach(alone, 0);
            expect_filled("without attaches", look, 'u');
            expect_mapping("without attaches", look, "rw-s", 1, 1);
            must(::shmdt(look), "shmdt");
          }};
}

Check no_reserve_check() {
  char* large = map(4096, MAP_PRIVATE | MAP_NORESERVE);
  fill(large + 1000 * page_bytes, 'o');
  return {"not reserved", [=] {
            expect_mapping("not reserved", large, "rw-p", 4096, 1);
            report().expect(look_up(large).flags.find(" nr ") != std::string::npos,
                            "MAP_NORESERVE is gone");
            expect_filled("not reserved", large + 1000 * page_bytes, 'o');
          }};
}

// Pages that change all the time: written in places, dropped, read as zeros, written again, and
// mapped anew.
Check changing_check() {
  struct Turns {
    std::atomic<long> count{0};
    std::atomic<long> wrong{0};
  };
  auto* turns = new Turns;
  std::thread([turns] {
    char* pages = map(3, MAP_PRIVATE);
    for (long turn = 1;; ++turn) {
      auto* counter = reinterpret_cast<volatile long*>(pages + 8 * (turn % 1000));
      *counter = turn;
      char* dropped = pages + page_bytes;
      fill(dropped, static_cast<char>(turn));
      ::usleep(300);
      if (dropped[4095] != static_cast<char>(turn)) turns->wrong.store(turn);
      if (::madvise(dropped, page_bytes, MADV_DONTNEED) != 0) turns->wrong.store(turn);
      if (turn % 2 == 0) {
        // Zeros that were only ever read.
        for (int i = 0; i < 3; ++i) {
          for (size_t at = 0; at < page_bytes; at += 4096)
            if (dropped[at] != 0 || dropped[at + 4095] != 0) turns->wrong.store(turn);
          ::usleep(300);
        }
      }
      if (turn % 7 == 0) {
        char* last = pages + 2 * page_bytes;
        if (turn > 7 && last[100] != 7) turns->wrong.store(turn);
        if (::mmap(last, page_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED | size_flag, -1,
                   0) != last ||
            last[100] != 0)
          turns->wrong.store(turn);
        last[100] = 7;
      }
      if (*counter != turn) turns->wrong.store(turn);
      turns->count.store(turn);
    }
  }).detach();
  return {"changing", [=, before = 0L]() mutable {
            report().expect(state::soon([&] { return turns->count.load() > before + 20; }),
                            "its thread does not run");
            before = turns->count.load();
            report().equal("was wrong in turn", turns->wrong.load(), 0);
          }};
}

// One page of each kind, of a size of which there are few.
Check large_check() {
  char* own = map(1, MAP_PRIVATE);
  own[0] = 'p';
  own[page_bytes - 1] = 'q';
  std::thread([own] {
    for (long turn = 1;; ++turn) {
      *reinterpret_cast<volatile long*>(own + 8192) = turn;
      *reinterpret_cast<volatile long*>(own + page_bytes / 2) = turn;
      ::usleep(1000);
    }
  }).detach();
  return {"large", [=, before = 0L]() mutable {
            expect_mapping("large", own, "rw-p", 1, 1);
            report().equal("first byte", own[0], 'p');
            report().equal("last byte", own[page_bytes - 1], 'q');
            const auto* first = reinterpret_cast<volatile long*>(own + 8192);
            const auto* second = reinterpret_cast<volatile long*>(own + page_bytes / 2);
            report().expect(state::soon([&] { return *second > before; }), "it does not change");
            const long low = *second;
            const long high = *first;
            report().expect(low <= high && high - low < 1000, "two counters are too far apart");
            before = low;
          }};
}

std::string answer(const std::vector<Check>& checks) {
  std::string text;
  for (const Check& one : checks) {
    one.check();
    for (const std::string& line : report().take())
      text += std::string(one.name) + ": " + line + "\n";
  }
  return text.empty() ? "OK " + std::to_string(checks.size()) + "\n" : text + "END\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) return 2;
  std::vector<Check> checks;
  if (argc == 3) {
    page_bytes = std::strtoul(argv[2], nullptr, 10) << 10;
    size_flag = __builtin_ctzl(page_bytes) << 26;
    checks = {large_check()};
  } else {
    checks = {forked_check(),  protections_check(), shared_check(),  memfd_check(),
              segment_check(), no_reserve_check(),  changing_check()};
  }
  const int listener = static_cast<int>(must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(argv[1])));
  must(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
  must(::listen(listener, 16), "listen");
  std::puts("ready");
  std::fflush(stdout);
  for (;;) {
    const int client = ::accept(listener, nullptr, nullptr);
    if (client < 0) return 1;
    char bytes[64];
    while (::read(client, bytes, sizeof bytes) > 0) {
      const std::string text = answer(checks);
      if (::write(client, text.data(), text.size()) < 0) break;
    }
    ::close(client);
  }
}
