// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/core/error.h"

namespace statepool {
namespace {

TEST(Executor, RunsEveryTaskThatItTook) {
  std::atomic<int> ran{0};
  {
    Executor executor(4, 10'000);
    for (int i = 0; i < 10'000; ++i) ASSERT_TRUE(executor.Submit([&ran] { ++ran; }).ok());
  }
  EXPECT_EQ(ran, 10'000);
}

TEST(Executor, RunsAsManyTasksAtATimeAsItHasThreads) {
  absl::Notification all_in, go;
  std::atomic<int> in{0};
  Executor executor(3, 10);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(executor
                    .Submit([&] {
                      if (++in == 3) all_in.Notify();
                      go.WaitForNotification();
                    })
                    .ok());
  }
  all_in.WaitForNotification();  // would never come with fewer threads
  go.Notify();
}

TEST(Executor, RefusesWhatItsQueueHasNoRoomForAndSaysWhenToRetry) {
  absl::Notification started, go;
  std::atomic<int> ran{0};
  {
    Executor executor(1, 2);
    ASSERT_TRUE(executor
                    .Submit([&] {
                      started.Notify();
                      go.WaitForNotification();
                    })
                    .ok());
    started.WaitForNotification();
    ASSERT_TRUE(executor.Submit([&] { ++ran; }).ok());
    ASSERT_TRUE(executor.Submit([&] { ++ran; }).ok());
    EXPECT_EQ(executor.queued(), 2u);
    auto refused_task_owns = std::make_shared<int>(0);
    const absl::Status refused = executor.Submit([refused_task_owns] { FAIL(); });
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(ReasonOf(refused), "QUEUE_FULL");
    EXPECT_GT(GetErrorDetail(refused).retry_after, absl::ZeroDuration());
    EXPECT_EQ(refused_task_owns.use_count(), 1);
    go.Notify();
  }
  EXPECT_EQ(ran, 2);
}

TEST(Executor, TasksOfOneThreadRunInTheOrderInWhichTheyCame) {
  std::vector<int> order;
  {
    Executor executor(1, 100);
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(executor.Submit([&order, i] { order.push_back(i); }).ok());
  }
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(Executor, ManyThreadsMaySubmitAtOnce) {
  std::atomic<int> ran{0};
  {
    Executor executor(2, 100'000);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 5'000; ++i) ASSERT_TRUE(executor.Submit([&ran] { ++ran; }).ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(ran, 20'000);
}

}  // namespace
}  // namespace statepool
