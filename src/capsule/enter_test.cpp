#include "capsule/enter.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include <vector>

#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

TEST(CapsuleThreadTest, IsInTheCapsuleWhileTheProcessIsNot) {
  TestService service;
  service.spec().set_hostname("inside");
  auto capsule = service.sh("exec sleep 1000");
  ASSERT_STATUS_OK(capsule.status());
  const HostPid init{capsule->info()->init_pid()};
  auto thread = CapsuleThread::start(init);
  ASSERT_STATUS_OK(thread.status());
  const auto link = [](const char* path) { return *kernel::readlinkat(AT_FDCWD, path); };
  const std::string before = link("/proc/self/ns/net");
  ASSERT_STATUS_OK((*thread)->run([&]() -> absl::Status {
    utsname name{};
    ::uname(&name);
    EXPECT_STREQ(name.nodename, "inside");
    EXPECT_EQ(std::filesystem::current_path(), "/");
    GW_ASSIGN_OR_RETURN(const UniqueFd fd, kernel::open("/made", O_CREAT | O_WRONLY, 0600));
    const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_TRUE(static_cast<bool>(socket));
    return absl::OkStatus();
  }));
  EXPECT_EQ(::access((capsule->paths().upper() + "/made").c_str(), F_OK), 0);
  EXPECT_NE(::access("/made", F_OK), 0);
  EXPECT_EQ(link("/proc/self/ns/net"), before);
  // The status comes back; the thread goes on; many hand-overs lose nothing.
  EXPECT_EQ((*thread)->run([] { return absl::AbortedError("no"); }).code(),
            absl::StatusCode::kAborted);
  int count = 0;
  std::vector<int64_t> times;
  for (int i = 0; i < 2000; ++i) {
    const int64_t start = monotonic_ns();
    ASSERT_STATUS_OK((*thread)->run([&] {
      ++count;
      return absl::OkStatus();
    }));
    times.push_back(monotonic_ns() - start);
  }
  EXPECT_EQ(count, 2000);
  std::sort(times.begin(), times.end());
  RecordProperty("median_ns", static_cast<int>(times[times.size() / 2]));
  std::vector<std::thread> callers;
  std::atomic<int> sum{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int j = 0; j < 100; ++j) {
        EXPECT_TRUE((*thread)
                        ->run([&] {
                          ++sum;
                          return absl::OkStatus();
                        })
                        .ok());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 400);
}

TEST(CapsuleThreadTest, OfAProcessThatIsGoneIsAnError) {
  EXPECT_FALSE(CapsuleThread::start(HostPid{4194304 - 1}).ok());
}

}  // namespace
}  // namespace godwit::capsule
