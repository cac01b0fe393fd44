#include "pages/link_share.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "pages/pacer.h"

namespace godwit::pages {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(FairRateTest, WhoWantsLessGetsItAndTheOthersEqualSharesOfTheRest) {
  const auto rate = [](std::vector<uint64_t> demands) { return fair_rate(1200, demands); };
  EXPECT_EQ(rate({}), 1200U);
  EXPECT_EQ(rate({UINT64_MAX}), 600U);
  EXPECT_EQ(rate({UINT64_MAX, UINT64_MAX, UINT64_MAX}), 300U);
  EXPECT_EQ(rate({200}), 1000U);
  EXPECT_EQ(rate({UINT64_MAX, 200}), 500U);
  EXPECT_EQ(rate({900, 200}), 500U);
  EXPECT_EQ(rate({450, 200}), 550U);
  EXPECT_EQ(rate({0, 0}), 1200U);
  std::vector<uint64_t> two = {UINT64_MAX, UINT64_MAX};
  EXPECT_EQ(fair_rate(1, two), 1U);
}

struct File {
  explicit File(uint64_t bytes_per_s) {
    char name[] = "/dev/shm/godwit-share.XXXXXX";
    const UniqueFd fd(::mkstemp(name));
    path = name;
    const absl::Status made = LinkShare::create(path, bytes_per_s);
    EXPECT_TRUE(made.ok()) << made;
  }
  ~File() { ::unlink(path.c_str()); }
  std::string path;
};

// Sends batches for as long as it is told to, as a mover does.
struct Sender {
  explicit Sender(const std::string& path, uint64_t limit = 0) {
    auto share = LinkShare::join(path);
    EXPECT_TRUE(share.ok()) << share.status();
    pacer.set_share(*std::move(share));
    pacer.set_limit(limit);
  }
  void run(absl::Duration time, uint64_t batch) {
    const Deadline deadline = Deadline::in(time);
    while (!deadline.passed()) {
      pacer.charge(batch);
      while (const int64_t wait = pacer.wait_ns()) {
        if (deadline.passed()) return;
        const timespec nap{0, std::min<int64_t>(wait, 10'000'000)};
        ::nanosleep(&nap, nullptr);
      }
      sent += batch;
    }
  }
  Pacer pacer;
  uint64_t sent = 0;
};

// Whether each of them sends what it should within 2 s, together with the others. Less may be a
// machine that had no time for one of them, so that it may try again; more is never right.
bool send_about(std::vector<Sender*> senders, std::vector<uint64_t> batches,
                std::vector<double> expected) {
  constexpr double kTogether = 2 * 40 * kMiB;
  for (int attempt = 0; attempt < 5; ++attempt) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < senders.size(); ++i)
      threads.emplace_back([&, i] { senders[i]->run(absl::Seconds(2), batches[i]); });
    for (std::thread& each : threads) each.join();
    double all = 0;
    bool near = true;
    for (size_t i = 0; i < senders.size(); ++i) {
      const auto sent = static_cast<double>(std::exchange(senders[i]->sent, 0));
      all += sent;
      near = near && std::abs(sent - expected[i]) < 0.2 * expected[i];
    }
    EXPECT_LT(all, 1.15 * kTogether);
    if (near) return true;
  }
  return false;
}

TEST(LinkShareTest, TwoThatSendBatchesOfDifferentSizesGetTheSame) {
  const File file(40 * kMiB);
  Sender one(file.path), other(file.path);
  EXPECT_TRUE(send_about({&one, &other}, {2 * kMiB, kMiB / 16}, {40 * kMiB, 40 * kMiB}));
}

TEST(LinkShareTest, WhatOneDoesNotUseIsTheOthers) {
  const File file(40 * kMiB);
  Sender slow(file.path, 5 * kMiB), quick(file.path), resting(file.path);
  resting.pacer.lift(true);
  EXPECT_TRUE(send_about({&slow, &quick}, {kMiB, kMiB / 4}, {10 * kMiB, 70 * kMiB}));
  EXPECT_EQ(resting.pacer.wait_ns(), 0);
}

TEST(LinkShareTest, OneThatHasDiedCountsNoMore) {
  const File file(40 * kMiB);
  // More than there is room for, all dead.
  for (int i = 0; i < 130; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      auto share = LinkShare::join(file.path);
      if (share.ok()) (*share)->use(kMiB, UINT64_MAX);
      ::_exit(share.ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0) << i;
  }
  auto share = LinkShare::join(file.path);
  ASSERT_TRUE(share.ok()) << share.status();
  const Deadline deadline = Deadline::in(absl::Seconds(5));
  while ((*share)->rate() != 40 * kMiB && !deadline.passed()) ::usleep(10'000);
  EXPECT_EQ((*share)->rate(), 40 * kMiB);
}

}  // namespace
}  // namespace godwit::pages
