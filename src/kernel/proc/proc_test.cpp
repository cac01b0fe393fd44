// The parsers of status, stat, fdinfo, limits, timers, mountinfo and the lists of tasks: on texts
// made up here, and on this process.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <random>
#include <string>

#include "base/status.h"
#include "kernel/proc/fdinfo.h"
#include "kernel/proc/limits.h"
#include "kernel/proc/locks.h"
#include "kernel/proc/mountinfo.h"
#include "kernel/proc/stat.h"
#include "kernel/proc/status.h"
#include "kernel/proc/tasks.h"
#include "kernel/proc/timers.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

constexpr char kStatus[] =
    "Name:\ta\\nUid:\\\\b\nUmask:\t0027\nState:\tt (tracing stop)\nTgid:\t12\nNgid:\t0\nPid:\t13\n"
    "PPid:\t1\nTracerPid:\t99\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t4294967295\nFDSize:\t64\n"
    "Groups:\t0 20 4294967294 \nNStgid:\t12\t4\nNSpid:\t13\t5\nNSpgid:\t0\t2\nNSsid:\t0\t1\n"
    "Threads:\t3\nSigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t8000000000000000\n"
    "SigBlk:\tfffffffffffbfeff\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180014a02\n"
    "CapInh:\t1\nCapPrm:\t2\nCapEff:\t3\nCapBnd:\t4\nCapAmb:\t5\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    "Seccomp_filters:\t7\nCpus_allowed:\t3\n";
constexpr char kStat[] =
    "77 (a) S (b) S 1 2 3 34816 -1 4194560 1 2 3 4 5 6 7 8 -2 -19 9 0 123456 4096 7 "
    "18446744073709551615 1 2 3 0 0 0 0 0 0 0 0 0 17 1 99 2 0 0 0 5 6 7 8 9 10 11 256\n";
constexpr char kFdinfo[] =
    "pos:\t-1\nflags:\t02004002\nmnt_id:\t15\nino:\t1059\neventfd-count: ffffffffffffffff\n"
    "eventfd-id: 7\ntfd:        3 events:       19 data: ff  pos:0 ino:61af sdev:7\n"
    "inotify wd:1 ino:2\n";
constexpr char kTimers[] =
    "ID: 2\nsignal: 34/00000000deadbeef\nnotify: signal/tid.6909\nClockID: 1\n"
    "ID: 0\nsignal: 14/ffffffffffffffff\nnotify: none/pid.6909\nClockID: -6\n";
constexpr char kMountinfo[] =
    "36 35 98:0 /mnt\\0401 /mnt\\0112\\134x rw,noatime shared:1 master:2 - ext3 /dev/ro\\040ot rw\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
    "42 31 0:39 / /empty rw - tmpfs  rw\n";

TEST(TaskStatusParser, EveryFieldIsRead) {
  const auto s = parse_task_status(kStatus);
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_EQ(s->name, "a\nUid:\\b");
  EXPECT_TRUE(s->has_umask);
  EXPECT_EQ(s->umask, 027U);
  EXPECT_EQ(s->state, 't');
  EXPECT_EQ(s->tgid.value, 12);
  EXPECT_EQ(s->pid.value, 13);
  EXPECT_EQ(s->ppid.value, 1);
  EXPECT_EQ(s->tracer.value, 99);
  EXPECT_EQ(s->uid, (std::array<uint32_t, 4>{1, 2, 3, 4}));
  EXPECT_EQ(s->gid, (std::array<uint32_t, 4>{5, 6, 7, 4294967295U}));
  EXPECT_EQ(s->groups, (std::vector<uint32_t>{0, 20, 4294967294U}));
  EXPECT_EQ(s->image_tgid().value, 4);
  EXPECT_EQ(s->image_pid().value, 5);
  EXPECT_EQ(s->image_pgid().value, 2);
  EXPECT_EQ(s->image_sid().value, 1);
  EXPECT_EQ(s->threads, 3U);
  EXPECT_EQ(s->pending_task, 0x100U);
  EXPECT_EQ(s->pending_process, uint64_t{1} << 63);
  EXPECT_EQ(s->blocked, 0xfffffffffffbfeffU);
  EXPECT_EQ(s->ignored, 0x1000U);
  EXPECT_EQ(s->caught, 0x180014a02U);
  EXPECT_EQ(s->cap_inheritable, 1U);
  EXPECT_EQ(s->cap_permitted, 2U);
  EXPECT_EQ(s->cap_effective, 3U);
  EXPECT_EQ(s->cap_bounding, 4U);
  EXPECT_EQ(s->cap_ambient, 5U);
  EXPECT_TRUE(s->no_new_privs);
  EXPECT_EQ(s->seccomp, 2);
  EXPECT_EQ(s->seccomp_filters, 7U);
}

