#include "pages/fault_service.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "pages/page_reader.h"
#include "pages/page_server.h"
#include "pages/puppet_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t B = 0x2000'0000'0000;
constexpr uint64_t kSpace = 7;

struct Ends {
  std::unique_ptr<tls::Channel> near;
  std::unique_ptr<tls::Channel> far;
};
// With keys that nobody has shaken hands for.
Ends socket_pair(bool encrypted) {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  UniqueFd near(fds[0]), far(fds[1]);
  if (!encrypted)
    return {std::make_unique<tls::Channel>(std::move(near)),
            std::make_unique<tls::Channel>(std::move(far))};
  tls::Session there, back;
  there.sending.secret.fill(1);
  there.receiving.secret.fill(2);
  back.sending = there.receiving;
  back.receiving = there.sending;
  return {std::make_unique<tls::Channel>(std::move(near), there),
          std::make_unique<tls::Channel>(std::move(far), back)};
}

// A source whose pages a second puppet, with the same mapping, lacks.
class PostCopyTest : public ::testing::TestWithParam<bool> {
 protected:
  static constexpr uint64_t kPages = 4096;  // 16 MiB

  void SetUp() override {
    source.map(B, kPages * P);
    source.fill(B, kPages * P, 5);
    replica.map(B, kPages * P);
  }
  ~PostCopyTest() override { cut(); }

  void arm(PageSet missing) {
    UniqueFd uffd = replica.make_uffd();
    const absl::Status enabled = enable_missing(uffd.get());
    ASSERT_TRUE(enabled.ok()) << enabled;
    ASSERT_TRUE(register_missing(uffd.get(), {B, B + kPages * P}).ok());
    std::vector<FaultService::Space> spaces;
    spaces.push_back({{kSpace, replica.pid(), std::move(missing)}, std::move(uffd)});
    auto started = FaultService::start(std::move(spaces));
    ASSERT_TRUE(started.ok()) << started.status();
    service = *std::move(started);
  }
  void connect(uint64_t bytes_per_s = 0) {
    cut();
    Ends faults = socket_pair(GetParam()), push = socket_pair(GetParam());
    faults_ = std::move(faults.near);
    push_ = std::move(push.near);
    server = std::thread([this, bytes_per_s] {
      Pacer pacer;
      pacer.set_limit(bytes_per_s);
      ProcessPages process({{kSpace, source.pid()}});
      PageServer pages(process, std::move(pacer));
      served = pages.serve(*faults_, *push_, [this](const PageServerFigures& now) {
        figures = now;
        left = now.left;
      });
    });
    service->connect({std::move(faults.far), std::move(push.far), absl::Seconds(2)});
  }
  void cut() {
    if (faults_) ::shutdown(faults_->fd(), SHUT_RDWR);
    if (push_) ::shutdown(push_->fd(), SHUT_RDWR);
    if (server.joinable()) server.join();
  }
  template <typename Condition>
  static bool comes_true(Condition condition) {
    const Deadline deadline = Deadline::in(absl::Seconds(20));
    while (!condition() && !deadline.passed()) ::usleep(1000);
    return condition();
  }
  bool wait_done() {
    return comes_true([&] { return service->state().done; });
  }
  static std::string read(const Puppet& puppet, uint64_t address) {
    PageReader reader(puppet.pid());
    std::string text(P, '\0');
    std::vector<PageRange> got;
    PageSet unreadable;
    const PageRange range{address, address + P};
    EXPECT_TRUE(
        reader.read({&range, 1}, std::as_writable_bytes(std::span(text)), got, unreadable).ok());
    return text;
  }
  void expect_same(uint64_t from_page = 0, uint64_t to_page = kPages) {
    for (uint64_t page = from_page; page < to_page; ++page)
      ASSERT_EQ(read(source, B + page * P), read(replica, B + page * P)) << page;
  }

  Puppet source;
  Puppet replica;
  std::unique_ptr<FaultService> service;
  std::unique_ptr<tls::Channel> faults_, push_;
  std::thread server;
  absl::Status served;
  PageServerFigures figures;  // the server's, until it has ended
  std::atomic<uint64_t> left = kPages;
};

INSTANTIATE_TEST_SUITE_P(Plain, PostCopyTest, ::testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Tls, PostCopyTest, ::testing::Values(true));

TEST_P(PostCopyTest, AllPagesComeWithoutATouchAndOnce) {
  source.call(SYS_madvise, B + 100 * P, 50 * P, MADV_DONTNEED);
  arm({{B, B + kPages * P}});
  connect();
  ASSERT_TRUE(wait_done());
  server.join();
  EXPECT_TRUE(served.ok()) << served;
  EXPECT_EQ(figures.given, kPages - 50);
  EXPECT_EQ(figures.zeros, 50U);
  EXPECT_EQ(service->state().missing, 0U);
  expect_same();
  // Nothing of it is left: a fresh page is populated as ever.
  replica.call(SYS_madvise, B, P, MADV_DONTNEED);
  replica.touch(B);
  EXPECT_EQ(read(replica, B), std::string(P, '\0'));
}

