// What a program in a capsule sees, and what the service's life is like from outside.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdio>
#include <fstream>

#include "capsule/pids.h"
#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

std::string read_until(int fd, std::string_view wanted) {
  std::string text;
  const Deadline deadline = soon();
  while (text.find(wanted) == std::string::npos && !deadline.passed()) {
    pollfd poll_fd{fd, POLLIN, 0};
    if (::poll(&poll_fd, 1, deadline.remaining_ms()) <= 0) break;
    char bytes[4096];
    const ssize_t n = ::read(fd, bytes, sizeof bytes);
    if (n <= 0) break;
    text.append(bytes, static_cast<size_t>(n));
  }
  return text;
}

TEST(ServiceTest, IsAloneInItsNamespaces) {
  TestService service;
  service.spec().set_hostname("petrel");
  const auto text = service.output_of(
      "echo $$; hostname; ls /proc | grep -c '^[0-9]'; cat /proc/self/cgroup | grep ^0:;"
      "ls /sys/class/net; cat /etc/hostname; readlink /proc/self/fd/0; id -u");
  ASSERT_STATUS_OK(text.status());
  // Processes: init, sh, ls, grep.
  EXPECT_EQ(*text, "2\npetrel\n4\n0::/work\nlo\npetrel\n/dev/null\n0\n");
}

TEST(ServiceTest, HasDevicesAndAReadOnlySys) {
  TestService service;
  const auto text = service.output_of(
      "for n in null zero full random urandom tty; do test -c /dev/$n && echo $n; done;"
      "readlink /dev/ptmx /dev/fd /dev/stdout; touch /dev/shm/x && stat -c %a /dev/shm;"
      "touch /sys/x 2>/dev/null || echo ro; head -c 3 /dev/zero | wc -c; "
      "test -d /dev/mqueue && echo mq; python3 -c 'import socket; s=socket.create_server"
      "((\"127.0.0.1\", 80)); socket.create_connection((\"127.0.0.1\", 80)); print(\"lo\")'");
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text,
            "null\nzero\nfull\nrandom\nurandom\ntty\npts/ptmx\n/proc/self/fd\n"
            "/proc/self/fd/1\n1777\nro\n3\nmq\nlo\n");
}

TEST(ServiceTest, WritesIntoItsLayerOnly) {
  TestService service;
  const std::string probe = "/etc/godwit-test-" + service.node().node;
  auto capsule = service.sh("echo mine > " + probe + "; rm /etc/passwd; echo done; exec sleep 60");
  ASSERT_STATUS_OK(capsule.status());
  ASSERT_STATUS_OK(service.await_log("done"));
  EXPECT_NE(::access(probe.c_str(), F_OK), 0);
  EXPECT_EQ(::access("/etc/passwd", F_OK), 0);
  EXPECT_EQ(*kernel::read_file(capsule->paths().upper() + probe), "mine\n");
  struct stat info {};
  ASSERT_EQ(::lstat((capsule->paths().upper() + "/etc/passwd").c_str(), &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode)) << "a whiteout";
}

TEST(ServiceTest, DoesNotSeeTheNodesState) {
  TestService service;
  const auto text = service.output_of("ls -A " + service.node().state_dir + " | wc -l; touch " +
                                      service.node().state_dir + "/x 2>/dev/null || echo refused");
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text, "0\nrefused\n");
}

TEST(ServiceTest, BindsFoldersAndFiles) {
  TestService service;
  const std::string shared = service.node().state_dir + "-shared";
  std::filesystem::create_directory(shared);
  std::ofstream(shared + "/from-host") << "h";
  Bind& folder = *service.spec().add_binds();
  folder.set_host_path(shared);
  folder.set_capsule_path("/srv/new/place");
  Bind& file = *service.spec().add_binds();
  file.set_host_path(shared + "/from-host");
  file.set_capsule_path("/etc/one-file");
  const auto text =
      service.output_of("cat /srv/new/place/from-host /etc/one-file; echo c > /srv/new/place/back");
  EXPECT_EQ(*kernel::read_file(shared + "/back"), "c\n");
  std::filesystem::remove_all(shared);
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text, "hh");
}

TEST(ServiceTest, RefusesABindThatIsNotThere) {
  TestService service;
  Bind& bind = *service.spec().add_binds();
  bind.set_host_path("/nowhere/at/all");
  bind.set_capsule_path("/srv");
  const auto capsule = service.sh("true");
  EXPECT_EQ(errno_of(capsule.status()), ENOENT);
  EXPECT_FALSE(std::filesystem::exists(service.node().service("svc").dir));
}

