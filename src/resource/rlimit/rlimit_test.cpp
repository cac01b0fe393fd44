#include "resource/rlimit/rlimit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "resource/rlimit/rlimit.pb.h"
#include "resource/testing_tasks.h"

namespace godwit::resource {
namespace {

using testing::StoppedChild;

// Lower than what is usual, different for each; RLIMIT_NICE and RLIMIT_RTPRIO are 0 already.
rlimit limit_for(size_t resource) {
  rlimit now{};
  ::getrlimit(static_cast<__rlimit_resource>(resource), &now);
  if (now.rlim_max == 0) return {0, 0};
  switch (resource) {
    case RLIMIT_NOFILE:
      return {100, 200};
    case RLIMIT_NPROC:
      return {3001, 4001};
    case RLIMIT_SIGPENDING:
      return {301, 401};
    case RLIMIT_MEMLOCK:
      return {4096, 8192};
    case RLIMIT_MSGQUEUE:
      return {5000, 6000};
    case RLIMIT_CORE:
      return {0, 1};
    default:
      return {(rlim_t{1} << 35) + resource, (rlim_t{1} << 36) + resource};
  }
}

void lower_all() {
  for (size_t i = 0; i < RLIM_NLIMITS; ++i) {
    const rlimit limit = limit_for(i);
    if (::setrlimit(static_cast<__rlimit_resource>(i), &limit) != 0) ::_exit(110);
  }
}

TEST(RlimitTest, EveryLimit) {
  StoppedChild source(lower_all);
  const absl::StatusOr<std::string> state = source.capture(rlimit_resource());
  ASSERT_TRUE(state.ok()) << state.status();
  RlimitState parsed;
  ASSERT_TRUE(parsed.ParseFromString(*state));
  ASSERT_EQ(parsed.limits_size(), 16);
  EXPECT_EQ(parsed.limits(RLIMIT_NOFILE).soft(), 100U);

  StoppedChild husk({}, [] {
    rlimit now{};
    ::getrlimit(RLIMIT_NOFILE, &now);
    if (now.rlim_cur != 100 || now.rlim_max != 200) return 1;
    ::getrlimit(RLIMIT_AS, &now);
    return now.rlim_cur == (rlim_t{1} << 35) + RLIMIT_AS ? 0 : 2;
  });
  const absl::Status restored = husk.restore(rlimit_resource(), *state);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(husk.capture(rlimit_resource()).value(), *state);
  EXPECT_EQ(husk.finish(), 0);
}

TEST(RlimitTest, OnlyWhatDiffersFromWhatIsKnown) {
  const auto lower = [](rlim_t soft) {
    const rlimit limit{soft, 200};
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) ::_exit(110);
  };
  StoppedChild source([&] { lower(100); });
  const std::string state = source.capture(rlimit_resource()).value();
  StoppedChild husk([&] { lower(150); });
  const std::string known = husk.capture(rlimit_resource()).value();
  size_t calls = 0;
  ASSERT_TRUE(husk.restore(rlimit_resource(), state, known, &calls).ok());
  EXPECT_EQ(calls, 2U);  // the old one, the new one
  EXPECT_EQ(husk.capture(rlimit_resource()).value(), state);
}

TEST(RlimitTest, TheSameFromProcWhileItRuns) {
  StoppedChild source(lower_all);
  const std::string state = source.capture(rlimit_resource()).value();
  TaskView view = source.view();
  view.task = nullptr;
  tracee::Batch batch;
  const absl::StatusOr<TaskResource::Collect> collect = rlimit_resource().capture(view, batch);
  ASSERT_TRUE(collect.ok()) << collect.status();
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ((*collect)(batch).value(), state);
}

TEST(RlimitTest, AHardLimitThatCannotBeHadIsNamed) {
  StoppedChild source;
  const std::string state = source.capture(rlimit_resource()).value();
  StoppedChild husk([] {
    const rlimit low{30, 40};
    ::setrlimit(RLIMIT_NOFILE, &low);
    // What raising it would need.
    ::setresuid(500, 500, 500) == 0 ? void() : ::_exit(110);
  });
  const absl::Status status = husk.restore(rlimit_resource(), state);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(message_of(status).find("RLIMIT_NOFILE"), std::string_view::npos) << status;
  EXPECT_NE(message_of(status).find("40"), std::string_view::npos) << status;
}

}  // namespace
}  // namespace godwit::resource
