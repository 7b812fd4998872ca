// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/copy_scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/core/error.h"

namespace statepool {
namespace {

constexpr uint64_t kLarge = 1 << 30;

class CopySchedulerTest : public ::testing::Test {
 protected:
  static Op OfTenant(TenantId tenant) {
    Op op;
    op.tenant = tenant;
    return op;
  }
  // Runs `job` on a thread of its own, and comes back when its jobs stand in the queue.
  std::thread Queue(CopyScheduler* copies, std::function<void()> job) {
    const uint64_t before = copies->stats().jobs;
    std::thread thread(std::move(job));
    while (copies->stats().jobs == before) std::this_thread::yield();
    return thread;
  }
  SystemClock clock_;
};

TEST_F(CopySchedulerTest, EachTaskRunsOnce) {
  CopyScheduler copies({.threads = 3}, &clock_);
  for (const uint64_t bytes : {uint64_t{1}, kLarge}) {
    std::vector<std::atomic<int>> ran(100);
    ASSERT_TRUE(copies.Run({}, nullptr, bytes, ran.size(), [&](size_t i) { ++ran[i]; }).ok());
    for (const auto& times : ran) EXPECT_EQ(times, 1);
  }
  EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 0, [](size_t) { FAIL(); }).ok());
  EXPECT_EQ(copies.stats().jobs, 0u);
  EXPECT_EQ(copies.stats().waiting_bytes, 0u);
}

TEST_F(CopySchedulerTest, SmallJobsRunInTheirCallerAlone) {
  CopyScheduler copies({.threads = 3, .inline_bytes = 100}, &clock_);
  std::set<std::thread::id> ran;
  ASSERT_TRUE(copies.Run({}, nullptr, 100, 100, [&](size_t) { ran.insert(std::this_thread::get_id()); }).ok());
  EXPECT_EQ(ran, std::set{std::this_thread::get_id()});
}

TEST_F(CopySchedulerTest, ACallerWorksAlongWithTheThreads) {
  CopyScheduler copies({.threads = 2}, &clock_);
  std::atomic<int> met{0};
  std::thread::id ran[2];
  ASSERT_TRUE(copies
                  .Run({}, nullptr, kLarge, 2,
                       [&](size_t i) {
                         ran[i] = std::this_thread::get_id();
                         for (++met; met < 2;) std::this_thread::yield();  // both at the same time
                       })
                  .ok());
  EXPECT_NE(ran[0], ran[1]);
  EXPECT_TRUE(ran[0] == std::this_thread::get_id() || ran[1] == std::this_thread::get_id());
}

TEST_F(CopySchedulerTest, NoMoreThanItsThreadsWorkHoweverManyCallersThereAre) {
  CopyScheduler copies({.threads = 2}, &clock_);
  std::atomic<int> working{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        EXPECT_TRUE(copies
                        .Run({}, nullptr, kLarge, 5,
                             [&](size_t) {
                               const int now = ++working;
                               for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) continue;
                               std::this_thread::yield();
                               --working;
                             })
                        .ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 2);
}

TEST_F(CopySchedulerTest, TenantsTakeTurnsHoweverManyJobsOneHas) {
  CopyScheduler copies({.threads = 1}, &clock_);
  absl::Notification begin;
  std::vector<TenantId> order;  // of tasks; one thread runs them
  std::vector<std::thread> threads;
  threads.push_back(Queue(&copies, [&] {
    EXPECT_TRUE(copies.Run(OfTenant(9), nullptr, kLarge, 1, [&](size_t) { begin.WaitForNotification(); }).ok());
  }));
  for (const TenantId tenant : {1u, 1u, 1u, 2u}) {
    threads.push_back(Queue(&copies, [&, tenant] {
      EXPECT_TRUE(copies.Run(OfTenant(tenant), nullptr, kLarge, 10, [&](size_t) { order.push_back(tenant); }).ok());
    }));
  }
  begin.Notify();
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(order.size(), 40u);
  // While both have tasks each second one is of the tenant with one job.
  EXPECT_EQ(std::count(order.begin(), order.begin() + 20, 2u), 10);
}