TEST(ServiceTest, RunsOnARootfs) {
  TestService service;
  const std::string rootfs = service.node().state_dir + "-rootfs";
  std::filesystem::create_directories(rootfs);
  for (const char* name : {"bin", "lib", "lib64"}) {
    std::filesystem::create_symlink(std::string("usr/") + name, rootfs + "/" + name);
  }
  service.spec().set_rootfs(rootfs);
  Bind& bind = *service.spec().add_binds();
  bind.set_host_path("/usr");
  bind.set_capsule_path("/usr");
  const auto text = service.output_of("ls /; echo new > /new");
  const auto left = kernel::list_folder(rootfs);
  std::filesystem::remove_all(rootfs);
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text, "bin\ndev\netc\nlib\nlib64\nproc\nsys\nusr\n");
  EXPECT_EQ(left->size(), 3U) << "the rootfs itself is not written to";
}

TEST(ServiceTest, HasTheEnvironmentUserAndFolderOfItsSpec) {
  TestService service;
  service.spec().add_env("A=b c");
  service.spec().set_user("nobody");
  service.spec().set_workdir("/usr");
  const auto text = service.output_of(
      "pwd; env | grep -v -e _= -e PWD | sort; id -un; id -G; umask; echo by-name >/dev/stdout;"
      "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l");
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text,
            "/usr\nA=b c\nHOME=/nonexistent\n"
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nnobody\n65534\n"
            "0022\nby-name\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n4\n");
}

TEST(ServiceTest, SaysWhyAProgramCannotStart) {
  for (const auto& [argv, code, text] :
       {std::tuple{std::vector<std::string>{"no-such-program"}, 127, "No such file"},
        std::tuple{std::vector<std::string>{"/etc"}, 126, "Permission denied"}}) {
    TestService service;
    for (const std::string& word : argv) service.spec().add_argv(word);
    auto capsule = service.create();
    ASSERT_STATUS_OK(capsule.status());
    const auto started = capsule->start();
    ASSERT_FALSE(started.ok());
    EXPECT_NE(message_of(started.status()).find(text), std::string::npos)
        << message_of(started.status());
    const auto info = capsule->wait_exit(soon());
    ASSERT_STATUS_OK(info.status());
    EXPECT_EQ(info->exit_code(), code);
  }
  TestService service;
  service.spec().set_user("no-such-user");
  const auto capsule = service.sh("true");
  ASSERT_FALSE(capsule.ok());
  EXPECT_NE(message_of(capsule.status()).find("no-such-user"), std::string::npos);
}

TEST(ServiceTest, ClocksHaveTheOffsetsOfTheSpec) {
  TestService service;
  constexpr int64_t kDay = 86'400'000'000'000;
  service.spec().set_monotonic_offset_ns(kDay + 123);
  service.spec().set_boottime_offset_ns(2 * kDay);
  const int64_t monotonic = monotonic_ns();
  const int64_t boottime = clock_ns(CLOCK_BOOTTIME);
  const auto text = service.output_of(
      "python3 -c 'import time; print(time.clock_gettime_ns(time.CLOCK_MONOTONIC),"
      " time.clock_gettime_ns(time.CLOCK_BOOTTIME))'");
  ASSERT_STATUS_OK(text.status());
  long long there_monotonic = 0;
  long long there_boottime = 0;
  ASSERT_EQ(std::sscanf(text->c_str(), "%lld %lld", &there_monotonic, &there_boottime), 2);
  constexpr int64_t kMinute = 60'000'000'000;
  EXPECT_GE(there_monotonic, monotonic + kDay);
  EXPECT_LT(there_monotonic, monotonic + kDay + kMinute);
  EXPECT_GE(there_boottime, boottime + 2 * kDay);
  EXPECT_LT(there_boottime, boottime + 2 * kDay + kMinute);
}

TEST(ServiceTest, ALateSignalOfAServiceEndsIt) {
  TestService service;
  auto capsule =
      service.sh("trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.02; done");
  ASSERT_STATUS_OK(capsule.status());
  ASSERT_STATUS_OK(service.await_log("ready"));
  ASSERT_STATUS_OK(capsule->signal(SIGTERM));
  const auto info = capsule->wait_exit(soon());
  ASSERT_STATUS_OK(info.status());
  EXPECT_EQ(info->exit_code(), 3);
  EXPECT_EQ(*service.log(1), "ready\ngot\n");
  EXPECT_FALSE(capsule->signal(SIGTERM).ok());
}

