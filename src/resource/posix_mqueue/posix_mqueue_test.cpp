#include "resource/posix_mqueue/posix_mqueue.h"

#include <gtest/gtest.h>
#include <mqueue.h>
#include <sched.h>
#include <sys/stat.h>

#include <thread>

#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

// In an ipc namespace of its own.
void in_namespace(const std::function<void()>& body) {
  std::thread([&] {
    ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
    // Larger than every queue may be by itself; kernels give a namespace its own limit.
    ASSERT_TRUE(kernel::write_file("/proc/sys/fs/mqueue/msgsize_max", "16000").ok());
    body();
  }).join();
}

struct Sent {
  std::string text;
  unsigned priority;
};
// As they are received: the highest priority first. One is longer than two pages.
const std::vector<Sent> kSent = {
    {std::string(9000, 'l'), 32767}, {"second", 7}, {"third", 7}, {"", 0}, {"last", 0}};

UniqueFd make(const char* name, int flags = 0) {
  mq_attr attributes{};
  attributes.mq_maxmsg = 6;
  attributes.mq_msgsize = 16000;
  UniqueFd queue(::mq_open(name, O_CREAT | O_EXCL | O_RDWR | flags, 0600, &attributes));
  EXPECT_TRUE(queue) << std::strerror(errno);
  for (const unsigned priority : {0U, 7U, 32767U})
    for (const Sent& one : kSent)
      if (one.priority == priority) {
        EXPECT_EQ(::mq_send(queue.get(), one.text.data(), one.text.size(), priority), 0);
      }
  EXPECT_EQ(::fchmod(queue.get(), 0640), 0);
  EXPECT_EQ(::fchown(queue.get(), 31, 32), 0);
  return queue;
}

void expect_messages(int queue) {
  for (const Sent& one : kSent) {
    std::string text(16000, '\0');
    unsigned priority = 1;
    const ssize_t got = ::mq_receive(queue, text.data(), text.size(), &priority);
    ASSERT_EQ(got, static_cast<ssize_t>(one.text.size())) << std::strerror(errno);
    text.resize(static_cast<size_t>(got));
    EXPECT_EQ(text, one.text);
    EXPECT_EQ(priority, one.priority);
  }
}

TEST(PosixMqueue, EveryFieldAndMessage) {
  in_namespace([] {
    const FakeCaptureContext context;
    const auto memory = [&] { return context.kernel_memory(); };
    const auto folder = open_queue_folder();
    ASSERT_TRUE(folder.ok()) << folder.status();
    EXPECT_TRUE(queue_names(folder->get())->empty());
    UniqueFd queue = make("/godwit");
    EXPECT_EQ(*queue_names(folder->get()), std::vector<std::string>{"godwit"});
    std::vector<Refusal> refusals;
    ASSERT_TRUE(refuse_posix_queue(queue.get(), "it", memory, refusals).ok());
    EXPECT_TRUE(refusals.empty());
    const auto state = read_posix_queue(queue.get(), "godwit", memory);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->messages_size(), static_cast<int>(kSent.size()));
    EXPECT_EQ(state->mode(), 0640U);
    // Not a message less for it.
    expect_messages(queue.get());
    queue.reset();
    ASSERT_EQ(::mq_unlink("/godwit"), 0);

    const absl::Status made = make_posix_queue(*state);
    ASSERT_TRUE(made.ok()) << made;
    const UniqueFd again(::mq_open("/godwit", O_RDWR | O_NONBLOCK));
    auto same = read_posix_queue(again.get(), "godwit", memory);
    ASSERT_TRUE(same.ok()) << same.status();
    same->set_id(state->id());
    EXPECT_EQ(same->SerializeAsString(), state->SerializeAsString());
    expect_messages(again.get());
    EXPECT_EQ(errno_of(make_posix_queue(*state)), EEXIST);
  });
}