TEST_P(PostCopyTest, ATouchBringsThePageAheadOfTheRest) {
  arm({{B, B + kPages * P}});
  connect(P);  // one page a second is pushed: it would be their turn after an hour
  for (const uint64_t page : {3000U, 1700U, 4095U}) {
    replica.touch(B + page * P);
    EXPECT_EQ(read(source, B + page * P), read(replica, B + page * P));
  }
  EXPECT_GE(service->state().faults, 3U);
  EXPECT_GT(service->state().missing, kPages - 100);
}

TEST_P(PostCopyTest, PagesThatAreNotMissingReadAsZeroAtOnce) {
  arm({{B, B + 8 * P}});
  replica.poke(B + 9 * P, 3);
  replica.touch(B + 10 * P);
  EXPECT_EQ(read(replica, B + 10 * P), std::string(P, '\0'));
  connect();
  ASSERT_TRUE(wait_done());
  expect_same(0, 8);
  EXPECT_EQ(read(replica, B + 9 * P).substr(0, 2), std::string("\3\0", 2));
}

TEST_P(PostCopyTest, WhatTheProgramDropsMeanwhileDoesNotComeBack) {
  arm({{B, B + kPages * P}});
  replica.call(SYS_madvise, B + 10 * P, 10 * P, MADV_DONTNEED);
  replica.touch(B + 12 * P);
  replica.call(SYS_munmap, B + 30 * P, 10 * P);
  replica.map(B + 30 * P, 10 * P);
  replica.poke(B + 31 * P, 9);
  connect();
  ASSERT_TRUE(wait_done());
  expect_same(0, 10);
  for (uint64_t page = 10; page < 20; ++page)
    EXPECT_EQ(read(replica, B + page * P), std::string(P, '\0'));
  expect_same(20, 30);
  EXPECT_EQ(read(replica, B + 31 * P)[0], 9);
  EXPECT_EQ(read(replica, B + 32 * P), std::string(P, '\0'));
  expect_same(40);
}

TEST_P(PostCopyTest, TheSourceHearsOfWhatIsDroppedWhileItPushes) {
  arm({{B, B + kPages * P}});
  connect(P);
  replica.touch(B);  // it has the list
  replica.call(SYS_madvise, B + 1000 * P, 3000 * P, MADV_DONTNEED);
  EXPECT_TRUE(comes_true([&] { return left > kPages - 3000 - 200 && left <= kPages - 3000; }));
}

TEST_P(PostCopyTest, MovedMappingsGetTheirPages) {
  constexpr uint64_t kElsewhere = B + 64 * kPages * P;
  arm({{B, B + kPages * P}});
  EXPECT_EQ(replica.call(SYS_mremap, B + 100 * P, 50 * P, 50 * P, MREMAP_MAYMOVE | MREMAP_FIXED,
                         kElsewhere),
            static_cast<int64_t>(kElsewhere));
  connect(P);
  replica.touch(kElsewhere + 3 * P);
  EXPECT_EQ(read(replica, kElsewhere + 3 * P), read(source, B + 103 * P));
  connect();
  ASSERT_TRUE(wait_done());
  for (uint64_t page = 0; page < 50; ++page)
    ASSERT_EQ(read(replica, kElsewhere + page * P), read(source, B + (100 + page) * P)) << page;
  expect_same(0, 100);
  expect_same(150);
}

TEST_P(PostCopyTest, AChildLacksWhatItsParentLacks) {
  arm({{B, B + kPages * P}});
  const auto child = static_cast<pid_t>(replica.fork_sleeper());
  ASSERT_GT(child, 0);
  // Before the parent has it and before the page has come to either.
  replica.call(SYS_madvise, B + 50 * P, P, MADV_DONTNEED);
  connect();
  ASSERT_TRUE(wait_done());
  expect_same(0, 50);
  PageReader reader(HostPid{child});
  std::string text(kPages * P, '\0');
  std::vector<PageRange> got;
  PageSet unreadable;
  const PageRange all{B, B + kPages * P};
  ASSERT_TRUE(
      reader.read({&all, 1}, std::as_writable_bytes(std::span(text)), got, unreadable).ok());
  for (uint64_t page = 0; page < kPages; ++page)
    ASSERT_EQ(text.substr(page * P, P), read(source, B + page * P)) << page;
  EXPECT_EQ(read(replica, B + 50 * P), std::string(P, '\0'));
  ::kill(child, SIGKILL);
}

TEST_P(PostCopyTest, ATouchWaitsWhileTheSourceCannotBeReached) {
  arm({{B, B + kPages * P}});
  connect(P);
  replica.touch(B + 5 * P);
  cut();
  std::thread toucher([&] { replica.touch(B + 2000 * P); });
  EXPECT_TRUE(comes_true([&] { return !service->state().connected; }));
  EXPECT_GT(service->state().missing, kPages - 100);
  connect();
  toucher.join();
  ASSERT_TRUE(wait_done());
  expect_same();
}