TEST(ServiceTest, InitForwardsSignalsThatReachIt) {
  TestService service;
  auto capsule =
      service.sh("trap 'echo hup; exit 4' HUP; kill -HUP 1; while :; do sleep 0.02; done");
  ASSERT_STATUS_OK(capsule.status());
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 4);
}

TEST(ServiceTest, ADaemonKeepsTheServiceAlive) {
  TestService service;
  auto capsule = service.sh(
      "setsid sh -c 'trap \"echo bye; exit\" TERM; echo up; while :; do sleep 0.02; done' & exit "
      "0");
  ASSERT_STATUS_OK(capsule.status());
  ASSERT_STATUS_OK(service.await_log("up"));
  const Deadline deadline = soon();
  while (!capsule->info()->exit_known() && !deadline.passed()) ::usleep(2000);
  const auto info = capsule->info();
  EXPECT_EQ(info->state(), CAPSULE_RUNNING);
  EXPECT_EQ(info->main_pid(), 0);
  // Its first process has ended: a signal for the service reaches what lives.
  ASSERT_STATUS_OK(capsule->signal(SIGTERM));
  const auto end = capsule->wait_exit(soon());
  EXPECT_EQ(end->state(), CAPSULE_EXITED);
  EXPECT_EQ(end->exit_code(), 0);
  EXPECT_EQ(*service.log(1), "up\nbye\n");
}

TEST(ServiceTest, OrphansAreReaped) {
  TestService service;
  const auto text = service.output_of(
      "for i in 1 2 3 4 5 6 7 8; do sh -c '(true &) ; true'; done; n=9;"
      "for t in $(seq 500); do n=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l);"
      "[ $n = 0 ] && break; sleep 0.01; done; echo $n");
  ASSERT_STATUS_OK(text.status());
  EXPECT_EQ(*text, "0\n");
}

TEST(ServiceTest, ExecRunsBesideTheServiceAndDoesNotKeepItAlive) {
  TestService service;
  auto capsule =
      service.sh("echo ready; until test -p /dev/shm/fifo; do sleep 0.01; done; exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  auto pipe = kernel::pipe2(0);
  ExecSpec program;
  for (const char* word : {"sh", "-c", "mkfifo -m 600 /dev/shm/fifo; echo $PPID; exit 9"}) {
    program.add_argv(word);
  }
  auto exec = capsule->exec(program, {0, pipe->write.get(), pipe->write.get()});
  ASSERT_STATUS_OK(exec.status());
  const auto status = exec->wait(soon());
  ASSERT_STATUS_OK(status.status());
  EXPECT_EQ(status->code, 9);
  EXPECT_EQ(read_until(pipe->read.get(), "\n"), "1\n");
  ExecSpec missing;
  missing.add_argv("no-such-program");
  EXPECT_FALSE(capsule->exec(missing, {0, 1, 2}).ok());
  ExecSpec sleeper;
  for (const char* word : {"sleep", "1000"}) sleeper.add_argv(word);
  auto second = capsule->exec(sleeper, {0, 1, 2});
  ASSERT_STATUS_OK(second.status());
  ASSERT_STATUS_OK(capsule->kill());
  EXPECT_EQ(second->wait(soon())->signal, SIGKILL);
  EXPECT_EQ(capsule->wait_exit(soon())->state(), CAPSULE_EXITED);
}

TEST(ServiceTest, EndsWithItsLastProcessThoughAnExecLives) {
  TestService service;
  service.spec().set_interactive(true);
  auto capsule = service.sh("read -r x; exit 6");
  ASSERT_STATUS_OK(capsule.status());
  ExecSpec sleeper;
  for (const char* word : {"sh", "-c", "sleep 1000; true"}) sleeper.add_argv(word);
  auto exec = capsule->exec(sleeper, {0, 1, 2});
  ASSERT_STATUS_OK(exec.status());
  ASSERT_STATUS_OK(capsule->close_stdin());
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 6);
  EXPECT_EQ(exec->wait(soon())->signal, SIGKILL);
}

