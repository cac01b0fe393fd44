#include "resource/robust_futex/robust_futex.h"

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "resource/robust_futex/robust_futex.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

robust_list_head own_list;
int own_tid;

void empty_list() { own_list.list.next = &own_list.list; }

void set_own() {
  empty_list();
  if (::syscall(SYS_set_robust_list, &own_list, sizeof own_list) != 0) ::_exit(110);
  ::syscall(SYS_set_tid_address, &own_tid);
}

int check_own() {
  void* head = nullptr;
  size_t length = 0;
  ::syscall(SYS_get_robust_list, 0, &head, &length);
  if (head != &own_list || length != sizeof own_list) return 1;
  int* address = nullptr;
  ::prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0);
  return address == &own_tid ? 0 : 2;
}

TEST(RobustFutexTest, ListAndAddress) {
  StoppedChild source(set_own);
  const absl::StatusOr<std::string> state = source.capture(robust_futex_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  RobustFutexState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  EXPECT_EQ(parsed.list_head(), reinterpret_cast<uint64_t>(&own_list));
  EXPECT_EQ(parsed.clear_child_tid(), reinterpret_cast<uint64_t>(&own_tid));
  StoppedChild husk(empty_list, check_own);
  EXPECT_NE(husk.capture(robust_futex_resource()).value(), *state);
  const absl::Status restored = husk.restore(robust_futex_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(robust_futex_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(RobustFutexTest, NeitherOfThem) {
  StoppedChild source([] {
    ::syscall(SYS_set_robust_list, nullptr, sizeof own_list);
    ::syscall(SYS_set_tid_address, nullptr);
  });
  const absl::StatusOr<std::string> state = source.capture(robust_futex_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "");
  StoppedChild husk(set_own);
  ASSERT_TRUE(husk.restore(robust_futex_resource(), *state).ok());
  EXPECT_EQ(husk.capture(robust_futex_resource()).value(), "");
}

}  // namespace
}  // namespace godwit::resource