TEST_P(PostCopyTest, WhatIsMissingOfALostSourceIsPoison) {
  arm({{B, B + kPages * P}});
  connect(P);
  replica.touch(B + 5 * P);
  const std::string there = read(source, B + 5 * P);
  cut();
  service->poison();
  ASSERT_TRUE(wait_done());
  EXPECT_GT(service->state().poisoned, kPages - 100);
  EXPECT_EQ(read(replica, B + 5 * P), there);
  // process_vm_readv(2) meets it as the program would.
  char byte = 0;
  iovec local{&byte, 1}, remote{reinterpret_cast<void*>(B + 3000 * P), 1};
  EXPECT_EQ(::process_vm_readv(replica.pid().value, &local, 1, &remote, 1, 0), -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST(PageServerTest, RefusesWhatNobodyMeansToSay) {
  Puppet source;
  source.map(B, 16 * P);
  PageServerFigures figures;
  const auto serve = [&](std::vector<PageHeader> said) {
    Ends faults = socket_pair(false), push = socket_pair(false);
    const auto bytes = std::as_bytes(std::span(said));
    EXPECT_EQ(::write(faults.far->fd(), bytes.data(), bytes.size()),
              static_cast<ssize_t>(bytes.size()));
    ProcessPages process({{kSpace, source.pid()}});
    PageServer server(process, Pacer());
    const auto told = [&figures](const PageServerFigures& now) { figures = now; };
    return server.serve(*faults.near, *push.near, told).code();
  };
  const PageHeader good = page_header(PageMessage::kMissing, kSpace, B, 4);
  PageHeader broken = good;
  broken.address += P;
  const PageHeader end = page_header(PageMessage::kComplete, 0, 0, 0);
  EXPECT_EQ(serve({good, end}), absl::StatusCode::kOk);
  EXPECT_EQ(serve({broken, end}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(serve({good, good, end}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(serve({page_header(PageMessage::kMissing, 8, B, 4), end}), absl::StatusCode::kDataLoss);
  EXPECT_EQ(serve({page_header(PageMessage::kMissing, kSpace, B + 1, 4), end}),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(serve({page_header(PageMessage::kMissing, kSpace, UINT64_MAX - P + 1, 4), end}),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(serve({page_header(PageMessage::kPages, kSpace, B, 0), end}),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(figures.unreadable, 0U);
  // Nothing is mapped there: it is left out, and others are given.
  EXPECT_EQ(serve({page_header(PageMessage::kMissing, kSpace, B, 1),
                   page_header(PageMessage::kMissing, kSpace, 2 * B, 1),
                   page_header(PageMessage::kRequest, kSpace, 2 * B, 1),
                   page_header(PageMessage::kRequest, kSpace, B, 1), end}),
            absl::StatusCode::kOk);
  EXPECT_EQ(figures.unreadable, 1U);
  EXPECT_EQ(figures.zeros, 1U);
  EXPECT_NE(figures.error.find(fmt::format("{:x}", 2 * B)), std::string::npos) << figures.error;
}

TEST(MissingPagesTest, FollowsMovesDropsAndForks) {
  MissingPages missing;
  missing.add(1, {{0, 10 * P}, {20 * P, 30 * P}});
  EXPECT_EQ(missing.pages(), 20U);
  EXPECT_EQ(missing.remove(1, {5 * P, 22 * P}), 7U);
  missing.move(1, 2 * P, 100 * P, 2 * P);
  EXPECT_EQ(missing.source_of(1, 101 * P), (SourcePage{1, 3 * P}));
  EXPECT_FALSE(missing.source_of(1, 2 * P));
  missing.fork(1, 2);
  EXPECT_EQ(missing.pages(), 26U);
  EXPECT_EQ(missing.places(1, {0, 5 * P}).size(), 6U);  // 0-2, 4-5 and 100-102, in both
  missing.move(1, 100 * P, 4 * P, P);                   // over what is missing there
  EXPECT_EQ(missing.source_of(1, 4 * P), (SourcePage{1, 2 * P}));
  EXPECT_EQ(missing.pages(), 25U);
  EXPECT_EQ(missing.wanted().at(1), (PageSet{{0, 5 * P}, {22 * P, 30 * P}}));
  EXPECT_EQ(missing.remove_space(2), 13U);
  EXPECT_EQ(missing.wanted().at(1), (PageSet{{0, 4 * P}, {22 * P, 30 * P}}));
}

TEST(MissingPagesTest, TheListForTheShimIsChecked) {
  const std::vector<MissingSpace> spaces = {{7, HostPid{12}, {{B, B + P}, {B + 3 * P, B + 9 * P}}},
                                            {9, HostPid{13}, {}}};
  const std::string bytes = encode_missing(spaces);
  const auto again = decode_missing(bytes);
  ASSERT_TRUE(again.ok());
  ASSERT_EQ(again->size(), 2U);
  EXPECT_EQ(again->at(0).missing, spaces[0].missing);
  EXPECT_EQ(again->at(1).pid, HostPid{13});
  for (size_t cut = 1; cut < bytes.size(); ++cut)
    EXPECT_EQ(decode_missing(bytes.substr(0, cut)).ok(), cut == bytes.size() - 24) << cut;
}

}  // namespace
}  // namespace godwit::pages