TEST(TaskStatusParser, ALineThatIsMissingTwiceOrBadIsAnError) {
  const std::string good = kStatus;
  for (const char* key : {"Name", "State", "PPid", "NSsid", "SigIgn", "CapAmb"}) {
    std::string text = good;
    const size_t at = text.find(std::string("\n") + key + ":");
    if (at == std::string::npos) {
      text.erase(0, text.find('\n') + 1);
    } else {
      text.erase(at, text.find('\n', at + 1) - at);
    }
    EXPECT_FALSE(parse_task_status(text).ok()) << key;
  }
  EXPECT_FALSE(parse_task_status(good + "PPid:\t2\n").ok());
  EXPECT_FALSE(parse_task_status(good + "PPid 2\n").ok());
  std::string text = good;
  text.replace(text.find("NSpid:\t13\t5"), 11, "NSpid:\t13\t ");
  EXPECT_FALSE(parse_task_status(text).ok());
}

TEST(TaskStatusParser, ReadsThisThread) {
  char before[16] = {};
  ASSERT_EQ(::prctl(PR_GET_NAME, before), 0);
  ASSERT_EQ(::prctl(PR_SET_NAME, "x\\y\nZ) R 1 2"), 0);
  const auto status = read_task_status(HostPid{::getpid()});
  const auto stat = read_task_stat(HostPid{::getpid()});
  ::prctl(PR_SET_NAME, before);
  ASSERT_TRUE(status.ok()) << status.status();
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(status->name, "x\\y\nZ) R 1 2");
  EXPECT_EQ(stat->comm, "x\\y\nZ) R 1 2");
  EXPECT_EQ(status->pid.value, ::getpid());
  EXPECT_EQ(stat->ppid.value, ::getppid());
  EXPECT_EQ(status->uid[1], ::geteuid());
  EXPECT_EQ(stat->state, 'R');
  EXPECT_EQ(stat->session.value, ::getsid(0));
  EXPECT_GT(stat->arg_end, stat->arg_start);
}

TEST(TaskStatParser, EveryFieldIsRead) {
  const auto s = parse_task_stat(kStat);
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_EQ(s->pid.value, 77);
  EXPECT_EQ(s->comm, "a) S (b");
  EXPECT_EQ(s->state, 'S');
  EXPECT_EQ(s->ppid.value, 1);
  EXPECT_EQ(s->pgrp.value, 2);
  EXPECT_EQ(s->session.value, 3);
  EXPECT_EQ(s->tty_nr, 34816);
  EXPECT_EQ(s->tty_pgrp.value, -1);
  EXPECT_EQ(s->flags, 4194560U);
  EXPECT_EQ(s->priority, -2);
  EXPECT_EQ(s->nice, -19);
  EXPECT_EQ(s->num_threads, 9);
  EXPECT_EQ(s->start_time_ticks, 123456U);
  EXPECT_EQ(s->start_code, 1U);
  EXPECT_EQ(s->end_code, 2U);
  EXPECT_EQ(s->start_stack, 3U);
  EXPECT_EQ(s->exit_signal, 17);
  EXPECT_EQ(s->rt_priority, 99U);
  EXPECT_EQ(s->policy, 2U);
  EXPECT_EQ(s->start_data, 5U);
  EXPECT_EQ(s->end_data, 6U);
  EXPECT_EQ(s->start_brk, 7U);
  EXPECT_EQ(s->arg_start, 8U);
  EXPECT_EQ(s->arg_end, 9U);
  EXPECT_EQ(s->env_start, 10U);
  EXPECT_EQ(s->env_end, 11U);
  EXPECT_EQ(s->exit_code, 256);
  for (const char* bad : {"", "1", "1 (x", "1 x)", "1 )x(", "1 (x) R", "x (x) R 1", "1 (x) "}) {
    EXPECT_FALSE(parse_task_stat(bad).ok()) << bad;
  }
  EXPECT_FALSE(parse_task_stat(std::string(kStat) + "1").ok());
}

