#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <iterator>

#include "checks.h"

namespace state {
namespace {

// Shared by the process and its children.
struct Shared {
  pthread_mutex_t counted;   // guards count
  pthread_mutex_t orphaned;  // held by a child until it is killed
  long count;
  long count_again;
  std::atomic<long> held;
};

void init_mutex(pthread_mutex_t* mutex) {
  pthread_mutexattr_t attributes;
  ::pthread_mutexattr_init(&attributes);
  ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  ::pthread_mutex_init(mutex, &attributes);
}

[[noreturn]] void count_for_ever(Shared* shared) {
  const timespec nap{0, 1'000'000};
  for (;;) {
    if (::pthread_mutex_lock(&shared->counted) != 0 || shared->count != shared->count_again)
      ::_exit(1);
    ++shared->count;
    ++shared->count_again;
    ::pthread_mutex_unlock(&shared->counted);
    ::nanosleep(&nap, nullptr);
  }
}

pid_t fork_holder(Shared* shared) {
  shared->held = 0;
  const auto pid = static_cast<pid_t>(must(::fork(), "fork"));
  if (pid == 0) {
    ::pthread_mutex_lock(&shared->orphaned);
    shared->held = 1;
    for (;;) ::pause();
  }
  if (!soon([&] { return shared->held == 1; })) must(-1, "a child that locks a mutex");
  return pid;
}

Check shared_memory_check() {
  auto* shared = static_cast<Shared*>(
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  init_mutex(&shared->counted);
  init_mutex(&shared->orphaned);
  const auto counter = static_cast<pid_t>(must(::fork(), "fork"));
  if (counter == 0) count_for_ever(shared);
  pid_t holder = fork_holder(shared);
  return {"memory and mutexes shared by processes", [=]() mutable {
            const auto counted = [&] {
              report().equal("pthread_mutex_lock", ::pthread_mutex_lock(&shared->counted), 0);
              const long value = shared->count;
              report().equal("the shared count", shared->count_again, value);
              ::pthread_mutex_unlock(&shared->counted);
              return value;
            };
            const long before = counted();
            report().expect(soon([&] { return counted() > before; }), "a child counts no more");
            report().equal("trylock", ::pthread_mutex_trylock(&shared->orphaned), EBUSY);
            ::kill(holder, SIGKILL);
            int status = 0;
            report().equal("waitpid", ::waitpid(holder, &status, 0), holder);
            report().equal("lock of a dead process's mutex",
                           ::pthread_mutex_lock(&shared->orphaned), EOWNERDEAD);
            ::pthread_mutex_consistent(&shared->orphaned);
            ::pthread_mutex_unlock(&shared->orphaned);
            holder = fork_holder(shared);
          }};
}

pid_t fork_zombie(int code, int number) {
  const auto pid = static_cast<pid_t>(must(::fork(), "fork"));
  if (pid == 0) {
    if (number != 0) {
      ::signal(number, SIG_DFL);
      ::raise(number);
    }
    ::_exit(code);
  }
  siginfo_t info{};
  must(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
  return pid;
}

Check zombie_check() {
  pid_t ended = fork_zombie(33, 0), killed = fork_zombie(0, SIGTERM);
  return {"zombies", [=]() mutable {
            int status = 0;
            report().equal("waitpid", ::waitpid(ended, &status, WNOHANG), ended);
            report().equal("exit status of a zombie", status, 33 << 8);
            report().equal("waitpid", ::waitpid(killed, &status, WNOHANG), killed);
            report().equal("signal of a zombie", status, SIGTERM);
            ended = fork_zombie(33, 0);
            killed = fork_zombie(0, SIGTERM);
          }};
}

Check session_check() {
  int ready[2];
  must(::pipe(ready), "pipe");
  const auto leader = static_cast<pid_t>(must(::fork(), "fork"));
  if (leader == 0) {
    ::setsid();
    must(::write(ready[1], "x", 1), "write");
    for (;;) ::pause();
  }
  const auto grouped = static_cast<pid_t>(must(::fork(), "fork"));
  if (grouped == 0) {
    ::setpgid(0, 0);
    must(::write(ready[1], "x", 1), "write");
    for (;;) ::pause();
  }
  char two[2];
  must(::read(ready[0], two, 1), "read");
  must(::read(ready[0], two, 1), "read");
  return {"sessions and groups",
          [=, own_group = ::getpgrp(), own_session = ::getsid(0), parent = ::getppid()] {
            report().equal("getsid of a leader", ::getsid(leader), leader);
            report().equal("getpgid of a leader", ::getpgid(leader), leader);
            report().equal("getpgid of a group", ::getpgid(grouped), grouped);
            report().equal("getsid of a group", ::getsid(grouped), own_session);
            report().equal("getpgrp", ::getpgrp(), own_group);
            report().equal("getsid", ::getsid(0), own_session);
            report().equal("getppid", ::getppid(), parent);
          }};
}

std::string whole(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Check attribute_check() {
  ::umask(027);
  static constexpr char kFolder[] = "/tmp/state_check\xfc";  // a name is bytes, not a text
  if (::mkdir(kFolder, 0700) != 0 && errno != EEXIST) must(-1, "mkdir");
  must(::chdir(kFolder), "chdir");
  const rlimit files{500, 600}, core{0, 0};
  must(::setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
  must(::setrlimit(RLIMIT_CORE, &core), "setrlimit");
  must(::prctl(PR_SET_NAME, "state name"), "PR_SET_NAME");
  must(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
  must(::prctl(PR_SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER");
  must(::prctl(PR_SET_TIMERSLACK, 70000), "PR_SET_TIMERSLACK");
  must(::prctl(PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE");
  must(::setpriority(PRIO_PROCESS, 0, 5), "setpriority");
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);
  must(::sched_setaffinity(0, sizeof cpus, &cpus), "sched_setaffinity");
  return {"attributes",
          [=, command = whole("/proc/self/cmdline"), pid = ::getpid(),
           environment = whole("/proc/self/environ"), auxiliary = whole("/proc/self/auxv")] {
            report().equal("getpid", ::getpid(), pid);
            const mode_t mask = ::umask(027);
            report().equal("umask", mask, 027);
            char path[200] = {};
            report().expect(::getcwd(path, sizeof path) != nullptr && std::string(path) == kFolder,
                            std::string("the working directory is ") + path);
            rlimit limit{};
            ::getrlimit(RLIMIT_NOFILE, &limit);
            report().equal("soft limit of files", static_cast<long long>(limit.rlim_cur), 500);
            report().equal("hard limit of files", static_cast<long long>(limit.rlim_max), 600);
            ::prctl(PR_GET_NAME, path);
            report().expect(std::string(path) == "state name", std::string("name ") + path);
            report().equal("no_new_privs", ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
            int reaper = 0;
            ::prctl(PR_GET_CHILD_SUBREAPER, &reaper);
            report().equal("child subreaper", reaper, 1);
            report().equal("timer slack", ::prctl(PR_GET_TIMERSLACK), 70000);
            report().equal("dumpable", ::prctl(PR_GET_DUMPABLE), 0);
            report().equal("nice", ::getpriority(PRIO_PROCESS, 0), 5);
            cpu_set_t now;
            ::sched_getaffinity(0, sizeof now, &now);
            report().expect(CPU_EQUAL(&now, &cpus), "the affinity has changed");
            report().expect(whole("/proc/self/cmdline") == command, "cmdline has changed");
            report().expect(whole("/proc/self/environ") == environment, "environ has changed");
            report().expect(whole("/proc/self/auxv") == auxiliary, "auxv has changed");
          }};
}

struct Jail {
  std::atomic<int> asked;
  std::atomic<int> answered;
  std::atomic<int> root_right;
  std::atomic<int> folder_right;
};

// A child in a root of its own, with its working directory outside of that, where only a
// descriptor leads; it has a file of its parent in /proc open.
Check root_check() {
  char name[] = "/tmp/state-jail-XXXXXX";
  if (::mkdtemp(name) == nullptr) must(-1, "mkdtemp");
  must(::mkdir((std::string(name) + "/inside").c_str(), 0755), "mkdir");
  auto* jail = static_cast<Jail*>(
      ::mmap(nullptr, sizeof(Jail), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  struct stat outside {};
  must(::stat("/etc", &outside), "stat");
  const int of_parent = static_cast<int>(must(
      ::open(("/proc/" + std::to_string(::getpid()) + "/comm").c_str(), O_RDONLY), "open(comm)"));
  char comm[32] = {};
  must(::read(of_parent, comm, 3), "read(comm)");
  if (must(::fork(), "fork") == 0) {
    must(::chdir("/etc"), "chdir");
    must(::chroot(name), "chroot");
    for (int turn = 1;; ++turn) {
      while (jail->asked < turn) ::usleep(1000);
      jail->root_right = ::access("/inside", X_OK) == 0 && ::access("/usr", X_OK) != 0;
      jail->folder_right = ::access("passwd", R_OK) == 0;
      jail->answered = turn;
    }
  }
  return {"roots", [=, turn = 0]() mutable {
            jail->asked = ++turn;
            report().expect(soon([&] { return jail->answered == turn; }), "the jailed child");
            report().equal("root of the child", jail->root_right, 1);
            report().equal("working directory of the child", jail->folder_right, 1);
            report().equal("offset in a file of /proc", ::lseek(of_parent, 0, SEEK_CUR), 3);
            char now[32] = {};
            report().expect(::pread(of_parent, now, sizeof now - 1, 0) > 3 &&
                                std::string(now, 3) == std::string(comm, 3),
                            std::string("a file of /proc: ") + now);
          }};
}

// A child whose working directory was removed.
Check removed_directory_check() {
  const auto child = static_cast<pid_t>(must(::fork(), "fork"));
  if (child == 0) {
    const std::string path = "/tmp/state-removed-directory-" + std::to_string(::getpid());
    ::umask(0);
    must(::mkdir(path.c_str(), 0751), "mkdir");
    must(::chdir(path.c_str()), "chdir");
    must(::rmdir(path.c_str()), "rmdir");
    for (;;) ::pause();
  }
  const std::string link = "/proc/" + std::to_string(child) + "/cwd";
  const auto where = [=] {
    char text[200] = {};
    return ::readlink(link.c_str(), text, sizeof text - 1) > 0 ? std::string(text) : std::string();
  };
  const std::string wanted = "/tmp/state-removed-directory-" + std::to_string(child) + " (deleted)";
  if (!soon([&] { return where() == wanted; })) must(-1, "a child in a removed directory");
  return {"a removed working directory", [=] {
            report().expect(where() == wanted, "it is " + where());
            struct stat seen {};
            report().equal("stat", ::stat(link.c_str(), &seen), 0);
            report().equal("mode", seen.st_mode & 07777, 0751);
          }};
}

}  // namespace

void add_process_checks(std::vector<Check>& checks) {
  checks.push_back(shared_memory_check());
  checks.push_back(zombie_check());
  checks.push_back(session_check());
  checks.push_back(root_check());
  checks.push_back(removed_directory_check());
  checks.push_back(attribute_check());
}

}  // namespace state
