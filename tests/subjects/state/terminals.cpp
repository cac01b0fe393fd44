// Pseudoterminals: one that nobody reads, and one with a session, a job in the foreground, and
// whoever drives it outside of that session.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>

#include "checks.h"

namespace state {
namespace {

int open_master() {
  const int master =
      static_cast<int>(must(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), "open(ptmx)"));
  const int unlocked = 0;
  must(::ioctl(master, TIOCSPTLCK, &unlocked), "TIOCSPTLCK");
  return master;
}

std::string name_of(int master) {
  int number = -1;
  must(::ioctl(master, TIOCGPTN, &number), "TIOCGPTN");
  return "/dev/pts/" + std::to_string(number);
}

int open_slave(int master, int flags) {
  return static_cast<int>(
      must(::open(name_of(master).c_str(), flags | O_NOCTTY | O_CLOEXEC), "open(slave)"));
}

void put(int fd, const std::string& text) { must(::write(fd, text.data(), text.size()), "write"); }

// What comes until `end` does; nothing for as long as nobody waits for a busy machine ends it.
std::string take_until(int fd, const std::string& end) {
  std::string text;
  pollfd polled{fd, POLLIN, 0};
  // Signals arrive all the time here.
  while (text.find(end) == std::string::npos) {
    const int ready = ::poll(&polled, 1, 20000);
    if (ready < 0 && errno == EINTR) continue;
    char bytes[512];
    const ssize_t n = ready == 1 ? ::read(fd, bytes, sizeof bytes) : 0;
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(bytes, static_cast<size_t>(n));
  }
  return text;
}

void expect_text(const char* what, const std::string& is, const std::string& wanted) {
  report().expect(is == wanted, std::string(what) + " is \"" + is + "\", not \"" + wanted + "\"");
}

Check quiet_terminal() {
  const int master = open_master();
  const int slave = open_slave(master, O_RDWR | O_NONBLOCK);
  const int other = open_slave(master, O_WRONLY);
  termios settings{};
  must(::tcgetattr(slave, &settings), "tcgetattr");
  settings.c_iflag = IXON | IXANY | IUTF8;
  settings.c_oflag = OPOST | ONLCR | OCRNL;
  settings.c_lflag = ICANON | IEXTEN | TOSTOP;
  settings.c_cc[VKILL] = 0x0b;
  settings.c_cc[VEOL] = ';';
  ::cfsetspeed(&settings, B57600);
  must(::tcsetattr(slave, TCSANOW, &settings), "tcsetattr");
  const winsize size{33, 77, 640, 480};
  must(::ioctl(master, TIOCSWINSZ, &size), "TIOCSWINSZ");
  const int packets = 1;
  must(::ioctl(master, TIOCPKT, &packets), "TIOCPKT");
  must(::ioctl(slave, TIOCEXCL), "TIOCEXCL");
  must(::fchmod(slave, 0640), "fchmod");
  const std::string in = "a line\nan end;half of ";
  const auto fill = [=] {
    put(master, in);
    put(other, "to the master\n");
  };
  fill();
  return {
      "terminal", [=, name = name_of(master)] {
        termios now{};
        report().equal("tcgetattr", ::tcgetattr(slave, &now), 0);
        report().equal("c_iflag", now.c_iflag, settings.c_iflag);
        report().equal("c_oflag", now.c_oflag, settings.c_oflag);
        report().equal("c_lflag", now.c_lflag, settings.c_lflag);
        report().equal("c_cflag", now.c_cflag, settings.c_cflag);
        report().equal("VKILL", now.c_cc[VKILL], 0x0b);
        report().equal("speed", ::cfgetospeed(&now), B57600);
        winsize there{};
        ::ioctl(slave, TIOCGWINSZ, &there);
        report().equal("rows", there.ws_row, 33);
        report().equal("columns", there.ws_col, 77);
        report().equal("height", there.ws_ypixel, 480);
        int value = -1;
        ::ioctl(master, TIOCGPKT, &value);
        report().equal("packet mode", value, 1);
        ::ioctl(slave, TIOCGEXCL, &value);
        report().equal("exclusive mode", value, 1);
        struct stat info {};
        ::stat(name.c_str(), &info);
        report().equal("mode of the terminal", info.st_mode & 07777, 0640);
        const char* is = ::ttyname(other);
        report().expect(is != nullptr && is == name, "ttyname() gives another name");
        report().equal("O_NONBLOCK of the slave", ::fcntl(slave, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        put(master, "it\n");
        expect_text("a line", take_until(slave, "\n"), "a line\n");
        expect_text("another", take_until(slave, ";"), "an end;");
        expect_text("one that went on", take_until(slave, "\n"), "half of it\n");
        // A packet is a byte that says so, and what follows.
        expect_text("output", take_until(master, "\n"), std::string(1, '\0') + "to the master\r\n");
        fill();
      }};
}

int job_terminal = -1;

// In the foreground: answers each line, and tells when it was interrupted.
[[noreturn]] void job(int tty) {
  job_terminal = tty;
  struct sigaction action {};
  action.sa_handler = [](int) {
    constexpr char kAnswer[] = "interrupted\n";
    if (::write(job_terminal, kAnswer, sizeof kAnswer - 1) < 0) ::_exit(2);
  };
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  char line[200];
  for (;;) {
    const ssize_t n = ::read(tty, line, sizeof line);
    if (n <= 0) ::_exit(1);
    put(tty, "got " + std::string(line, static_cast<size_t>(n)));
  }
}

[[noreturn]] void session(int slave) {
  ::setsid();
  must(::ioctl(slave, TIOCSCTTY, 0), "TIOCSCTTY");
  const int tty = static_cast<int>(must(::open("/dev/tty", O_RDWR), "open(/dev/tty)"));
  const auto child = static_cast<pid_t>(must(::fork(), "fork"));
  if (child == 0) {
    ::setpgid(0, 0);
    // Until its parent has put it into the foreground a read would stop it.
    ::signal(SIGTTOU, SIG_IGN);
    must(::tcsetpgrp(tty, ::getpid()), "tcsetpgrp");
    ::signal(SIGTTOU, SIG_DFL);
    put(tty, "begun\n");
    job(tty);
  }
  for (;;) ::pause();
}

Check session_on_a_terminal() {
  const int master = open_master();
  const int slave = open_slave(master, O_RDWR);
  const auto leader = static_cast<pid_t>(must(::fork(), "fork"));
  if (leader == 0) session(slave);
  ::close(slave);
  if (take_until(master, "begun\r\n") != "begun\r\n") must(-1, "a session on a terminal");
  pid_t foreground = 0;
  must(::ioctl(master, TIOCGPGRP, &foreground), "TIOCGPGRP");
  return {"session on a terminal", [=] {
            pid_t now = 0;
            report().equal("TIOCGPGRP", ::ioctl(master, TIOCGPGRP, &now), 0);
            report().equal("foreground group", now, foreground);
            report().equal("TIOCGSID", ::ioctl(master, TIOCGSID, &now), 0);
            report().equal("session", now, leader);
            put(master, "hello\n");
            expect_text("answer", take_until(master, "got hello\r\n"), "hello\r\ngot hello\r\n");
            put(master, "\x03");
            expect_text("answer to ^C", take_until(master, "interrupted\r\n"), "^Cinterrupted\r\n");
          }};
}

// A child holds a side whose master has been closed.
Check hung_up_terminal() {
  const int master = open_master();
  const int slave = open_slave(master, O_RDWR);
  ::close(master);
  return {"hung-up terminal", [=] {
            char c = 0;
            report().equal("read of a hung-up terminal", ::read(slave, &c, 1), 0);
            report().equal("write to a hung-up terminal", ::write(slave, "x", 1), -1);
            report().equal("errno", errno, EIO);
          }};
}

}  // namespace

void add_terminal_checks(std::vector<Check>& checks) {
  checks.push_back(session_on_a_terminal());
  checks.push_back(quiet_terminal());
  checks.push_back(hung_up_terminal());
}

}  // namespace state