TEST(FdinfoParser, HeadAndLinesOfTheKind) {
  const auto info = parse_fdinfo(kFdinfo);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->pos, -1);
  EXPECT_EQ(info->flags, 02004002U);
  EXPECT_EQ(info->mnt_id, 15);
  EXPECT_EQ(info->ino, 1059U);
  EXPECT_EQ(info->number("eventfd-count", 16), UINT64_MAX);
  EXPECT_EQ(info->number("eventfd-id"), 7U);
  EXPECT_EQ(info->number("tfd"), std::nullopt);
  EXPECT_TRUE(info->find("tfd")->starts_with("3 events:"));
  EXPECT_EQ(info->find("inotify"), "wd:1 ino:2");
  EXPECT_FALSE(info->has("lock"));
  for (const char* bad :
       {"", "pos:\t1\n", "pos:\tx\nflags:\t0\nmnt_id:\t1\n", "pos:\t0\nflags:\t09\nmnt_id:\t1\n",
        "pos:\t0\nflags:\t0\nmnt_id:\t1\nino:\n"}) {
    EXPECT_FALSE(parse_fdinfo(bad).ok()) << bad;
  }
}

TEST(FdinfoParser, ReadsAnEventfd) {
  const UniqueFd fd(::eventfd(41, EFD_SEMAPHORE | EFD_CLOEXEC));
  const auto info = read_fdinfo(HostPid{::getpid()}, fd.get());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->number("eventfd-count", 16), 41U);
  EXPECT_NE(info->flags & O_CLOEXEC, 0U);
  EXPECT_EQ(errno_of(read_fdinfo(HostPid{::getpid()}, 1 << 20).status()), ENOENT);
}

TEST(LimitsParser, AgreesWithGetrlimit) {
  const auto limits = read_limits(HostPid{::getpid()});
  ASSERT_TRUE(limits.ok()) << limits.status();
  for (size_t i = 0; i < limits->size(); ++i) {
    rlimit own{};
    ASSERT_EQ(::getrlimit(static_cast<__rlimit_resource>(i), &own), 0);
    EXPECT_EQ((*limits)[i].rlim_cur, own.rlim_cur) << i;
    EXPECT_EQ((*limits)[i].rlim_max, own.rlim_max) << i;
  }
  EXPECT_FALSE(parse_limits("").ok());
  EXPECT_FALSE(parse_limits("Limit Soft\nMax cpu time  1 2 s\n").ok());
}

TEST(TimersParser, EveryFieldIsReadAndOrderedById) {
  const auto timers = parse_timers(kTimers);
  ASSERT_TRUE(timers.ok()) << timers.status();
  ASSERT_EQ(timers->size(), 2U);
  EXPECT_EQ((*timers)[0].id, 0);
  EXPECT_EQ((*timers)[0].sigev_value, UINT64_MAX);
  EXPECT_EQ((*timers)[0].notify, TimerNotify::kNone);
  EXPECT_EQ((*timers)[0].clock, -6);
  EXPECT_EQ((*timers)[1].id, 2);
  EXPECT_EQ((*timers)[1].signal, 34);
  EXPECT_EQ((*timers)[1].sigev_value, 0xdeadbeefU);
  EXPECT_EQ((*timers)[1].notify, TimerNotify::kSignal);
  EXPECT_TRUE((*timers)[1].to_thread);
  EXPECT_EQ((*timers)[1].target.value, 6909);
  EXPECT_FALSE(parse_timers("ID: 1\n").ok());
  EXPECT_FALSE(parse_timers("ID: 1\nsignal: 1/0\nnotify: fork/pid.1\nClockID: 1\n").ok());
}