TEST_F(CopySchedulerTest, ASmallJobDoesNotWaitForALargeOneOfItsTenant) {
  CopyScheduler copies({.threads = 1}, &clock_);
  absl::Notification begin;
  std::vector<int> order;
  std::thread first = Queue(&copies, [&] {
    EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 1, [&](size_t) { begin.WaitForNotification(); }).ok());
  });
  std::thread large = Queue(&copies, [&] {
    EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 1000, [&](size_t) { order.push_back(1000); }).ok());
  });
  std::thread small = Queue(
      &copies, [&] { EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 2, [&](size_t) { order.push_back(2); }).ok()); });
  begin.Notify();
  for (std::thread* thread : {&first, &large, &small}) thread->join();
  EXPECT_EQ(std::count(order.begin(), order.begin() + 4, 2), 2);
}

TEST_F(CopySchedulerTest, AJobThatEndsEarlyDropsWhatWasNotBegunAndWaitsForTheRest) {
  CopyScheduler copies({.threads = 2}, &clock_);
  std::atomic<bool> abandoned{false}, cancelled{false};
  Op op;
  op.cancelled = &cancelled;
  for (std::atomic<bool>* flag : {&abandoned, &cancelled}) {
    std::atomic<int> running{0}, ran{0};
    const absl::Status status = copies.Run(op, &abandoned, kLarge, 10'000, [&](size_t i) {
      ++running;
      if (i == 5) flag->store(true);
      ++ran;
      --running;
    });
    EXPECT_EQ(ReasonOf(status), "CANCELLED");
    EXPECT_EQ(running, 0);
    EXPECT_LT(ran, 10'000);
    flag->store(false);
  }
  op.deadline = clock_.Now() - 1;
  EXPECT_EQ(ReasonOf(copies.Run(op, nullptr, kLarge, 5, [](size_t) { FAIL(); })), "DEADLINE");
  EXPECT_EQ(ReasonOf(copies.Run(op, nullptr, 1, 5, [](size_t) { FAIL(); })), "DEADLINE");
  EXPECT_EQ(copies.stats().dropped_total, 4u);
  EXPECT_EQ(copies.stats().waiting_bytes, 0u);
}

TEST_F(CopySchedulerTest, JobsBeyondTheLimitAreRefusedWithAHint) {
  CopyScheduler copies({.threads = 1, .max_jobs = 1}, &clock_);
  absl::Notification end;
  std::thread thread = Queue(&copies, [&] {
    EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 1, [&](size_t) { end.WaitForNotification(); }).ok());
  });
  const absl::Status refused = copies.Run({}, nullptr, kLarge, 1, [](size_t) { FAIL(); });
  EXPECT_EQ(ReasonOf(refused), "QUEUE_FULL");
  EXPECT_GT(GetErrorDetail(refused).retry_after, absl::ZeroDuration());
  EXPECT_EQ(copies.stats().refused_total, 1u);
  end.Notify();
  thread.join();
  EXPECT_TRUE(copies.Run({}, nullptr, kLarge, 1, [](size_t) {}).ok());
}

TEST_F(CopySchedulerTest, ManyCallersWithManyEndings) {
  CopyScheduler copies({.threads = 3, .max_jobs = 4}, &clock_);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 300; ++i) {
        std::atomic<bool> abandoned{false};
        std::atomic<int> ran{0};
        const absl::Status status = copies.Run(OfTenant(t % 3), &abandoned, kLarge, 20, [&](size_t n) {
          ++ran;
          if (i % 3 == 0 && n == 7) abandoned.store(true);
        });
        if (status.ok()) {
          EXPECT_EQ(ran, 20);
        } else if (ReasonOf(status) == "QUEUE_FULL") {
          EXPECT_EQ(ran, 0);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(copies.stats().jobs, 0u);
  EXPECT_EQ(copies.stats().waiting_bytes, 0u);
}

}  // namespace
}  // namespace statepool
