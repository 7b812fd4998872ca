// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Who is recorded first, what may wait, and who is told to wait.
#include "server/core/write_behind.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/store_fixture.h"

namespace statepool {
namespace {

constexpr auto kSync = Durability::kSync;
constexpr auto kVolatile = Durability::kVolatile;

class WriteBehindTest : public StoreTest {
 protected:
  // Starts anew with these options.
  void With(WriteBehindOptions options) {
    options_.write_behind = options;
    Stop();
  }
  static NameOptions Of(Durability durability) { return StoreTest::With(durability); }
  bool IsRecorded(const std::string& name) {
    const auto info = store_->Describe(op_, Seq(name));
    return info->durable_revision == info->revision;
  }
  uint64_t state_bytes() const { return layout_->state_bytes(); }
};

TEST_F(WriteBehindTest, NamesThatRestAreRecordedBeforeNamesThatChange) {
  With({.bytes_per_second = 1, .max_lag = absl::Hours(1)});  // one batch at a time
  options_.flush_batch_bytes = 1;
  With(options_.write_behind);
  ASSERT_TRUE(Set("busy", 1, 'a').ok());
  ASSERT_TRUE(Set("idle", 1, 'b').ok());
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(Set("busy", 2, 'c').ok());
  FlushDue();
  EXPECT_TRUE(IsRecorded("idle"));
  EXPECT_FALSE(IsRecorded("busy"));
  clock_.Advance(absl::Hours(1));  // the rate is paid back; by now it rests as well
  FlushDue();
  EXPECT_TRUE(IsRecorded("busy"));
}

TEST_F(WriteBehindTest, ANameThatChangesAllTheTimeIsRecordedAtItsIntervalAllTheSame) {
  for (int i = 1; i <= 30; ++i) {
    ASSERT_TRUE(Set("busy", i, 'a').ok());
    clock_.Advance(absl::Milliseconds(100));
    FlushDue();
    EXPECT_LE(store_->Describe(op_, Seq("busy"))->flush_lag, absl::Milliseconds(1100));
  }
  EXPECT_GE(images_->persists, 2);
  EXPECT_LE(images_->persists, 4);
}

TEST_F(WriteBehindTest, TheRateBoundsWhatTheBackgroundWrites) {
  options_.flush_batch_bytes = 1;
  With({.bytes_per_second = 10 * (state_bytes() + 1024)});
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(Set(absl::StrCat("n", i), 1, 'a').ok());
  clock_.Advance(absl::Seconds(1));
  FlushDue();
  EXPECT_LE(images_->persists, 12);
  const int before = images_->persists;
  clock_.Advance(absl::Seconds(2));
  FlushDue();
  EXPECT_GE(images_->persists, before + 5);
  EXPECT_LE(images_->persists, before + 12);  // a second's worth at most, however long nothing was written
  ASSERT_TRUE(store_->Flush(op_, {}).ok());   // whoever asks does not wait for the rate
  EXPECT_EQ(images_->persists, 60);
}

TEST_F(WriteBehindTest, WhatMayWaitIsBoundedAndWhoeverIsRefusedIsToldWhenToRetry) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 3 * state_bytes(), .max_lag = absl::Hours(2)});
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(Set(name, 1, 'x').ok());
  EXPECT_EQ(store_->stats().dirty_bytes, 3 * state_bytes());
  const int writes = images_->writes;
  const absl::Status refused = Set("d", 1, 'x').status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "FLUSH_BEHIND");
  EXPECT_GT(GetErrorDetail(refused).retry_after, absl::ZeroDuration());
  EXPECT_EQ(images_->writes, writes);  // before a byte was copied
  EXPECT_REASON(Get(Seq("d")), "NEVER_CREATED");
  // What adds nothing that waits goes on.
  EXPECT_TRUE(Set("s", 1, 'x', Of(kSync)).ok());
  EXPECT_TRUE(Set("v", 1, 'x', Of(kVolatile)).ok());
  EXPECT_TRUE(Fork(Seq("a"), {"child"}).ok());
  EXPECT_TRUE(Fork(Seq("s"), {"of-s"}, Of(Durability::kWriteBehind)).ok());
  EXPECT_TRUE(Delete(Seq("b")).ok());
  EXPECT_TRUE(Set("d", 1, 'x').ok());
  // More than half of the limit waits: nothing is put off.
  FlushDue();
  EXPECT_EQ(store_->stats().dirty_bytes, 0u);
  EXPECT_TRUE(Set("e", 1, 'x').ok());
}