TEST(TimersParser, ReadsOwnTimer) {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR2;
  event.sigev_value.sival_ptr = reinterpret_cast<void*>(uint64_t{0xabcdef});
  timer_t timer{};
  ASSERT_EQ(::timer_create(CLOCK_BOOTTIME, &event, &timer), 0);
  const auto timers = read_timers(HostPid{::getpid()});
  ::timer_delete(timer);
  ASSERT_TRUE(timers.ok()) << timers.status();
  ASSERT_EQ(timers->size(), 1U);
  EXPECT_EQ(timers->front().signal, SIGUSR2);
  EXPECT_EQ(timers->front().sigev_value, 0xabcdefU);
  EXPECT_EQ(timers->front().clock, CLOCK_BOOTTIME);
  EXPECT_EQ(timers->front().target.value, ::getpid());
  EXPECT_FALSE(timers->front().to_thread);
}

TEST(MountinfoParser, EveryFieldIsRead) {
  const auto mounts = parse_mountinfo(kMountinfo);
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  ASSERT_EQ(mounts->size(), 3U);
  const Mount& m = (*mounts)[0];
  EXPECT_EQ(m.id, 36);
  EXPECT_EQ(m.parent, 35);
  EXPECT_EQ(m.dev, makedev(98, 0));
  EXPECT_EQ(m.root, "/mnt 1");
  EXPECT_EQ(m.point, "/mnt\t2\\x");
  EXPECT_EQ(m.options, "rw,noatime");
  EXPECT_EQ(m.optional, "shared:1 master:2");
  EXPECT_EQ(m.type, "ext3");
  EXPECT_EQ(m.source, "/dev/ro ot");
  EXPECT_EQ(m.super_options, "rw");
  EXPECT_TRUE((*mounts)[1].has_super_option("nsdelegate"));
  EXPECT_FALSE((*mounts)[1].has_super_option("r"));
  EXPECT_EQ((*mounts)[2].source, "");
  EXPECT_EQ(*find_cgroup2_mount(*mounts), "/sys/fs/cgroup/unified");
  EXPECT_FALSE(find_cgroup2_mount({}).ok());
  for (const char* bad : {"\n", "1 2 0:1 / / rw\n", "1 2 0:1 / / rw -\n", "1 2 01 / / rw - a b c\n",
                          "1 2 0:1 / / rw  - a b c\n", "x 2 0:1 / / rw - a b c\n"}) {
    EXPECT_FALSE(parse_mountinfo(bad).ok()) << bad;
  }
  EXPECT_FALSE(read_mountinfo(HostPid{::getpid()})->empty());
}

TEST(Cgroup2Path, IsTheLineOfTheUnifiedHierarchy) {
  EXPECT_EQ(*parse_cgroup2_path("3:cpu:/x\n0::/a/b c\n"), "/a/b c");
  EXPECT_EQ(*parse_cgroup2_path("0::/a (deleted)\n"), "/a");
  EXPECT_FALSE(parse_cgroup2_path("3:cpu:/x\n").ok());
  EXPECT_FALSE(parse_cgroup2_path("0::a\n").ok());
}