TEST(ServiceTest, AttachCarriesInputAndOutput) {
  TestService service;
  service.spec().set_interactive(true);
  auto capsule = service.sh("cat; echo end >&2");
  ASSERT_STATUS_OK(capsule.status());
  auto attached = capsule->attach();
  ASSERT_STATUS_OK(attached.status());
  ASSERT_EQ(::write(attached->io.get(), "hello\n", 6), 6);
  EXPECT_EQ(read_until(attached->io.get(), "\n"), "hello\n");
  // A big input, all of it: more than the pipe holds.
  const std::string big(1 << 20, 'x');
  std::string back;
  size_t sent = 0;
  const Deadline deadline = soon();
  while (back.size() < big.size() && !deadline.passed()) {
    pollfd poll_fd{attached->io.get(),
                   static_cast<short>(POLLIN | (sent < big.size() ? POLLOUT : 0)), 0};
    ::poll(&poll_fd, 1, deadline.remaining_ms());
    if ((poll_fd.revents & POLLOUT) != 0) {
      const ssize_t n =
          ::send(attached->io.get(), big.data() + sent, big.size() - sent, MSG_DONTWAIT);
      if (n > 0) sent += static_cast<size_t>(n);
    }
    if ((poll_fd.revents & POLLIN) != 0) {
      char bytes[65536];
      const ssize_t n = ::read(attached->io.get(), bytes, sizeof bytes);
      if (n > 0) back.append(bytes, static_cast<size_t>(n));
    }
  }
  EXPECT_EQ(back, big);
  ::shutdown(attached->io.get(), SHUT_WR);
  EXPECT_EQ(read_until(attached->err.get(), "end"), "end\n");
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 0);
}

TEST(ServiceTest, ATerminalIsTheCapsulesOwn) {
  TestService service;
  service.spec().set_tty(true);
  auto capsule = service.sh("read -r go; tty; stty size; test -t 2 && echo $go; exit 2");
  ASSERT_STATUS_OK(capsule.status());
  ASSERT_STATUS_OK(capsule->resize(40, 100));
  auto attached = capsule->attach();
  ASSERT_STATUS_OK(attached.status());
  ASSERT_EQ(::write(attached->io.get(), "yes\n", 4), 4);
  const std::string text = read_until(attached->io.get(), "100\r\nyes");
  EXPECT_NE(text.find("/dev/pts/0\r\n40 100\r\nyes"), std::string::npos) << text;
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 2);
}

TEST(ServiceTest, InputThatIsHeldGoesOnOrComesBack) {
  TestService service;
  service.spec().set_interactive(true);
  auto capsule = service.sh("while read -r x; do echo got $x; done");
  ASSERT_STATUS_OK(capsule.status());
  auto attached = capsule->attach();
  ASSERT_STATUS_OK(attached.status());
  auto other = capsule->attach();
  ASSERT_STATUS_OK(other.status());
  ASSERT_STATUS_OK(capsule->hold_input(true));
  ASSERT_EQ(::write(attached->io.get(), "one\n", 4), 4);
  pollfd polled{attached->io.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, 50), 0);
  ASSERT_STATUS_OK(capsule->hold_input(false));
  EXPECT_EQ(read_until(attached->io.get(), "\n"), "got one\n");
  ASSERT_STATUS_OK(capsule->hold_input(true));
  ASSERT_EQ(::write(attached->io.get(), "two\n", 4), 4);
  ASSERT_EQ(::write(other->io.get(), "three\n", 6), 6);
  ASSERT_STATUS_OK(capsule->kill());
  EXPECT_EQ(read_until(attached->returned.get(), "\n"), "two\n");
  EXPECT_EQ(read_until(other->returned.get(), "\n"), "three\n");
  char c = 0;
  EXPECT_EQ(::read(attached->returned.get(), &c, 1), 0);
}

TEST(ServiceTest, NothingComesBackOfAServiceThatEnds) {
  TestService service;
  service.spec().set_interactive(true);
  auto capsule = service.sh("exit 3");
  ASSERT_STATUS_OK(capsule.status());
  auto attached = capsule->attach();
  ASSERT_STATUS_OK(attached.status());
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 3);
  char c = 0;
  EXPECT_EQ(::read(attached->returned.get(), &c, 1), 0);
}

TEST(ServiceTest, ExecWithATerminalTakesControlC) {
  TestService service;
  auto capsule = service.sh("exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  ExecSpec program;
  program.set_tty(true);
  for (const char* word :
       {"sh", "-c", "trap 'exit 44' INT; echo up; while :; do sleep 0.02; done"}) {
    program.add_argv(word);
  }
  auto exec = capsule->exec(program, {});
  ASSERT_STATUS_OK(exec.status());
  ASSERT_TRUE(static_cast<bool>(exec->terminal()));
  EXPECT_NE(read_until(exec->terminal().get(), "up").find("up"), std::string::npos);
  ASSERT_EQ(::write(exec->terminal().get(), "\x03", 1), 1);
  EXPECT_EQ(exec->wait(soon())->code, 44);
}

}  // namespace
}  // namespace godwit::capsule
