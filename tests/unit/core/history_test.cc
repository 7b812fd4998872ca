// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// History: what a sequence's ring holds, and what goes along with a fork.
#include <string>
#include <vector>

#include "core/store_fixture.h"

namespace statepool {
namespace {

class HistoryTest : public StoreTest {
 protected:
  static NameOptions History(uint32_t max_history) { return {{}, max_history, {}, {}, false}; }
  static NameOptions SyncHistory(uint32_t max_history) { return {Durability::kSync, max_history, {}, {}, false}; }
  // The states of the ring with their positions, oldest first: "3c 4d 5e".
  std::string RingOf(const std::string& name) {
    std::string out;
    const absl::StatusOr<NameInfo> info = store_->Describe(op_, Seq(name));
    if (!info.ok()) return std::string(info.status().message());
    for (auto version = info->history.rbegin(); version != info->history.rend(); ++version) {
      const absl::StatusOr<GetAnswer> got = store_->Get(op_, {Seq(name), {}, "", version->id});
      if (!got.ok()) return std::string(got.status().message());
      absl::StrAppend(&out, out.empty() ? "" : " ", version->position, got->pin->bytes().substr(0, 1));
    }
    return out;
  }
  absl::StatusOr<ForkAnswer> ForkAt(const std::string& source, int64_t position, std::vector<std::string> children,
                                    NameOptions options = {}, RequestId request = {}) {
    absl::StatusOr<ForkAnswer> answer =
        store_->Fork(op_, {{Seq(source), position, ""}, std::move(children), options, request});
    store_->CheckInvariants();
    return answer;
  }
};

TEST_F(HistoryTest, AForkAtEveryPositionHasTheRingUpToThereAndNoByteIsCopied) {
  for (int i = 1; i <= 6; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('a' + i), History(4)).ok());
  ASSERT_EQ(RingOf("p"), "3d 4e 5f 6g");
  const int writes = images_->writes;
  const char* const rings[] = {"3d", "3d 4e", "3d 4e 5f", "3d 4e 5f 6g"};
  for (int position = 3; position <= 6; ++position) {
    const std::string child = absl::StrCat("c", position);
    ASSERT_TRUE(ForkAt("p", position, {child}).ok());
    EXPECT_EQ(RingOf(child), rings[position - 3]);
  }
  EXPECT_REASON(ForkAt("p", 2, {"c2"}), "POSITION_MISMATCH");
  EXPECT_REASON(ForkAt("p", 7, {"c7"}), "POSITION_MISMATCH");
  EXPECT_EQ(images_->writes, writes);
  EXPECT_EQ(LiveImages(), 4);
  EXPECT_EQ(RingOf("p"), "3d 4e 5f 6g");
}

TEST_F(HistoryTest, AChildKeepsOfTheRingWhatItsOwnHistoryHolds) {
  for (int i = 1; i <= 4; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('a' + i), History(4)).ok());
  ASSERT_TRUE(ForkAt("p", 3, {"two"}, History(2)).ok());
  ASSERT_TRUE(ForkAt("p", 3, {"one"}, History(1)).ok());
  ASSERT_TRUE(ForkAt("p", 3, {"many"}, History(100)).ok());
  EXPECT_EQ(RingOf("two"), "2c 3d");
  EXPECT_EQ(RingOf("one"), "3d");
  EXPECT_EQ(RingOf("many"), "1b 2c 3d");
  EXPECT_REASON(ForkAt("p", 3, {"none"}, History(0)), "INVALID_OPTION");
}

TEST_F(HistoryTest, AChildAndItsSourceGoBackEachByItself) {
  for (int i = 1; i <= 4; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('a' + i), History(4)).ok());
  ASSERT_TRUE(ForkAt("p", 4, {"c", "d"}).ok());
  ASSERT_TRUE(store_->Rollback(op_, {"p", 1, {}, {}}).ok());
  ASSERT_TRUE(store_->Rollback(op_, {"c", 2, {}, {}}).ok());
  ASSERT_TRUE(Set("c", 3, 'x').ok());
  EXPECT_EQ(RingOf("p"), "1b");
  EXPECT_EQ(RingOf("c"), "1b 2c 3x");
  EXPECT_EQ(RingOf("d"), "1b 2c 3d 4e");
  ASSERT_TRUE(Delete(Seq("d")).ok());
  EXPECT_EQ(LiveImages(), 3);  // b, c, x
}

TEST_F(HistoryTest, ARecordedChildComesBackWithItsRing) {
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('a' + i), SyncHistory(3)).ok());
  ASSERT_TRUE(ForkAt("p", 3, {"c"}, {}, {"r", 5}).ok());
  LosePower();
  EXPECT_EQ(RingOf("c"), "1b 2c 3d");
  EXPECT_TRUE(ForkAt("p", 3, {"c"}, {}, {"r", 5})->replayed);
  ASSERT_TRUE(Delete(Seq("p")).ok());
  ASSERT_TRUE(store_->Rollback(op_, {"c", 1, {}, {}}).ok());
  EXPECT_EQ(*Get(Seq("c")), 'b');
}

TEST_F(HistoryTest, ARecordedChildOfVersionsThatWereSkippedHasTheRunThatIsOnDisk) {
  ASSERT_TRUE(Set("p", 1, 'b', SyncHistory(4)).ok());
  NameOptions behind = History(4);
  behind.durability = Durability::kWriteBehind;
  ASSERT_TRUE(Set("p", 2, 'c', behind).ok());  // superseded before its turn
  ASSERT_TRUE(Set("p", 3, 'd', SyncHistory(4)).ok());
  ASSERT_TRUE(Set("p", 4, 'e', SyncHistory(4)).ok());
  ASSERT_TRUE(ForkAt("p", 4, {"c"}).ok());
  EXPECT_EQ(RingOf("c"), "1b 2c 3d 4e");
  LosePower();
  EXPECT_EQ(RingOf("c"), "3d 4e");
}

TEST_F(HistoryTest, AForkInABatchSeesTheRingAsItWasBefore) {
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('a' + i)).ok());
  const auto results = Batch({RollbackRequest{"p", 1, {}, {}}, ForkRequest{{Seq("p"), 2, ""}, {"c"}, {}, {}}});
  ASSERT_TRUE(results.ok() && (*results)[0].status.ok() && (*results)[1].status.ok());
  EXPECT_EQ(RingOf("p"), "1b");
  EXPECT_EQ(RingOf("c"), "1b 2c");
}

}  // namespace
}  // namespace statepool
