// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Steps of the wall clock by an hour and by a year in both directions: while a store runs, in a suspend, and across
// restarts. The monotonic clock does not see them; a restart sees nothing else.
#include <gtest/gtest.h>

#include "core/store_fixture.h"

namespace statepool {
namespace {

constexpr auto kSync = Durability::kSync;
constexpr absl::Duration kLife = absl::Seconds(10);
constexpr absl::Duration kNanosecond = absl::Nanoseconds(1);

std::string NameOf(const ::testing::TestParamInfo<absl::Duration>& step) {
  const absl::Duration size = absl::AbsDuration(step.param);
  return std::string(size > absl::Hours(24) ? "AYear" : "AnHour") + (step.param == size ? "Ahead" : "Back");
}

class StoreClockTest : public StoreTest, public ::testing::WithParamInterface<absl::Duration> {
 protected:
  static absl::Duration Step() { return GetParam(); }
  bool Ahead() const { return Step() > absl::ZeroDuration(); }

  NameOptions Until(absl::Time time, Durability durability = Durability::kWriteBehind) {
    return {durability, {}, {}, time, false};
  }
  bool Lives(const std::string& name) { return store_->Describe(op_, Seq(name)).ok(); }
  absl::Time ExpireTime(const std::string& name) { return store_->Describe(op_, Seq(name))->expire_time; }
  // Everything that may be folded is.
  void Fold() {
    images_->cold_at_once = true;
    ASSERT_TRUE(store_->Flush(op_, {}).ok());
    for (int i = 0; i < 3; ++i) store_->FoldIdle();
    store_->CheckInvariants();
  }
  void RestartAfterStep(bool orderly) {
    if (orderly) {
      ASSERT_TRUE(store_->Drain(op_).ok());
    }
    store_.reset();
    clock_.JumpWall(Step());
    Start();
  }
};

INSTANTIATE_TEST_SUITE_P(Steps, StoreClockTest,
                         ::testing::Values(absl::Hours(1), absl::Hours(-1), absl::Hours(24 * 365),
                                           absl::Hours(-24 * 365)),
                         NameOf);

TEST_P(StoreClockTest, AStepExpiresNothingEarlyOrLate) {
  for (const bool folded : {false, true}) {
    ASSERT_TRUE(Set("idle", 1, 'i', Ttl(kLife)).ok());
    ASSERT_TRUE(Set("absolute", 1, 'a', Until(clock_.WallNow() + kLife)).ok());
    if (folded) Fold();
    const absl::Time expire_time = ExpireTime("absolute");
    clock_.JumpWall(Step());
    Reap();
    clock_.Advance(kLife - kNanosecond);
    Reap();
    EXPECT_TRUE(Lives("idle"));
    EXPECT_TRUE(Lives("absolute"));
    EXPECT_EQ(ExpireTime("absolute"), expire_time) << "as it was asked for";
    EXPECT_EQ(ExpireTime("idle"), clock_.WallNow() + kNanosecond) << "by the clock as it is now";
    clock_.Advance(kNanosecond);
    Reap();
    EXPECT_REASON(store_->Describe(op_, Seq("idle")), "EXPIRED");
    EXPECT_REASON(store_->Describe(op_, Seq("absolute")), "EXPIRED");
  }
}

TEST_P(StoreClockTest, AUseAfterAStepStartsIdleTimeAnewAndNotLonger) {
  ASSERT_TRUE(Set("idle", 1, 'i', Ttl(kLife)).ok());
  clock_.Advance(kLife / 2);
  clock_.JumpWall(Step());
  EXPECT_EQ(*Get(Seq("idle")), 'i');
  EXPECT_EQ(ExpireTime("idle"), clock_.WallNow() + kLife);
  clock_.Advance(kLife - kNanosecond);
  Reap();
  EXPECT_TRUE(Lives("idle"));
  clock_.Advance(kNanosecond);
  EXPECT_FALSE(Lives("idle"));
}

TEST_P(StoreClockTest, AnAbsoluteTimeIsJudgedByTheClockAsItIsWhenItIsAskedFor) {
  const absl::Time before = clock_.WallNow();
  clock_.JumpWall(Step());
  EXPECT_REASON(Set("a", 1, 'a', Until(clock_.WallNow())), "INVALID_OPTION");
  EXPECT_REASON(Set("a", 1, 'a', Until(clock_.WallNow() + options_.max_ttl + kNanosecond)), "INVALID_OPTION");
  EXPECT_TRUE(Set("a", 1, 'a', Until(clock_.WallNow() + options_.max_ttl)).ok());
  EXPECT_EQ(Set("b", 1, 'b', Until(before + kLife)).ok(), !Ahead() && kLife - Step() <= options_.max_ttl);
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->create_time, before + Step());
}

TEST_P(StoreClockTest, WriteBehindAndItsLagDoNotSeeAStep) {
  ASSERT_TRUE(Set("before", 1, 'b').ok());
  clock_.Advance(options_.write_behind.flush_interval / 2);
  clock_.JumpWall(Step());
  EXPECT_EQ(store_->stats().flush_lag, options_.write_behind.flush_interval / 2);
  ASSERT_TRUE(Set("after", 1, 'a').ok());
  FlushDue();
  EXPECT_EQ(store_->stats().dirty_names, 2u) << "not due yet";
  clock_.Advance(options_.write_behind.flush_interval / 2);
  FlushDue();
  EXPECT_EQ(store_->stats().dirty_names, 1u);
  EXPECT_EQ(store_->stats().flush_lag, options_.write_behind.flush_interval / 2);
  clock_.Advance(options_.write_behind.flush_interval / 2);
  FlushDue();
  EXPECT_EQ(store_->stats().dirty_names, 0u);
  EXPECT_EQ(store_->stats().flush_lag, absl::ZeroDuration());
}

TEST_P(StoreClockTest, AStepEndsNoCall) {
  Op op = op_;
  op.deadline = After(clock_.Now(), absl::Seconds(1));
  clock_.JumpWall(Step());
  EXPECT_TRUE(op.Check(clock_).ok());
  EXPECT_TRUE(store_->RegisterLayout(op, layout_, "again").ok());
  clock_.Advance(absl::Seconds(1));
  EXPECT_REASON(op.Check(clock_), "DEADLINE");
}

TEST_P(StoreClockTest, AfterARestartAnAbsoluteTimeIsTheWallClocksAndIdleTimeStartsAnew) {
  for (const bool orderly : {true, false}) {
    const std::string absolute = orderly ? "absolute/stop" : "absolute/crash";
    const std::string idle = orderly ? "idle/stop" : "idle/crash";
    const absl::Time expire_time = clock_.WallNow() + absl::Minutes(30);
    ASSERT_TRUE(Set(absolute, 1, 'a', Until(expire_time, kSync)).ok());
    const auto before = Set(idle, 1, 'i', {kSync, {}, kLife, {}, false});
    ASSERT_TRUE(before.ok());
    clock_.Advance(kLife / 2);
    RestartAfterStep(orderly);
    Reap();
    EXPECT_EQ(Lives(absolute), !Ahead());
    EXPECT_EQ(ExpireTime(idle), clock_.WallNow() + kLife);
    const auto after = Set("other", 1, 'o');
    ASSERT_TRUE(after.ok());
    EXPECT_GT(after->revision, before->revision);
    EXPECT_GT(after->version.id, before->version.id);
    clock_.Advance(kLife - kNanosecond);
    EXPECT_TRUE(Lives(idle));
    clock_.Advance(kNanosecond);
    EXPECT_FALSE(Lives(idle));
    if (Ahead()) continue;
    EXPECT_EQ(ExpireTime(absolute), expire_time);
    clock_.Advance(expire_time - clock_.WallNow() - kNanosecond);
    EXPECT_TRUE(Lives(absolute));
    clock_.Advance(kNanosecond);
    EXPECT_REASON(Get(Seq(absolute)), "EXPIRED");
  }
}

TEST_P(StoreClockTest, WhatWasOverAtARestartStaysGoneWhenTheClockGoesBack) {
  ASSERT_TRUE(Set("a", 1, 'a', Until(clock_.WallNow() + kLife, kSync)).ok());
  store_.reset();
  clock_.JumpWall(absl::Seconds(11));
  Start();
  Reap();
  FlushDue();
  RestartAfterStep(/*orderly=*/true);
  clock_.JumpWall(-Step() - absl::Seconds(11));
  Stop();
  EXPECT_REASON(Get(Seq("a")), "EXPIRED");
}

// The monotonic clock stands still in a suspend, and the wall clock goes on: to the store, a step ahead while nothing
// happens. So what was begun before it has all of its time afterwards, and a restart still counts by the wall clock.
TEST_F(StoreTest, ASuspendTakesNoTimeUntilARestart) {
  for (const absl::Duration slept : {absl::Hours(1), absl::Hours(24 * 365)}) {
    NameOptions until{kSync, {}, {}, clock_.WallNow() + absl::Minutes(30), false};
    ASSERT_TRUE(Set("absolute", 1, 'a', until).ok());
    ASSERT_TRUE(Set("idle", 1, 'i', Ttl(kLife)).ok());
    const Op op{.deadline = After(clock_.Now(), absl::Seconds(5))};
    clock_.JumpWall(slept);
    Reap();
    FlushDue();
    EXPECT_EQ(store_->stats().dirty_names, 1u);
    EXPECT_TRUE(store_->Describe(op, Seq("absolute")).ok());
    EXPECT_TRUE(store_->Describe(op, Seq("idle")).ok());
    Stop();
    EXPECT_REASON(Get(Seq("absolute")), "EXPIRED");
    EXPECT_EQ(*Get(Seq("idle")), 'i');
  }
}

// Where the machine was suspended but its monotonic clock went on (a virtual machine): as if nobody had looked so long.
TEST_F(StoreTest, AfterALongPauseWhatIsOverGoesAndWhatIsDueIsWritten) {
  for (const absl::Duration pause : {absl::Hours(1), absl::Hours(24 * 365)}) {
    ASSERT_TRUE(Set("idle", 1, 'i', Ttl(absl::Minutes(1))).ok());
    ASSERT_TRUE(Set("absolute", 1, 'a', {{}, {}, {}, clock_.WallNow() + absl::Minutes(1), false}).ok());
    ASSERT_TRUE(Set("longer", 1, 'l', Ttl(options_.max_ttl)).ok());
    ASSERT_TRUE(Set("forever", 1, 'f').ok());
    const Op op{.deadline = After(clock_.Now(), absl::Seconds(5))};
    clock_.Advance(pause);
    EXPECT_EQ(store_->stats().flush_lag, pause);
    EXPECT_REASON(store_->Describe(op, Seq("forever")), "DEADLINE");
    FlushDue();
    Reap();
    EXPECT_EQ(store_->stats().flush_lag, absl::ZeroDuration());
    EXPECT_REASON(Get(Seq("idle")), "EXPIRED");
    EXPECT_REASON(Get(Seq("absolute")), "EXPIRED");
    EXPECT_EQ(Get(Seq("longer")).ok(), pause < options_.max_ttl);
    Crash();
    EXPECT_EQ(*Get(Seq("forever")), 'f');
  }
}

}  // namespace
}  // namespace statepool