TEST(PosixMqueue, Descriptors) {
  in_namespace([] {
    const FakeCaptureContext source;
    const FileKind& kind = posix_mqueue_kind();
    for (const bool removed : {false, true}) {
      UniqueFd first = make("/godwit", O_NONBLOCK);
      UniqueFd second(::mq_open("/godwit", O_RDONLY | O_CLOEXEC));
      if (removed) {
        ASSERT_EQ(::mq_unlink("/godwit"), 0);
      }
      ASSERT_TRUE(kind.recognise(open_file(first.get())));
      const auto state = kind.capture(open_file(first.get()), source);
      const auto other = kind.capture(open_file(second.get()), source);
      ASSERT_TRUE(state.ok() && other.ok()) << state.status() << other.status();
      if (removed) {
        first.reset();
        second.reset();
      }
      FakeRestoreContext destination;
      const auto made = kind.create(1, *state, destination);
      const auto other_made = kind.create(2, *other, destination);
      ASSERT_TRUE(made.ok() && other_made.ok()) << made.status() << other_made.status();
      tracee::Batch batch;
      EXPECT_EQ(kind.finishes(*state), removed);
      if (removed) {
        EXPECT_TRUE(kind.finish(made->get(), *state, {1}, 3, batch, destination).ok());
        EXPECT_TRUE(kind.finish(other_made->get(), *other, {1}, 4, batch, destination).ok());
      }
      EXPECT_EQ(::fcntl(made->get(), F_GETFL), O_RDWR | O_NONBLOCK);
      EXPECT_EQ(::fcntl(other_made->get(), F_GETFL), O_RDONLY | O_CLOEXEC);
      struct stat seen {};
      ASSERT_EQ(::fstat(made->get(), &seen), 0);
      EXPECT_EQ(seen.st_nlink, removed ? 0U : 1U);
      expect_messages(other_made->get());
      char byte[16000];
      EXPECT_EQ(::mq_receive(made->get(), byte, sizeof byte, nullptr), -1);
      EXPECT_EQ(errno, EAGAIN);
      EXPECT_EQ(::mq_unlink("/godwit"), removed ? -1 : 0);
    }
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    EXPECT_FALSE(kind.recognise(open_file(null.get())));
  });
}

TEST(PosixMqueue, NotificationsAreRefused) {
  in_namespace([] {
    const FakeCaptureContext source;
    const UniqueFd queue(::mq_open("/godwit", O_CREAT | O_RDWR, 0600, nullptr));
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGURG;
    ASSERT_EQ(::mq_notify(queue.get(), &event), 0);
    std::vector<Refusal> refusals;
    ASSERT_TRUE(posix_mqueue_kind().precheck(open_file(queue.get()), source, refusals).ok());
    ASSERT_EQ(refusals.size(), 1U);
    EXPECT_EQ(refusals[0].code, "mqueue.state");
  });
}

TEST(PosixMqueue, DamagedStatesAreRefused) {
  PosixQueueState right;
  right.set_name("q");
  right.set_most_messages(2);
  right.set_most_bytes(8);
  ASSERT_TRUE(parse_posix_queue(right.SerializeAsString()).ok());
  const auto wrong = [&](const std::function<void(PosixQueueState&)>& damage) {
    PosixQueueState state = right;
    damage(state);
    return absl::IsDataLoss(parse_posix_queue(state.SerializeAsString()).status());
  };
  EXPECT_TRUE(wrong([](auto& s) { s.set_name(""); }));
  EXPECT_TRUE(wrong([](auto& s) { s.set_name("a/b"); }));
  EXPECT_TRUE(wrong([](auto& s) { s.set_name(".."); }));
  EXPECT_TRUE(wrong([](auto& s) { s.set_name(std::string("a\0b", 3)); }));
  EXPECT_TRUE(wrong([](auto& s) { s.set_most_messages(1 << 30); }));
  EXPECT_TRUE(wrong([](auto& s) { s.set_most_bytes(1 << 30); }));
  EXPECT_TRUE(wrong([](auto& s) { s.add_messages()->set_text("123456789"); }));
  EXPECT_TRUE(wrong([](auto& s) { s.add_messages()->set_priority(32768); }));
  EXPECT_TRUE(wrong([](auto& s) {
    for (int i = 0; i < 3; ++i) s.add_messages();
  }));
}

}  // namespace
}  // namespace godwit::resource
