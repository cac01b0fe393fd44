// inotify.
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checks.h"

namespace state {
namespace {

struct Event {
  int watch = 0;
  uint32_t mask = 0;
  std::string name;
};

std::vector<Event> take(int fd) {
  std::vector<Event> events;
  char bytes[4096];
  pollfd polled{fd, POLLIN, 0};
  while (::poll(&polled, 1, 0) == 1) {
    const ssize_t n = ::read(fd, bytes, sizeof bytes);
    for (ssize_t at = 0; at < n;) {
      inotify_event event{};
      std::memcpy(&event, bytes + at, sizeof event);
      const char* name = bytes + at + sizeof event;
      events.push_back({event.wd, event.mask, event.len > 0 ? name : ""});
      at += static_cast<ssize_t>(sizeof event + event.len);
    }
    if (n <= 0) break;
  }
  return events;
}

void touch(const std::string& path) {
  ::close(
      static_cast<int>(must(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), "open")));
}

int watch(int fd, const std::string& path, uint32_t mask) {
  return static_cast<int>(must(::inotify_add_watch(fd, path.c_str(), mask), "inotify_add_watch"));
}

Check watches() {
  char name[] = "/tmp/state-watch-XXXXXX";
  if (::mkdtemp(name) == nullptr) must(-1, "mkdtemp");
  const std::string folder = name;
  ::mkdir((folder + "/inner").c_str(), 0700);
  touch(folder + "/file");
  ::symlink("file", (folder + "/link").c_str());
  const int fd = static_cast<int>(must(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify_init1"));
  const int gone = watch(fd, folder + "/inner", IN_ALL_EVENTS);
  const int all = watch(fd, folder, IN_ALL_EVENTS | IN_EXCL_UNLINK);
  const int link = watch(fd, folder + "/link", IN_ATTRIB | IN_DONT_FOLLOW);
  const int file = watch(fd, folder + "/file", IN_MODIFY);
  must(::inotify_rm_watch(fd, gone), "inotify_rm_watch");
  take(fd);
  return {"watches", [=, next = file + 1]() mutable {
            // Nothing has happened there, in particular nothing of the move's own.
            for (const Event& event : take(fd))
              report().add("event " + std::to_string(event.mask) + " of watch " +
                           std::to_string(event.watch) + " on \"" + event.name + "\"");
            const int writer = ::open((folder + "/file").c_str(), O_WRONLY | O_CLOEXEC);
            report().equal("write", ::write(writer, "x", 1), 1);
            ::close(writer);
            const auto events = take(fd);
            report().equal("events of a write", static_cast<long long>(events.size()), 4);
            const std::pair<int, uint32_t> wanted[] = {
                {all, IN_OPEN}, {all, IN_MODIFY}, {file, IN_MODIFY}, {all, IN_CLOSE_WRITE}};
            for (size_t i = 0; i < events.size() && i < 4; ++i) {
              report().equal("watch", events[i].watch, wanted[i].first);
              report().equal("mask", events[i].mask, wanted[i].second);
              report().expect(events[i].name == (wanted[i].first == all ? "file" : ""),
                              "an event has another name: " + events[i].name);
            }
            ::fchownat(AT_FDCWD, (folder + "/link").c_str(), ::getuid(), ::getgid(),
                       AT_SYMLINK_NOFOLLOW);
            bool seen = false;
            for (const Event& event : take(fd))
              seen |= event.watch == link && event.mask == IN_ATTRIB;
            report().expect(seen, "the watch of a link tells nothing");
            const int again = ::inotify_add_watch(fd, (folder + "/inner").c_str(), IN_ATTRIB);
            report().equal("number of a new watch", again, next++);
            report().equal("inotify_rm_watch", ::inotify_rm_watch(fd, again), 0);
            take(fd);
          }};
}

}  // namespace

void add_watch_checks(std::vector<Check>& checks) { checks.push_back(watches()); }

}  // namespace state