TEST_F(WriteBehindTest, OneStateMayWaitHoweverLargeItIs) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 1, .max_lag = absl::Hours(2)});
  EXPECT_TRUE(Set("a", 1, 'x').ok());
  EXPECT_REASON(Set("b", 1, 'x'), "FLUSH_BEHIND");
  FlushDue();
  EXPECT_TRUE(Set("b", 1, 'x').ok());
}

TEST_F(WriteBehindTest, ABatchCountsAllThatItAdds) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 3 * state_bytes(), .max_lag = absl::Hours(2)});
  ASSERT_TRUE(Set("z", 1, 'x').ok());
  const auto results = Batch(
      {SetItemOf("a", 1, 'x'), SetItemOf("b", 1, 'x'), SetItemOf("c", 1, 'x'), SetItemOf("d", 1, 'x', Of(kSync))});
  ASSERT_TRUE(results.ok());
  EXPECT_TRUE((*results)[0].status.ok() && (*results)[1].status.ok() && (*results)[3].status.ok());
  EXPECT_EQ(ReasonOf((*results)[2].status), "FLUSH_BEHIND");
}

TEST_F(WriteBehindTest, ABatchThatCouldNeverWaitIsAdmittedWhenNothingWaits) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 2 * state_bytes(), .max_lag = absl::Hours(2)});
  const std::vector<BatchItem> items = {SetItemOf("a", 1, 'x'), SetItemOf("b", 1, 'x'), SetItemOf("c", 1, 'x')};
  ASSERT_TRUE(Set("z", 1, 'x').ok());
  const auto refused = Batch(items, /*all_or_none=*/true);
  EXPECT_EQ(ReasonOf((*refused)[2].status), "FLUSH_BEHIND");
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  const auto done = Batch(items, /*all_or_none=*/true);
  for (const BatchResult& result : *done) EXPECT_TRUE(result.status.ok()) << result.status;
}

TEST_F(WriteBehindTest, AnImageCountsOnceHoweverManyNamesOfABatchWaitForIt) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 3 * state_bytes(), .max_lag = absl::Hours(2)});
  ASSERT_TRUE(Set("v", 1, 'x', Of(kVolatile)).ok() && Set("z", 1, 'x').ok());
  std::vector<BatchItem> items;
  for (int i = 0; i < 10; ++i)
    items.push_back(
        ForkRequest{{Seq("v"), {}, ""}, {absl::StrCat("child", i)}, Of(Durability::kWriteBehind), RequestId{}});
  const auto results = Batch(items);
  for (const BatchResult& result : *results) EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(store_->stats().dirty_bytes, 2 * state_bytes());
}

TEST_F(WriteBehindTest, AFullColdStoreIsToldInsteadOfTheDiskThatIsBehind) {
  With({.max_dirty_bytes = 1});
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "full");
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  clock_.Advance(absl::Seconds(1));
  FlushDue();
  EXPECT_REASON(Set("b", 1, 'x'), "COLD_FULL");
  // It is not tried again all the time.
  EXPECT_FALSE(store_->FlushIsUrgent());
  images_->persist_error = absl::OkStatus();
  FlushDue();
  EXPECT_FALSE(IsRecorded("a"));
  clock_.Advance(absl::Seconds(1));
  FlushDue();
  EXPECT_TRUE(IsRecorded("a"));
  EXPECT_TRUE(Set("b", 1, 'x').ok());
}

