#include "resource/posix_mqueue/posix_mqueue.h"

#include <gtest/gtest.h>
#include <mqueue.h>
#include <sched.h>

#include <thread>

#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::open_file;

TEST(PosixMqueue, QueuesAreFoundOpenOrNotAndRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "an ipc namespace needs root";
  std::thread([] {
    ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
    const auto folder = open_queue_folder();
    ASSERT_TRUE(folder.ok()) << folder.status();
    EXPECT_TRUE(queue_names(folder->get())->empty());
    const UniqueFd queue(::mq_open("/godwit", O_CREAT | O_RDWR, 0600, nullptr));
    ASSERT_TRUE(queue);
    EXPECT_EQ(*queue_names(folder->get()), std::vector<std::string>{"godwit"});

    const FakeCaptureContext context;
    const OpenFile named = open_file(queue.get());
    EXPECT_TRUE(posix_mqueue_kind().recognise(named));
    std::vector<Refusal> refusals;
    ASSERT_TRUE(posix_mqueue_kind().precheck(named, context, refusals).ok());
    ASSERT_EQ(refusals.size(), 1U);
    EXPECT_EQ(refusals[0].code, "mqueue.open");
    EXPECT_FALSE(posix_mqueue_kind().capture(named, context).ok());
    ASSERT_EQ(::mq_unlink("/godwit"), 0);
    EXPECT_TRUE(queue_names(folder->get())->empty());
    EXPECT_TRUE(posix_mqueue_kind().recognise(open_file(queue.get())));
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    EXPECT_FALSE(posix_mqueue_kind().recognise(open_file(null.get())));
  }).join();
}

}  // namespace
}  // namespace godwit::resource
