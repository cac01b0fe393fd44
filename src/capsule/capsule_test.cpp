// The capsule's life cycle, freezing, and replicas.
#include "capsule/capsule.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <thread>

#include "capsule/messages.h"
#include "capsule/pids.h"
#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

std::string status_line(HostPid pid, const std::string& key) {
  const auto text = kernel::read_file(fmt::format("/proc/{}/status", pid.value));
  if (!text.ok()) return {};
  const size_t at = text->find("\n" + key);
  if (at == std::string::npos) return {};
  return text->substr(at + 1, text->find('\n', at + 1) - at - 1);
}

bool alive(HostPid pid) {
  const std::string state = status_line(pid, "State:");
  return !state.empty() && state.find('Z') == std::string::npos &&
         state.find('X') == std::string::npos;
}

bool dies(HostPid pid) {
  const Deadline deadline = soon();
  while (alive(pid) && !deadline.passed()) ::usleep(1000);
  return !alive(pid);
}

TEST(CapsuleTest, RunsAProgramAndKeepsItsExitCodeAndOutput) {
  TestService service;
  auto capsule = service.sh("echo out; echo err >&2; printf tail; exit 7");
  ASSERT_STATUS_OK(capsule.status());
  auto info = capsule->wait_exit(soon());
  ASSERT_STATUS_OK(info.status());
  EXPECT_EQ(info->state(), CAPSULE_EXITED);
  EXPECT_TRUE(info->exit_known());
  EXPECT_EQ(info->exit_code(), 7);
  EXPECT_EQ(*service.log(1), "out\ntail");
  EXPECT_EQ(*service.log(2), "err\n");
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  EXPECT_EQ(again->info()->exit_code(), 7);
}

