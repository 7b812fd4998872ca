// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "absl/time/time.h"

namespace statepool {
namespace {

class WatchdogTest : public ::testing::Test {
 protected:
  MonoTime In(absl::Duration time) { return After(clock_.Now(), time); }
  std::function<void()> Note(int what) {
    return [this, what] {
      MutexLock lock(&mu_);
      done_.push_back(what);
      changed_.SignalAll();
    };
  }
  // Until the watchdog has looked at the clock once more: it did what was due.
  void Look() {
    const Watchdog::Id id = watchdog_.Watch(clock_.Now(), Note(-1));
    MutexLock lock(&mu_);
    while (done_.empty() || done_.back() != -1) changed_.Wait(&mu_);
    done_.pop_back();
    EXPECT_NE(id, 0u);
  }
  std::vector<int> Done() {
    Look();
    MutexLock lock(&mu_);
    return done_;
  }

  ManualClock clock_;
  Mutex mu_;
  CondVar changed_;
  std::vector<int> done_ ABSL_GUARDED_BY(mu_);
  Watchdog watchdog_{&clock_};
};

TEST_F(WatchdogTest, WhatIsLateRunsOnceInTheOrderOfDeadlines) {
  watchdog_.Watch(In(absl::Seconds(3)), Note(3));
  watchdog_.Watch(In(absl::Seconds(1)), Note(1));
  watchdog_.Watch(In(absl::Seconds(2)), Note(2));
  EXPECT_EQ(Done(), std::vector<int>{});
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(Done(), (std::vector<int>{1, 2}));
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Done(), (std::vector<int>{1, 2, 3}));
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(Done(), (std::vector<int>{1, 2, 3}));
}

TEST_F(WatchdogTest, AnExtensionPutsTheEndOffOrBringsItNearer) {
  const Watchdog::Id later = watchdog_.Watch(In(absl::Seconds(1)), Note(1));
  const Watchdog::Id sooner = watchdog_.Watch(In(absl::Hours(1)), Note(2));
  watchdog_.Extend(later, In(absl::Seconds(10)));
  watchdog_.Extend(sooner, In(absl::Seconds(2)));
  clock_.Advance(absl::Seconds(5));
  EXPECT_EQ(Done(), std::vector<int>{2});
  watchdog_.Extend(sooner, In(absl::Seconds(1)));  // it ran already
  clock_.Advance(absl::Seconds(5));
  EXPECT_EQ(Done(), (std::vector<int>{2, 1}));
}

TEST_F(WatchdogTest, WhatIsForgottenNeverRuns) {
  const Watchdog::Id id = watchdog_.Watch(In(absl::Seconds(1)), Note(1));
  watchdog_.Forget(id);
  watchdog_.Forget(id);
  watchdog_.Forget(0);
  watchdog_.Extend(id, clock_.Now());
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(Done(), std::vector<int>{});
}

TEST_F(WatchdogTest, ForgetWaitsForWhatIsJustRunning) {
  std::atomic<bool> began{false}, ended{false};
  const Watchdog::Id id = watchdog_.Watch(clock_.Now(), [&] {
    began = true;
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    ended = true;
  });
  while (!began) std::this_thread::yield();
  watchdog_.Forget(id);
  EXPECT_TRUE(ended);
}

TEST_F(WatchdogTest, WhatRunsMayForgetItselfAndOthers) {
  Watchdog::Id self = 0;
  const Watchdog::Id other = watchdog_.Watch(In(absl::Seconds(2)), Note(2));
  Mutex mu;
  {
    MutexLock lock(&mu);  // it runs only once `self` is known
    self = watchdog_.Watch(clock_.Now(), [&] {
      MutexLock own(&mu);
      watchdog_.Forget(self);
      watchdog_.Forget(other);
      Note(1)();
    });
  }
  Look();
  clock_.Advance(absl::Seconds(3));
  EXPECT_EQ(Done(), std::vector<int>{1});
}

TEST(Watchdog, WhatIsStillWatchedAtTheEndIsNotDone) {
  ManualClock clock;
  std::atomic<int> runs{0};
  {
    Watchdog watchdog(&clock);
    watchdog.Watch(After(clock.Now(), absl::Seconds(1)), [&] { ++runs; });
  }
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(runs, 0);
}

}  // namespace
}  // namespace statepool