TEST_F(WriteBehindTest, AChangeOfWhatWaitsFreesWhatItReplaces) {
  With({.flush_interval = absl::Hours(1), .max_dirty_bytes = 3 * state_bytes(), .max_lag = absl::Hours(2)});
  for (int i = 1; i < 20; ++i) ASSERT_TRUE(Set("a", i, 'x').ok());
  EXPECT_EQ(store_->stats().dirty_bytes, state_bytes());
}

TEST_F(WriteBehindTest, PastTheLagThePolicyDecides) {
  for (const LagPolicy policy : {LagPolicy::kDegrade, LagPolicy::kThrottle}) {
    options_.write_behind = {.max_lag = absl::Seconds(5), .lag_policy = policy};
    Crash();
    images_->persist_error = absl::UnavailableError("slow");
    ASSERT_TRUE(Set("a", 1, 'x').ok());
    clock_.Advance(absl::Seconds(4));
    FlushDue();
    EXPECT_TRUE(Set("b", 1, 'x').ok());
    clock_.Advance(absl::Seconds(2));
    FlushDue();
    EXPECT_EQ(store_->stats().flush_lag, absl::Seconds(6));
    EXPECT_EQ(store_->Describe(op_, Seq("a"))->flush_lag, absl::Seconds(6));
    const absl::Status status = Set("c", 1, 'x').status();
    EXPECT_EQ(status.ok(), policy == LagPolicy::kDegrade) << status;
    if (policy == LagPolicy::kDegrade) continue;
    EXPECT_EQ(ReasonOf(status), "FLUSH_BEHIND");
    EXPECT_TRUE(Set("v", 1, 'x', Of(kVolatile)).ok());
    EXPECT_TRUE(Set("b", 1, 'x', Ttl(absl::Hours(1))).status().code() == absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(Fork(Seq("a"), {"child"}).ok());  // adds no byte that waits
    images_->persist_error = absl::OkStatus();
    clock_.Advance(absl::Seconds(1));
    FlushDue();
    EXPECT_TRUE(Set("c", 1, 'x').ok());
    EXPECT_EQ(store_->stats().flush_lag, absl::ZeroDuration());
  }
}

TEST(WriteBehindLimits, WhatWasWrittenBeyondTheRateIsPaidBackInASecond) {
  WriteBehind behind({.bytes_per_second = 100});
  const MonoTime start = MonoTime{1} << 50;
  EXPECT_EQ(behind.Allowance(start), 100u);
  behind.Charge(uint64_t{1} << 40);
  EXPECT_EQ(behind.Allowance(start + 1'000'000'000), 0u);
  EXPECT_EQ(behind.Allowance(start + 2'000'000'000), 100u);
}

TEST(WriteBehindLimits, TheBoundIsWhatTheDiskTakesInTheTimeOfAStop) {
  WriteBehind behind({.max_dirty_bytes = uint64_t{10} << 30, .stop_time = absl::Seconds(10)});
  EXPECT_EQ(behind.max_dirty_bytes(), uint64_t{10} << 30);  // nothing is known yet
  behind.Wrote(1000, absl::Seconds(1));                     // tells of latency
  EXPECT_EQ(behind.max_dirty_bytes(), uint64_t{10} << 30);
  for (int i = 0; i < 100; ++i) behind.Wrote(100 << 20, absl::Seconds(1));
  EXPECT_NEAR(static_cast<double>(behind.max_dirty_bytes()), 1000.0 * (1 << 20), 1 << 20);
  for (int i = 0; i < 100; ++i) behind.Wrote(10 << 20, absl::Seconds(10));
  EXPECT_EQ(behind.max_dirty_bytes(), uint64_t{64} << 20);  // not less
}

}  // namespace
}  // namespace statepool