TEST(CapsuleTest, InfoNamesThePidsOfThisMachine) {
  TestService service;
  service.spec().set_interactive(true);
  auto capsule = service.sh("exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  const auto info = capsule->info();
  ASSERT_STATUS_OK(info.status());
  EXPECT_EQ(info->main_image_pid(), 2);
  EXPECT_EQ(image_pid_of(HostPid{info->main_pid()})->value, 2);
  EXPECT_EQ(image_pid_of(HostPid{info->init_pid()})->value, 1);
  EXPECT_EQ(*capsule->work_pids(), std::vector<HostPid>{HostPid{info->main_pid()}});
  auto ends = capsule->stdio();
  ASSERT_STATUS_OK(ends.status());
  for (int i = 0; i < 3; ++i) {
    struct stat ours {};
    struct stat theirs {};
    ASSERT_EQ(::fstat(ends->pipe[static_cast<size_t>(i)].get(), &ours), 0);
    ASSERT_EQ(::stat(fmt::format("/proc/{}/fd/{}", info->main_pid(), i).c_str(), &theirs), 0);
    EXPECT_EQ(ours.st_ino, theirs.st_ino);
    EXPECT_EQ(info->stdio_inode(i), theirs.st_ino);
  }
}

TEST(CapsuleTest, NamesAreUnique) {
  TestService service;
  auto capsule = service.sh("exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  EXPECT_EQ(service.create().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(capsule->info()->state() == CAPSULE_RUNNING) << "the first one is unharmed";
  EXPECT_EQ(*list_services(service.node()), std::vector<std::string>{"svc"});
  service.options().replace_exited = true;
  EXPECT_EQ(service.create().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CapsuleTest, AnExitedServiceCanBeReplacedAndKeepsItsLayer) {
  TestService service;
  ASSERT_STATUS_OK(service.sh("echo kept > /var/kept")->wait_exit(soon()).status());
  service.options().replace_exited = true;
  auto capsule = service.sh("cat /var/kept");
  ASSERT_STATUS_OK(capsule.status());
  EXPECT_EQ(capsule->wait_exit(soon())->exit_code(), 0);
  EXPECT_EQ(*service.log(1), "kept\n");
}

TEST(CapsuleTest, RefusesBadNames) {
  for (const char* name : {"", "..", "a/b", "-x", ".x", "a b"}) {
    EXPECT_FALSE(check_name(name).ok()) << name;
  }
  EXPECT_TRUE(check_name("redis-1.a_B").ok());
  EXPECT_FALSE(check_name(std::string(64, 'a')).ok());
  EXPECT_FALSE(check_name("redis~1a").ok()) << "a capsule's, not a service's";
  EXPECT_TRUE(check_capsule_name("redis~1a").ok());
  EXPECT_EQ(service_of("redis~1a"), "redis");
  EXPECT_EQ(service_of("redis"), "redis");
  for (const char* name : {"redis~", "~1", "redis~1~2", "redis~a/b", "redis~12345678901234567"})
    EXPECT_FALSE(check_capsule_name(name).ok()) << name;
}

TEST(CapsuleTest, SurvivesTheCreator) {
  TestService service;
  HostPid main;
  {
    auto capsule = service.sh("exec sleep 1000");
    ASSERT_STATUS_OK(capsule.status());
    main = {capsule->info()->main_pid()};
  }
  EXPECT_TRUE(alive(main));
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  EXPECT_EQ(again->info()->main_pid(), main.value);
}

TEST(CapsuleTest, FreezesTheWorkAndNotInit) {
  TestService service;
  auto capsule = service.sh("while :; do echo tick; sleep 0.001; done");
  ASSERT_STATUS_OK(capsule.status());
  ASSERT_STATUS_OK(service.await_log("tick"));
  ASSERT_STATUS_OK(capsule->freeze(soon()));
  EXPECT_TRUE(*capsule->work().frozen());
  EXPECT_FALSE(*capsule->cgroup().child("init").frozen());
  // What was written before arrives, sooner or later; it does not run meanwhile.
  auto info = capsule->info();
  ASSERT_STATUS_OK(info.status());
  const HostPid main{info->main_pid()};
  const std::string switches = status_line(main, "voluntary_ctxt_switches:");
  ASSERT_FALSE(switches.empty());
  ::usleep(50'000);
  EXPECT_EQ(status_line(main, "voluntary_ctxt_switches:"), switches);
  ASSERT_STATUS_OK(capsule->thaw());
  const Deadline deadline = soon();
  while (status_line(main, "voluntary_ctxt_switches:") == switches && !deadline.passed())
    ::usleep(1000);
  EXPECT_NE(status_line(main, "voluntary_ctxt_switches:"), switches);
  ASSERT_STATUS_OK(capsule->request_freeze());
  ASSERT_STATUS_OK(capsule->wait_frozen(soon()));
  // Frozen processes can be killed.
  ASSERT_STATUS_OK(capsule->kill());
  EXPECT_EQ(capsule->wait_exit(soon())->exit_signal(), SIGKILL);
}

TEST(CapsuleTest, DestroyIsIdempotentAndWorksWithoutShim) {
  TestService service;
  auto capsule = service.sh("setsid sleep 1000 & exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  const auto info = capsule->info();
  ASSERT_STATUS_OK(info.status());
  ASSERT_EQ(::kill(info->shim_pid(), SIGKILL), 0);
  // A shim's death is the capsule's: nothing is left unmanaged.
  EXPECT_TRUE(dies(HostPid{info->init_pid()}));
  EXPECT_TRUE(dies(HostPid{info->main_pid()}));
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  EXPECT_EQ(again->info()->state(), CAPSULE_EXITED);
  EXPECT_FALSE(again->signal(SIGTERM).ok());
  ASSERT_STATUS_OK(service.destroy());
  ASSERT_STATUS_OK(service.destroy());
  EXPECT_EQ(service.open().status().code(), absl::StatusCode::kNotFound);
}

TEST(CapsuleTest, AnUnusableRootLeavesNothing) {
  TestService service;
  service.spec().set_rootfs("/proc/self");
  EXPECT_FALSE(service.sh("true").ok());
  EXPECT_FALSE(std::filesystem::exists(service.node().service("svc").dir));
  EXPECT_FALSE(service_cgroup(service.node().node, "svc")->exists());
}

TEST(ReplicaTest, HusksHaveTheirPidAndInitAsParentAndNothingElse) {
  TestService service;
  service.options().replica = true;
  auto capsule = service.create();
  ASSERT_STATUS_OK(capsule.status());
  EXPECT_EQ(capsule->info()->state(), CAPSULE_REPLICA);
  auto pair = socket_pair(SOCK_STREAM);
  ASSERT_STATUS_OK(pair.status());
  for (const int wanted : {1234, 77, 5000}) {
    const auto husk = capsule->spawn_husk({wanted}, pair->second.get(), 900);
    ASSERT_STATUS_OK(husk.status());
    EXPECT_EQ(image_pid_of(*husk)->value, wanted);
    EXPECT_EQ(status_line(*husk, "PPid:"), fmt::format("PPid:\t{}", capsule->info()->init_pid()));
    const auto fds = kernel::list_folder(fmt::format("/proc/{}/fd", husk->value));
    ASSERT_STATUS_OK(fds.status());
    EXPECT_EQ(*fds, std::vector<std::string>{"900"});
    for (const char* set : {"SigBlk", "SigIgn", "SigCgt"}) {
      EXPECT_EQ(status_line(*husk, set), fmt::format("{}:\t0000000000000000", set));
    }
  }
  // A pid that is taken is an error, and the replica goes on.
  EXPECT_EQ(errno_of(capsule->spawn_husk({77}, pair->second.get(), 900).status()), EEXIST);
  EXPECT_EQ(capsule->work_pids()->size(), 3U);
}

TEST(ReplicaTest, DiesWithItsCreatorBeforeAdopt) {
  TestService service;
  service.options().replica = true;
  HostPid husk;
  HostPid init;
  {
    auto capsule = service.create();
    ASSERT_STATUS_OK(capsule.status());
    auto pair = socket_pair(SOCK_STREAM);
    husk = *capsule->spawn_husk({300}, pair->second.get(), 900);
    init = {capsule->info()->init_pid()};
    ASSERT_STATUS_OK(capsule->freeze(soon()));
  }
  EXPECT_TRUE(dies(husk));
  EXPECT_TRUE(dies(init));
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  const auto info = again->wait_exit(soon());
  EXPECT_NE(info->exit_reason(), "");
}

TEST(ReplicaTest, LivesOnAfterAdoptAndReapsThen) {
  TestService service;
  service.options().replica = true;
  HostPid husk;
  HostPid zombie;
  {
    auto capsule = service.create();
    ASSERT_STATUS_OK(capsule.status());
    auto pair = socket_pair(SOCK_STREAM);
    husk = *capsule->spawn_husk({300}, pair->second.get(), 900);
    zombie = *capsule->spawn_husk({301}, pair->second.get(), 900);
    ASSERT_EQ(::kill(zombie.value, SIGKILL), 0);
    EXPECT_TRUE(dies(zombie));
    EXPECT_NE(status_line(zombie, "State:").find('Z'), std::string::npos)
        << "init must not reap before adopt";
    ASSERT_STATUS_OK(capsule->set_main_pid({300}));
    ASSERT_STATUS_OK(capsule->adopt());
    ASSERT_STATUS_OK(capsule->adopt());
  }
  const Deadline deadline = soon();
  while (!status_line(zombie, "State:").empty() && !deadline.passed()) ::usleep(1000);
  EXPECT_EQ(status_line(zombie, "State:"), "") << "reaped after adopt";
  auto again = service.open();
  ASSERT_STATUS_OK(again.status());
  EXPECT_EQ(again->info()->state(), CAPSULE_RUNNING);
  EXPECT_EQ(again->info()->main_pid(), husk.value);
  ASSERT_STATUS_OK(again->signal(SIGTERM));
  const auto info = again->wait_exit(soon());
  EXPECT_EQ(info->exit_signal(), SIGTERM);
  EXPECT_EQ(info->exit_code(), 128 + SIGTERM);
}

TEST(ReplicaTest, KeepsEtcOfItsLayer) {
  TestService service;
  service.options().replica = true;
  ASSERT_STATUS_OK(make_service_dirs(service.node().service("svc")));
  const std::string etc = service.node().service("svc").upper() + "/etc";
  std::filesystem::create_directory(etc);
  {
    const auto fd = kernel::open(etc + "/hostname", O_CREAT | O_WRONLY, 0644);
    ASSERT_EQ(::write(fd->get(), "carried\n", 8), 8);
  }
  auto capsule = service.create();
  ASSERT_STATUS_OK(capsule.status());
  const auto root = fmt::format("/proc/{}/root", capsule->info()->init_pid());
  EXPECT_EQ(*kernel::read_file(root + "/etc/hostname"), "carried\n");
}

}  // namespace
}  // namespace godwit::capsule
