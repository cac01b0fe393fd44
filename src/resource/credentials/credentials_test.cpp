#include "resource/credentials/credentials.h"

#include <grp.h>
#include <gtest/gtest.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "resource/credentials/capabilities.h"
#include "resource/credentials/credentials.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

void must(bool ok) {
  if (!ok) ::_exit(110);
}

void capset(const CapabilitySets& sets) {
  KernelCapabilities kernel;
  set_capabilities(kernel, sets);
  must(::syscall(SYS_capset, &kernel.header, kernel.data) == 0);
}

// Every field another than root's.
void become_special() {
  const gid_t groups[] = {11, 12, 70000};
  must(::setgroups(3, groups) == 0);
  must(::prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0);
  must(::setresgid(1001, 1002, 1003) == 0);
  ::setfsgid(1004);
  must(::setresuid(2001, 2002, 2003) == 0);
  ::setfsuid(2004);
  const uint64_t all = capabilities_of({0})->permitted;
  const uint64_t kept = capability_bit(CAP_NET_BIND_SERVICE) | capability_bit(CAP_KILL) |
                        capability_bit(CAP_SYS_TIME);
  // One that is inheritable but not in the bounding set: legal, if gained in this order.
  const uint64_t inheritable =
      capability_bit(CAP_NET_BIND_SERVICE) | capability_bit(CAP_KILL) | capability_bit(CAP_MKNOD);
  capset({.effective = all, .permitted = all, .inheritable = inheritable});
  for (const int cap : {CAP_MKNOD, CAP_SYS_BOOT, CAP_AUDIT_WRITE})
    must(::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0);
  must(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
  must(::prctl(PR_SET_SECUREBITS,
               SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT |
                   SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_KEEP_CAPS,
               0, 0, 0) == 0);
  capset({.effective = capability_bit(CAP_KILL), .permitted = kept, .inheritable = inheritable});
  must(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  must(::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
}

int check_special() {
  uid_t r = 0;
  uid_t e = 0;
  uid_t s = 0;
  ::getresuid(&r, &e, &s);
  if (r != 2001 || e != 2002 || s != 2003 || ::setfsuid(static_cast<uid_t>(-1)) != 2004) return 1;
  ::getresgid(&r, &e, &s);
  if (r != 1001 || e != 1002 || s != 1003 || ::setfsgid(static_cast<gid_t>(-1)) != 1004) return 2;
  gid_t groups[4];
  if (::getgroups(4, groups) != 3 || groups[2] != 70000) return 3;
  if (::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) return 4;
  if (::prctl(PR_GET_DUMPABLE) != 1) return 5;
  if (::prctl(PR_CAPBSET_READ, CAP_MKNOD) != 0 || ::prctl(PR_CAPBSET_READ, CAP_CHOWN) != 1)
    return 6;
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) != 1) return 7;
  if (capabilities_of({0})->effective != capability_bit(CAP_KILL)) return 8;
  if (::setuid(0) == 0) return 9;
  return 0;
}

TEST(CredentialsTest, EveryField) {
  StoppedChild source(become_special);
  const absl::StatusOr<std::string> state = source.capture(credentials_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  CredentialsState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.fs_uid(), 2004U);
  EXPECT_EQ(parsed.groups_size(), 3);
  EXPECT_NE(parsed.inheritable() & capability_bit(CAP_MKNOD), 0U);
  EXPECT_EQ(parsed.bounding() & capability_bit(CAP_MKNOD), 0U);
  EXPECT_EQ(parsed.ambient(), capability_bit(CAP_KILL));

  StoppedChild husk({}, check_special);
  const absl::Status restored = husk.restore(credentials_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(credentials_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(CredentialsTest, AnOrdinaryUser) {
  const auto become = [] {
    must(::setgroups(0, nullptr) == 0 && ::setresgid(500, 500, 500) == 0 &&
         ::setresuid(500, 500, 500) == 0);
  };
  StoppedChild source(become);
  const absl::StatusOr<std::string> state = source.capture(credentials_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  CredentialsState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.permitted(), 0U);
  EXPECT_NE(parsed.dumpable(), 1U);  // of root only, or none, as fs.suid_dumpable says
  StoppedChild husk({}, [] { return ::getuid() == 500 && ::setuid(0) != 0 ? 0 : 1; });
  const absl::Status restored = husk.restore(credentials_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(credentials_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(CredentialsTest, RootAsItIs) {
  StoppedChild source;
  const absl::StatusOr<std::string> state = source.capture(credentials_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  StoppedChild husk;
  const absl::Status restored = husk.restore(credentials_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(credentials_resource()).value(), *state);
}

TEST(CredentialsTest, MoreGroupsThanUsual) {
  StoppedChild source([] {
    std::vector<gid_t> groups;
    for (gid_t g = 0; g < 1000; ++g) groups.push_back(3 * g + 1);
    must(::setgroups(groups.size(), groups.data()) == 0);
  });
  const absl::StatusOr<std::string> state = source.capture(credentials_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  StoppedChild husk({}, [] { return ::getgroups(0, nullptr) == 1000 ? 0 : 1; });
  ASSERT_TRUE(husk.restore(credentials_resource(), *state).ok());
  EXPECT_EQ(husk.capture(credentials_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(CredentialsTest, CapabilitiesThatAreNotHereAreRefused) {
  StoppedChild source;
  const std::string state = source.capture(credentials_resource()).value();
  StoppedChild poor([] { must(::prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0) == 0); });
  EXPECT_EQ(poor.restore(credentials_resource(), state).code(),
            absl::StatusCode::kFailedPrecondition);
  StoppedChild poorer([] {
    const uint64_t all = capabilities_of({0})->permitted & ~capability_bit(CAP_SYS_BOOT);
    capset({.effective = all, .permitted = all, .inheritable = 0});
  });
  EXPECT_EQ(poorer.restore(credentials_resource(), state).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CredentialsTest, PrecheckRefusesAUserNamespace) {
  std::vector<Refusal> refusals;
  StoppedChild plain;
  ASSERT_TRUE(credentials_resource().precheck(plain.view(), refusals).ok());
  EXPECT_TRUE(refusals.empty());
  StoppedChild inside([] { must(::unshare(CLONE_NEWUSER) == 0); });
  ASSERT_TRUE(credentials_resource().precheck(inside.view(), refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "credentials.user_namespace");
}

}  // namespace
}  // namespace godwit::resource
