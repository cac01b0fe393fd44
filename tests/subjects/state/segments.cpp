// System V shared memory: attached twice, in part, read-only, by two processes, marked for removal,
// by nobody at all.
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#include <atomic>
#include <fstream>

#include "checks.h"

namespace state {
namespace {

constexpr size_t kPage = 4096;
constexpr key_t kKey = 0x60d717;
constexpr size_t kBytes = 5 * kPage + 100;
constexpr uid_t kCreator = 1234;

char* attach(int shmid, int flags) {
  void* at = ::shmat(shmid, nullptr, flags);
  if (reinterpret_cast<intptr_t>(at) == -1) must(-1, "shmat");
  return static_cast<char*>(at);
}

shmid_ds stat_of(int shmid) {
  shmid_ds ds{};
  report().equal("shmctl(IPC_STAT)", ::shmctl(shmid, IPC_STAT, &ds), 0);
  return ds;
}

std::string map_line(const char* address) {
  std::ifstream maps("/proc/self/maps");
  char start[32];
  std::snprintf(start, sizeof start, "%lx-", reinterpret_cast<unsigned long>(address));
  for (std::string line; std::getline(maps, line);)
    if (line.rfind(start, 0) == 0) return line;
  return "nothing";
}

Check attached_check() {
  must(::seteuid(kCreator), "seteuid");
  const int shmid =
      static_cast<int>(must(::shmget(kKey, kBytes, IPC_CREAT | IPC_EXCL | 0604), "shmget"));
  must(::seteuid(0), "seteuid");
  shmid_ds owner{};
  must(::shmctl(shmid, IPC_STAT, &owner), "shmctl");
  owner.shm_perm.uid = 77;
  owner.shm_perm.gid = 88;
  must(::shmctl(shmid, IPC_SET, &owner), "shmctl");
  char* whole = attach(shmid, 0);
  char* looks = attach(shmid, SHM_RDONLY);
  // Of this attach pages 1 and 3 remain, 3 at another place.
  char* parts = attach(shmid, 0);
  must(::munmap(parts, kPage), "munmap");
  must(::munmap(parts + 2 * kPage, kPage), "munmap");
  void* free_place = ::mmap(nullptr, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* moved =
      ::mremap(parts + 3 * kPage, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
  if (moved == MAP_FAILED) must(-1, "mremap");
  must(::munmap(parts + 4 * kPage, 2 * kPage), "munmap");
  std::strcpy(whole + kPage, "written");
  auto* turns = reinterpret_cast<std::atomic<int>*>(whole + 3 * kPage);
  if (must(::fork(), "fork") == 0) {
    ::munmap(parts + kPage, kPage);
    ::munmap(moved, kPage);
    ::shmdt(looks);
    for (;;) {
      turns->fetch_add(1);
      ::usleep(1000);
    }
  }
  // Twice here, two parts, the child's, and those of all children that are still to come.
  return {"segments", [=, attaches = 0L]() mutable {
            const shmid_ds ds = stat_of(shmid);
            if (attaches == 0) attaches = static_cast<long>(ds.shm_nattch);
            report().equal("key of a segment", ds.shm_perm.__key, kKey);
            report().equal("size of a segment", static_cast<long>(ds.shm_segsz), kBytes);
            report().equal("mode of a segment", ds.shm_perm.mode, 0604);
            report().equal("owner of a segment", ds.shm_perm.uid, 77);
            report().equal("group of a segment", ds.shm_perm.gid, 88);
            report().equal("creator of a segment", ds.shm_perm.cuid, kCreator);
            report().equal("attaches of a segment", static_cast<long>(ds.shm_nattch), attaches);
            report().equal("shmget by key", ::shmget(kKey, 0, 0), shmid);
            report().equal("content of a segment", std::strcmp(looks + kPage, "written"), 0);
            report().equal("a part of a segment", std::strcmp(parts + kPage, "written"), 0);
            const int before = *turns;
            report().expect(soon([&] { return *turns > before; }),
                            "another process's writes do not come");
            report().expect(*static_cast<std::atomic<int>*>(moved) >= before,
                            "a part of a segment elsewhere");
            report().expect(map_line(looks).find(" r--s ") != std::string::npos,
                            "read-only: " + map_line(looks));
            report().equal("mprotect of a read-only attach",
                           ::mprotect(looks, kPage, PROT_READ | PROT_WRITE), -1);
            report().expect(map_line(whole).find("/SYSV0060d717 (deleted)") != std::string::npos,
                            "name of a segment: " + map_line(whole));
            char* again = attach(shmid, 0);
            report().equal("attaches with another", static_cast<long>(stat_of(shmid).shm_nattch),
                           attaches + 1);
            report().equal("shmdt", ::shmdt(again), 0);
          }};
}

// With a key that was used again since.
Check removed_check() {
  const int removed = static_cast<int>(must(::shmget(kKey + 1, kPage, IPC_CREAT | 0600), "shmget"));
  char* at = attach(removed, 0);
  must(::shmctl(removed, IPC_RMID, nullptr), "shmctl(IPC_RMID)");
  const int after =
      static_cast<int>(must(::shmget(kKey + 1, kPage, IPC_CREAT | IPC_EXCL | 0600), "shmget"));
  std::strcpy(at, "still here");
  char* for_a_moment = attach(after, 0);
  std::strcpy(for_a_moment, "nobody looks");
  must(::shmdt(for_a_moment), "shmdt");
  return {"removed segments", [=, attaches = 0L]() mutable {
            const shmid_ds ds = stat_of(removed);
            if (attaches == 0) attaches = static_cast<long>(ds.shm_nattch);
            report().equal("mark for removal", ds.shm_perm.mode & SHM_DEST, SHM_DEST);
            report().equal("key of a removed segment", ds.shm_perm.__key, 0);
            report().equal("attaches of a removed segment", static_cast<long>(ds.shm_nattch),
                           attaches);
            report().equal("content of a removed segment", std::strcmp(at, "still here"), 0);
            report().equal("attaches of nobody's segment",
                           static_cast<long>(stat_of(after).shm_nattch), 0);
            char* seen = attach(after, SHM_RDONLY);
            report().equal("content of nobody's segment", std::strcmp(seen, "nobody looks"), 0);
            report().equal("shmdt", ::shmdt(seen), 0);
          }};
}

}  // namespace

void add_segment_checks(std::vector<Check>& checks) {
  checks.push_back(attached_check());
  checks.push_back(removed_check());
}

}  // namespace state
