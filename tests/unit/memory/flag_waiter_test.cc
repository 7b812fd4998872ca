// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/flag_waiter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/core/error.h"
#include "server/memory/flag_words.h"

namespace statepool {
namespace {

TEST(FlagWords, AWorkerMapsWhatTheDaemonReadsAndNobodyCanShrinkIt) {
  const auto words = *FlagWords::Create();
  const int fd = *words->Export();
  struct stat file;
  ASSERT_EQ(fstat(fd, &file), 0);
  EXPECT_EQ(static_cast<uint64_t>(file.st_size), FlagWords::kBytes);
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, 2 * FlagWords::kBytes), 0);
  auto* const mapped =
      static_cast<uint32_t*>(mmap(nullptr, FlagWords::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  close(fd);
  ASSERT_NE(mapped, MAP_FAILED);
  for (uint32_t i = 0; i < FlagWords::kCount; ++i) EXPECT_EQ(mapped[i], 0u);
  mapped[FlagWords::kCount - 1] = 7;
  EXPECT_TRUE(words->Reached({FlagWords::kCount - 1, 7}));
  EXPECT_FALSE(words->Reached({FlagWords::kCount - 1, 8}));
  words->Set({3, 9});
  EXPECT_EQ(mapped[3], 9u);
  munmap(mapped, FlagWords::kBytes);
}

TEST(FlagWords, ValuesWrapAround) {
  const auto words = *FlagWords::Create();
  words->Set({1, 0xfffffffe});
  EXPECT_TRUE(words->Reached({1, 0xfffffffe}));
  EXPECT_TRUE(words->Reached({1, 0x7fffffff}));
  EXPECT_FALSE(words->Reached({1, 0xffffffff}));
  EXPECT_FALSE(words->Reached({1, 1}));
  words->Set({1, 2});
  EXPECT_TRUE(words->Reached({1, 0xffffffff}));
  EXPECT_TRUE(words->Reached({1, 1}));
  EXPECT_FALSE(words->Reached({1, 3}));
}

class FlagWaiterTest : public testing::Test {
 protected:
  static constexpr size_t kWaitsMax = 8;

  // Why the wait was over.
  std::future<absl::Status> Wait(FlagValue until, const Op& op = {}) {
    auto told = std::make_shared<std::promise<absl::Status>>();
    EXPECT_EQ(waiter_->Wait(words_, until, op, &ended_, [told](const absl::Status& why) { told->set_value(why); }),
              absl::OkStatus());
    return told->get_future();
  }
  static bool IsTold(const std::future<absl::Status>& told, std::chrono::milliseconds within) {
    return told.wait_for(within) == std::future_status::ready;
  }

  ManualClock clock_;
  const std::shared_ptr<FlagWords> words_ = *FlagWords::Create();
  std::atomic<bool> ended_{false};
  std::unique_ptr<FlagWaiter> waiter_ = std::make_unique<FlagWaiter>(kWaitsMax, &clock_);
};

TEST_F(FlagWaiterTest, ACallGoesOnWhenItsWordIsReachedAndNotBefore) {
  std::future<absl::Status> first = Wait({1, 5}), second = Wait({2, 1});
  words_->Set({1, 4});
  EXPECT_FALSE(IsTold(first, std::chrono::milliseconds(20)));
  words_->Set({1, 6});
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_EQ(waiter_->waiting(), 1u);
  EXPECT_FALSE(IsTold(second, std::chrono::milliseconds(0)));
  words_->Set({2, 1});
  EXPECT_EQ(second.get(), absl::OkStatus());
}

TEST_F(FlagWaiterTest, WhatWaitsForNoWordIsTold) {
  std::promise<absl::Status> told;
  ASSERT_EQ(waiter_->Wait(words_, std::nullopt, {}, &ended_, [&](const absl::Status& why) { told.set_value(why); }),
            absl::OkStatus());
  EXPECT_EQ(told.get_future().get(), absl::OkStatus());
}

TEST_F(FlagWaiterTest, ItIsOverAtTheDeadlineWithTheCallerAndWithTheArena) {
  std::atomic<bool> cancelled{false};
  Op late, given_up;
  late.deadline = After(clock_.Now(), absl::Seconds(3));
  given_up.cancelled = &cancelled;
  std::future<absl::Status> at_deadline = Wait({1, 1}, late), with_caller = Wait({1, 1}, given_up),
                            with_arena = Wait({1, 1});
  EXPECT_FALSE(IsTold(at_deadline, std::chrono::milliseconds(5)));
  clock_.Advance(absl::Seconds(4));
  EXPECT_EQ(ReasonOf(at_deadline.get()), "DEADLINE");
  EXPECT_FALSE(IsTold(with_caller, std::chrono::milliseconds(5)));
  cancelled = true;
  EXPECT_EQ(ReasonOf(with_caller.get()), "CANCELLED");
  EXPECT_FALSE(IsTold(with_arena, std::chrono::milliseconds(5)));
  ended_ = true;
  EXPECT_EQ(with_arena.get().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(waiter_->waiting(), 0u);
}

TEST_F(FlagWaiterTest, SeveralAreToldInTheOrderOfTheirCalls) {
  std::vector<int> order;
  std::promise<void> all;
  for (int i = 0; i < 8; ++i) {
    ASSERT_EQ(waiter_->Wait(words_, FlagValue{1, 1}, {}, &ended_,
                            [&, i](const absl::Status&) {
                              order.push_back(i);
                              if (i == 7) all.set_value();
                            }),
              absl::OkStatus());
  }
  words_->Set({1, 1});
  all.get_future().get();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST_F(FlagWaiterTest, TooManyAreRefusedUntilOneIsOver) {
  std::vector<std::future<absl::Status>> told;
  for (size_t i = 0; i < kWaitsMax; ++i) told.push_back(Wait({1 + static_cast<uint32_t>(i), 1}));
  const absl::Status refused =
      waiter_->Wait(words_, FlagValue{20, 1}, {}, &ended_, [](const absl::Status&) { FAIL() << "it was refused"; });
  EXPECT_EQ(ReasonOf(refused), "QUEUE_FULL");
  EXPECT_GT(GetErrorDetail(refused).retry_after, absl::ZeroDuration());
  words_->Set({3, 1});
  EXPECT_EQ(told[2].get(), absl::OkStatus());
  told.push_back(Wait({20, 1}));
  ended_ = true;
}

TEST_F(FlagWaiterTest, WhoWaitsWhenItIsDrainedIsToldAndNobodyWaitsAfterwards) {
  std::future<absl::Status> told = Wait({1, 1});
  waiter_->Drain();
  ASSERT_TRUE(IsTold(told, std::chrono::milliseconds(0)));
  EXPECT_EQ(ReasonOf(told.get()), "DRAINING");
  EXPECT_EQ(ReasonOf(waiter_->Wait(words_, FlagValue{1, 1}, {}, &ended_, [](const absl::Status&) {})), "DRAINING");
  waiter_->Drain();
}

TEST_F(FlagWaiterTest, WhoIsToldMayWaitAnew) {
  std::promise<absl::Status> told;
  ASSERT_EQ(waiter_->Wait(words_, FlagValue{1, 1}, {}, &ended_,
                          [&](const absl::Status&) {
                            EXPECT_EQ(waiter_->Wait(words_, FlagValue{1, 2}, {}, &ended_,
                                                    [&](const absl::Status& why) { told.set_value(why); }),
                                      absl::OkStatus());
                          }),
            absl::OkStatus());
  words_->Set({1, 1});
  std::future<absl::Status> second = told.get_future();
  EXPECT_FALSE(IsTold(second, std::chrono::milliseconds(5)));
  words_->Set({1, 2});
  EXPECT_EQ(second.get(), absl::OkStatus());
}

TEST_F(FlagWaiterTest, OldWaitsAreLookedAtLessOftenAndSeenAllTheSame) {
  const auto looks = [] {
    rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_nvcsw;  // the waiter sleeps between its looks
  };
  std::future<absl::Status> told = Wait({1, 1});
  const long young_before = looks();  // NOLINT(google-runtime-int): as in rusage
  EXPECT_FALSE(IsTold(told, std::chrono::milliseconds(100)));
  const long young = looks() - young_before;  // NOLINT(google-runtime-int)
  clock_.Advance(absl::Seconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const long old_before = looks();  // NOLINT(google-runtime-int)
  EXPECT_FALSE(IsTold(told, std::chrono::milliseconds(100)));
  const long old = looks() - old_before;  // NOLINT(google-runtime-int)
  EXPECT_GT(young, 3 * old) << "looks in 100 ms";
  EXPECT_LE(old, 150);
  words_->Set({1, 1});
  EXPECT_EQ(told.get(), absl::OkStatus());
}

TEST_F(FlagWaiterTest, ThreadsThatWaitAndOthersThatReachAreAllTold) {
  constexpr uint32_t kThreads = 4, kRounds = 300;
  std::vector<std::thread> threads;
  std::atomic<uint32_t> told{0};
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint32_t i = 1; i <= kRounds; ++i) {
        std::future<absl::Status> over = Wait({1 + t, i});
        std::thread reach([&] { words_->Set({1 + t, i}); });
        told += over.get().ok();
        reach.join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(told, kThreads * kRounds);
  EXPECT_EQ(waiter_->waiting(), 0u);
}

}  // namespace
}  // namespace statepool