TEST(Tasks, ListsOfPids) {
  const auto pids = parse_pids("12 34 \n56\n");
  ASSERT_TRUE(pids.ok());
  EXPECT_EQ(*pids, (std::vector<HostPid>{{12}, {34}, {56}}));
  EXPECT_TRUE(parse_pids("")->empty());
  for (const char* bad : {"0", "-1", "1x", "x", "99999999999"})
    EXPECT_FALSE(parse_pids(bad).ok()) << bad;
  const HostPid self{::getpid()};
  EXPECT_EQ(read_tasks(self)->front(), self);
  EXPECT_TRUE(read_children(self, self).ok());
  const auto fds = read_descriptors(self);
  ASSERT_TRUE(fds.ok());
  EXPECT_TRUE(std::is_sorted(fds->begin(), fds->end()));
  const auto auxv = read_auxv_bytes(self);
  ASSERT_TRUE(auxv.ok());
  const auto pairs = parse_auxv(*auxv);
  ASSERT_TRUE(pairs.ok());
  EXPECT_EQ(pairs->back().first, 0U);
  EXPECT_FALSE(parse_auxv("").ok());
  EXPECT_FALSE(parse_auxv(std::string(40, '\1')).ok());
}

TEST(ProcParsers, DamagedTextNeverCrashes) {
  using Parser = std::function<void(const std::string&)>;
  std::string limits;
  limits = *read_file("/proc/self/limits");
  const std::pair<std::string, Parser> all[] = {
      {kStatus, [](const std::string& t) { (void)parse_task_status(t); }},
      {kStat, [](const std::string& t) { (void)parse_task_stat(t); }},
      {kFdinfo, [](const std::string& t) { (void)parse_fdinfo(t); }},
      {limits, [](const std::string& t) { (void)parse_limits(t); }},
      {kTimers, [](const std::string& t) { (void)parse_timers(t); }},
      {kMountinfo, [](const std::string& t) { (void)parse_mountinfo(t); }},
      {"12 34\n", [](const std::string& t) { (void)parse_pids(t); }},
  };
  std::mt19937 random(11);
  for (const auto& [good, parse] : all) {
    for (int i = 0; i < 5'000; ++i) {
      std::string text = good;
      for (int change = 0; change < 3; ++change) {
        text[random() % text.size()] = static_cast<char>(random());
      }
      text.resize(random() % (text.size() + 1));
      parse(text);
    }
  }
}

TEST(Locks, EveryKindOfLine) {
  const FileLock record = parse_lock("1: POSIX  ADVISORY  WRITE 1234 fd:00:12345 5 14").value();
  EXPECT_EQ(record.kind, FileLock::Kind::kPosix);
  EXPECT_TRUE(record.exclusive);
  EXPECT_EQ(record.pid.value, 1234);
  EXPECT_EQ(record.start, 5);
  EXPECT_EQ(record.length, 10);
  const FileLock open_file = parse_lock("22: OFDLCK ADVISORY  READ -1 00:2f:9 7 EOF").value();
  EXPECT_EQ(open_file.kind, FileLock::Kind::kOpenFile);
  EXPECT_FALSE(open_file.exclusive);
  EXPECT_EQ(open_file.start, 7);
  EXPECT_EQ(open_file.length, FileLock::kToTheEnd);
  EXPECT_EQ(parse_lock("3: FLOCK  ADVISORY  READ 1 fd:00:1 0 EOF").value().kind,
            FileLock::Kind::kFlock);
  EXPECT_EQ(parse_lock("4: LEASE  BREAKING  UNLCK 1 fd:00:1 0 EOF").value().kind,
            FileLock::Kind::kLease);
  EXPECT_TRUE(parse_lock("1: -> POSIX  ADVISORY  WRITE 7 fd:00:1 0 EOF").value().waits);
  for (const char* bad : {"", "1", "1: ", "1: ACCESS ADVISORY WRITE 1 fd:00:1 0 EOF",
                          "1: POSIX ADVISORY WRITE 1 fd:00:1", "1: POSIX ADVISORY SOME 1 a 0 EOF",
                          "1: POSIX ADVISORY WRITE 1 fd:00:1 9 8"})
    EXPECT_FALSE(parse_lock(bad).ok()) << bad;
}

}  // namespace
}  // namespace godwit::kernel
