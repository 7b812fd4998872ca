// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// History: what a sequence's ring holds, what goes along with a fork, how far one can go back, and what becomes of
// positions and rings when ranges of tokens are removed or numbered anew.
#include "server/core/history.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/store_fixture.h"
#include "server/core/error.h"

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

// ---- back by tokens

class RollbackTokensTest : public HistoryTest {
 protected:
  // How many tokens the store says that it can go back by; and that it can go back by as many, and no more.
  size_t Available(const std::string& name) {
    const absl::StatusOr<NameInfo> info = store_->Describe(op_, Seq(name));
    const size_t available = *info->rollback_tokens;
    EXPECT_TRUE(ForkAt(name, info->version.position, {"probe"}).ok());
    EXPECT_REASON(Back("probe", static_cast<int64_t>(available) + 1), "HISTORY_TOO_SHORT");
    EXPECT_TRUE(Back("probe", static_cast<int64_t>(available)).ok());
    EXPECT_TRUE(Delete(Seq("probe")).ok());
    return available;
  }
  absl::StatusOr<NameInfo> Back(const std::string& name, int64_t tokens, std::optional<uint64_t> if_revision = {},
                                RequestId request = {}) {
    absl::StatusOr<NameInfo> info = store_->Rollback(op_, {name, 0, if_revision, request, tokens});
    store_->CheckInvariants();
    return info;
  }
  void Steps(const std::string& name, const std::vector<int64_t>& positions, NameOptions options = {}) {
    for (const int64_t position : positions)
      ASSERT_TRUE(Set(name, position, static_cast<char>('a' + position), options).ok());
  }
};

TEST_F(RollbackTokensTest, SingleStepsCanBeTakenBackAndAPrefillCanNot) {
  ASSERT_TRUE(store_->Create(op_, {"a", "m", History(4), {}}).ok());
  EXPECT_EQ(Available("a"), 0u);
  Steps("a", {1});
  EXPECT_EQ(Available("a"), 1u);  // to the initial state
  Steps("a", {6});                // five tokens at once
  EXPECT_EQ(Available("a"), 0u);
  Steps("a", {7, 8});
  EXPECT_EQ(Available("a"), 2u);  // to the end of the prefill, not into it
  const auto refused = Back("a", 3);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorDetail(refused.status()).field, "tokens");
  EXPECT_EQ(GetErrorDetail(refused.status()).metadata,
            (std::vector<std::pair<std::string, std::string>>{{"available", "2"}}));
  EXPECT_EQ(RingOf("a"), "1b 6g 7h 8i");
  const auto back = Back("a", 2);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->version.position, 6);
  EXPECT_EQ(Available("a"), 0u);
  ASSERT_TRUE(store_->Rollback(op_, {"a", 1, {}, {}}).ok());  // by its position an older version is found all the same
}

TEST_F(RollbackTokensTest, TheRingWrapsAndHistoryLessOneCanBeTakenBack) {
  for (const uint32_t history : {1u, 2u, 3u, 8u}) {
    const std::string name = absl::StrCat("h", history);
    for (int64_t i = 1; i <= 20; ++i) {
      Steps(name, {i}, History(history));
      EXPECT_EQ(Available(name), std::min<size_t>(static_cast<size_t>(i) - 1, history - 1));
    }
    ASSERT_TRUE(Back(name, history - 1).ok());
    EXPECT_EQ(*Get(Seq(name)), static_cast<char>('a' + 20 - (history - 1)));
    EXPECT_EQ(Available(name), 0u);
    Steps(name, {22 - static_cast<int64_t>(history)});
    EXPECT_EQ(Available(name), std::min<size_t>(1, history - 1));
  }
  EXPECT_REASON(store_->Create(op_, {"h0", "m", History(0), {}}), "INVALID_OPTION");
}

TEST_F(RollbackTokensTest, AChildCanGoBackAsFarAsItsSourceCouldFromThere) {
  Steps("p", {5, 6, 7, 8}, History(4));
  for (int64_t position = 5; position <= 8; ++position) {
    const std::string child = absl::StrCat("c", position);
    ASSERT_TRUE(ForkAt("p", position, {child}).ok());
    EXPECT_EQ(Available(child), static_cast<size_t>(position) - 5);
  }
  ASSERT_TRUE(ForkAt("p", 8, {"short"}, History(2)).ok());
  EXPECT_EQ(Available("short"), 1u);
}

TEST_F(RollbackTokensTest, WhatIsNotOneTokenOnCannotBeTakenBack) {
  Steps("a", {3, 4, 5});
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), 4, ""}, "s", {}, {}}).ok());
  Steps("a", {5});  // written anew at the same position
  EXPECT_EQ(Available("a"), 0u);
  Steps("a", {6});
  EXPECT_EQ(Available("a"), 1u);
  ASSERT_TRUE(store_->Restore(op_, {"s", "a", {}, {}, {}}).ok());
  EXPECT_EQ(Available("a"), 0u);
  Steps("a", {5});
  EXPECT_EQ(Available("a"), 1u);
  ASSERT_TRUE(store_->Restore(op_, {"s", "b", {}, {}, {}}).ok());  // makes it
  EXPECT_EQ(Available("b"), 0u);
}

TEST_F(RollbackTokensTest, RefusalsChangeNothing) {
  Steps("a", {1, 2});
  const auto before = store_->Describe(op_, Seq("a"));
  EXPECT_REASON(Back("a", -1), "INVALID_OPTION");
  EXPECT_REASON(Back("a", 2), "HISTORY_TOO_SHORT");
  EXPECT_REASON(Back("a", INT64_MAX), "HISTORY_TOO_SHORT");
  EXPECT_REASON(store_->Rollback(op_, {"a", 1, {}, {}, 1}), "INVALID_OPTION");
  EXPECT_REASON(Back("a", 1, before->revision - 1), "REVISION_MISMATCH");
  EXPECT_REASON(Back("never", 0), "NEVER_CREATED");
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->revision, before->revision);
  EXPECT_EQ(RingOf("a"), "1b 2c");
}

TEST_F(RollbackTokensTest, ARetryGoesBackOnce) {
  Steps("a", {1, 2, 3});
  const auto first = Back("a", 1, {}, {"r", 5});
  const auto again = Back("a", 1, {}, {"r", 5});
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->revision, first->revision);
  EXPECT_EQ(RingOf("a"), "1b 2c");
}

// ---- ranges

class RemoveRangeTest : public RollbackTokensTest {
 protected:
  // What a removal gives and leaves: "done 1a", "refused 1a 2b", "deleted", "missing", or an error's reason.
  std::string Remove(const std::string& name, int64_t begin, int64_t end, bool allow_missing = false,
                     std::optional<uint64_t> if_revision = {}, RequestId request = {}) {
    const auto answer = store_->RemoveRange(op_, {name, TokenRange(begin, end), if_revision, request, allow_missing});
    store_->CheckInvariants();
    if (!answer.ok()) return ReasonOf(answer.status());
    if (answer->missing) return answer->done && !answer->deleted ? "missing" : "a wrong answer";
    if (answer->deleted)
      return answer->done && ReasonOf(Get(Seq(name)).status()) == "DELETED" ? "deleted" : "a wrong answer";
    const auto now = store_->Describe(op_, Seq(name));
    if (!now.ok()) return ReasonOf(now.status());
    if (!answer->info.replayed && answer->info.revision != now->revision) return "another revision";
    if (!answer->info.replayed && answer->info.version.id != now->version.id) return "another version";
    return absl::StrCat(answer->info.replayed ? "again " : "", answer->done ? "done " : "refused ", RingOf(name));
  }
};

TEST_F(RemoveRangeTest, ARangeOfAllTokensDeletesTheSequence) {
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {0, 4}, {0, -1}, {-7, -7}, {-1, 3}}) {
    Steps("a", {1, 2, 3});
    EXPECT_EQ(Remove("a", begin, end), "deleted") << begin << " " << end;
    EXPECT_EQ(LiveImages(), 0);
  }
}

TEST_F(RemoveRangeTest, ARangeThatEndsItBeginsWhereTheRingHasAVersionOrIsRefused) {
  Steps("p", {1, 2, 5, 6}, History(8));
  const auto removed = [this](int64_t begin, int64_t end) {
    EXPECT_TRUE(Fork(Seq("p"), {"a"}).ok());
    const std::string out = Remove("a", begin, end);
    EXPECT_TRUE(Delete(Seq("a")).ok());
    return out;
  };
  const std::string whole = "1b 2c 5f 6g";
  for (const int64_t end : {int64_t{6}, int64_t{7}, int64_t{-1}, INT64_MAX}) {
    EXPECT_EQ(removed(1, end), "done 1b");
    EXPECT_EQ(removed(2, end), "done 1b 2c");
    EXPECT_EQ(removed(3, end), "refused " + whole);
    EXPECT_EQ(removed(4, end), "refused " + whole);
    EXPECT_EQ(removed(5, end), "done 1b 2c 5f");
    EXPECT_EQ(removed(6, end), "done " + whole);  // after the last token
  }
}

TEST_F(RemoveRangeTest, ARangeWithoutTheLastTokenChangesNothing) {
  Steps("a", {1, 2, 5, 6}, History(8));
  const Revision revision = store_->Describe(op_, Seq("a"))->revision;
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 0}, {0, 5}, {-1, 5}, {1, 5}, {2, 2}, {4, 1}, {6, -1}, {7, 9}, {6, 6}, {INT64_MAX, -1}}) {
    EXPECT_EQ(Remove("a", begin, end), "done 1b 2c 5f 6g") << begin << " " << end;
  }
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->revision, revision);
}

TEST_F(RemoveRangeTest, AStateWithoutTokensGoesWithAnyRangeFromTheFirstOn) {
  for (const auto& [end, gone] : std::vector<std::pair<int64_t, bool>>{{0, false}, {1, true}, {-1, true}}) {
    ASSERT_TRUE(store_->Create(op_, {"a", "m", {}, {}}).ok());
    EXPECT_EQ(Remove("a", 1, end), absl::StrCat("done 0", std::string(1, '\0')));
    EXPECT_EQ(Remove("a", 0, end) == "deleted", gone) << end;
    ASSERT_TRUE(store_->Delete(op_, {Seq("a"), {}, true}).ok());
  }
}

TEST_F(RemoveRangeTest, OfSeveralVersionsAtThePositionTheNewestIsLeft) {
  Steps("a", {1, 2, 3});
  ASSERT_TRUE(Set("a", 2, 'x').ok());
  ASSERT_TRUE(Set("a", 4, 'y').ok());
  EXPECT_EQ(Remove("a", 2, -1), "done 1b 2c 3d 2x");
}

TEST_F(RemoveRangeTest, AnAbsentSequenceIsAMissUnlessThatIsFine) {
  EXPECT_EQ(Remove("never", 0, -1), "NEVER_CREATED");
  EXPECT_EQ(Remove("never", 0, -1, /*allow_missing=*/true), "missing");
  EXPECT_EQ(Remove("", 0, -1, true), "INVALID_NAME");
  Steps("a", {1});
  EXPECT_EQ(Remove("a", 0, -1, true, {}, {"r", 5}), "deleted");
  EXPECT_EQ(Remove("a", 0, -1, true, {}, {"r", 5}), "missing");  // the retry
  EXPECT_EQ(Remove("a", 0, -1), "DELETED");
}

TEST_F(RemoveRangeTest, WhatIsOnDiskOfASequenceThatIsOverDoesNotComeBackAfterIt) {
  NameOptions options = Ttl(absl::Seconds(1));
  options.durability = Durability::kSync;
  const auto expired = [&](const std::string& name) {
    Steps(name, {1, 2}, options);
    clock_.Advance(absl::Seconds(2));
  };
  for (const int64_t begin : {0, 1}) {
    expired("a");
    EXPECT_EQ(Remove("a", begin, -1, /*allow_missing=*/true, /*if_revision=*/7), "missing");  // 7 is not looked at
    LosePower();
    EXPECT_FALSE(Get(Seq("a")).ok());
  }
  expired("a");
  EXPECT_TRUE((*Batch({RemoveRangeRequest{"a", TokenRange(0, -1), {}, {}, true}}))[0].status.ok());
  LosePower();
  EXPECT_FALSE(Get(Seq("a")).ok());
  // It waits for the disk, which may refuse.
  expired("a");
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_EQ(Remove("a", 0, -1, true), "COLD_FULL");
  EXPECT_EQ(Remove("a", 2, 2, true), "missing");  // no token
  EXPECT_EQ(Remove("a", 0, -1), "EXPIRED");
  log_->commit_error = absl::OkStatus();
  EXPECT_EQ(Remove("a", 0, -1, true), "missing");
}

TEST_F(RemoveRangeTest, ASequenceWhoseRecordIsUnreadableGoesWithARangeOfAllThereMayBe) {
  for (const char* name : {"a", "b"}) Steps(name, {1, 2}, SyncHistory(4));
  {
    MutexLock lock(&disk_.mu);
    for (const char* name : {"a", "b"}) disk_.synced.names[Seq(name)] = disk_.written.names[Seq(name)] = std::nullopt;
  }
  LosePower();
  for (const bool allow_missing : {false, true}) {
    EXPECT_EQ(Remove("a", 0, kMaxPosition - 1, allow_missing), "CORRUPT");
    EXPECT_EQ(Remove("a", 1, -1, allow_missing), "CORRUPT");
    EXPECT_EQ(Remove("a", 0, 0, allow_missing), "CORRUPT");
  }
  EXPECT_EQ(Remove("a", 0, -1), "deleted");
  EXPECT_EQ(Remove("b", 0, kMaxPosition, true), "deleted");
  LosePower();
  for (const char* name : {"a", "b"}) EXPECT_NE(ReasonOf(Get(Seq(name)).status()), "CORRUPT");
}

TEST_F(RemoveRangeTest, ConditionsAndRetries) {
  Steps("a", {1, 2, 3, 4});
  const Revision revision = store_->Describe(op_, Seq("a"))->revision;
  EXPECT_EQ(Remove("a", 0, -1, false, revision - 1), "REVISION_MISMATCH");
  EXPECT_EQ(Remove("a", 9, -1, false, revision - 1), "REVISION_MISMATCH");
  EXPECT_EQ(Remove("a", 3, -1, false, revision, {"r", 5}), "done 1b 2c 3d");
  EXPECT_EQ(Remove("a", 3, -1, false, revision, {"r", 5}), "again done 1b 2c 3d");
  EXPECT_EQ(Remove("a", 2, -1, false, {}, {"r", 6}), "REQUEST_ID_REUSED");
  // What changed nothing is not remembered.
  EXPECT_EQ(Remove("a", 7, -1, false, {}, {"s", 5}), "done 1b 2c 3d");
  Steps("a", {8});
  EXPECT_EQ(Remove("a", 7, -1, false, {}, {"s", 5}), "refused 1b 2c 3d 8i");
  Steps("a", {7, 8});
  EXPECT_EQ(Remove("a", 7, -1, false, {}, {"s", 5}), "done 1b 2c 3d 8i 7h");
}

TEST_F(RemoveRangeTest, ARecordedSequenceThatIsRemovedStaysAway) {
  Steps("a", {1, 2}, SyncHistory(4));
  Steps("b", {1, 2}, SyncHistory(4));
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_EQ(Remove("a", 1, -1), "COLD_FULL");
  EXPECT_EQ(Remove("b", 0, -1), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  EXPECT_EQ(RingOf("a"), "1b 2c");
  EXPECT_EQ(RingOf("b"), "1b 2c");
  EXPECT_EQ(Remove("a", 1, -1), "done 1b");
  EXPECT_EQ(Remove("b", 0, -1), "deleted");
  LosePower();
  EXPECT_EQ(RingOf("a"), "1b");
  EXPECT_FALSE(Get(Seq("b")).ok());
}

class RenumberTest : public RemoveRangeTest {
 protected:
  absl::StatusOr<NameInfo> Renumber(const std::string& name, int64_t begin, int64_t end, Renumbering change,
                                    std::optional<uint64_t> if_revision = {}, RequestId request = {}) {
    absl::StatusOr<NameInfo> info =
        store_->Renumber(op_, {name, TokenRange(begin, end), change, if_revision, request, /*with_history=*/true});
    store_->CheckInvariants();
    return info;
  }
  // What that leaves of a child of "p", or the reason of its refusal.
  std::string Renumbered(int64_t begin, int64_t end, Renumbering change) {
    EXPECT_TRUE(Fork(Seq("p"), {"a"}).ok());
    const auto info = Renumber("a", begin, end, change);
    const std::string out = info.ok() ? RingOf("a") : ReasonOf(info.status());
    EXPECT_TRUE(info.ok() || RingOf("a") == RingOf("p"));
    EXPECT_TRUE(Delete(Seq("a")).ok());
    return out;
  }
};

TEST_F(RenumberTest, AddMovesTheHeadIfTheRangeHasItsLastToken) {
  Steps("p", {10});
  EXPECT_EQ(Renumbered(0, -1, {.add = 5}), "15k");
  EXPECT_EQ(Renumbered(9, 10, {.add = 5}), "15k");
  EXPECT_EQ(Renumbered(-3, 10, {.add = -9}), "1k");
  EXPECT_EQ(Renumbered(0, 9, {.add = 5}), "10k");
  EXPECT_EQ(Renumbered(10, -1, {.add = 5}), "10k");
  EXPECT_EQ(Renumbered(9, 9, {.add = 5}), "10k");
  EXPECT_EQ(Renumbered(0, -1, {.add = 0}), "10k");
  EXPECT_EQ(Renumbered(0, -1, {.add = kMaxPosition - 10}), absl::StrCat(kMaxPosition, "k"));
  for (const int64_t add : {int64_t{-10}, int64_t{-11}, kMaxPosition - 9, INT64_MAX, INT64_MIN}) {
    EXPECT_EQ(Renumbered(0, -1, {.add = add}), "INVALID_POSITION") << add;
    EXPECT_EQ(Renumbered(0, 9, {.add = add}), "10k") << add;  // not in the range: nothing to refuse
  }
}

TEST_F(RenumberTest, DivideRoundsTheLastTokensIndexDown) {
  Steps("p", {10});  // index 9
  EXPECT_EQ(Renumbered(0, -1, {.divide = 1}), "10k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = 2}), "5k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = 3}), "4k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = 9}), "2k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = 10}), "1k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = INT64_MAX}), "1k");
  EXPECT_EQ(Renumbered(0, 9, {.divide = 2}), "10k");
  EXPECT_EQ(Renumbered(0, -1, {.divide = 0}), "INVALID_OPTION");
  EXPECT_EQ(Renumbered(0, -1, {.divide = -2}), "INVALID_OPTION");
  EXPECT_EQ(Renumbered(0, -1, {.add = 1, .divide = 2}), "INVALID_OPTION");  // which of them first?
}

TEST_F(RenumberTest, TheRingIsRenumberedAsFarAsItsVersionsAreInTheRange) {
  Steps("p", {3, 6, 7, 8}, History(8));
  EXPECT_EQ(Renumbered(0, -1, {.add = 2}), "5d 8g 9h 10i");
  EXPECT_EQ(Renumbered(6, -1, {.add = -4}), "3h 4i");  // 6's last token has the index 5
  EXPECT_EQ(Renumbered(7, -1, {.add = 2}), "10i");
  EXPECT_EQ(Renumbered(0, -1, {.add = -3}), "3g 4h 5i");  // 3 would be at 0, which is the initial state's
  EXPECT_EQ(Renumbered(0, -1, {.divide = 2}), "2d 3g 4h 4i");
}

TEST_F(RenumberTest, AfterItTokensCanBeTakenBackInTheNewNumbering) {
  Steps("p", {5, 6, 7}, History(8));
  ASSERT_TRUE(Fork(Seq("p"), {"a", "b"}).ok());
  ASSERT_TRUE(Renumber("a", 0, -1, {.add = 10}).ok());
  EXPECT_EQ(Available("a"), 2u);
  EXPECT_EQ(Remove("a", 16, -1), "done 15f 16g");
  ASSERT_TRUE(Renumber("b", 0, -1, {.divide = 2}).ok());  // indices 4, 5, 6 become 2, 2, 3
  EXPECT_EQ(RingOf("b"), "3f 3g 4h");
  EXPECT_EQ(Available("b"), 1u);
  EXPECT_EQ(Remove("b", 3, -1), "done 3f 3g");
}

TEST_F(RenumberTest, AStateWithoutTokensHasNoLastOne) {
  ASSERT_TRUE(store_->Create(op_, {"a", "m", {}, {}}).ok());
  const Revision revision = store_->Describe(op_, Seq("a"))->revision;
  ASSERT_TRUE(Renumber("a", 0, -1, {.add = 5}).ok());
  ASSERT_TRUE(Renumber("a", 0, -1, {.add = -5}).ok());
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->revision, revision);
  ASSERT_TRUE(Set("a", 1, 'b').ok());
  ASSERT_TRUE(Renumber("a", 0, -1, {.add = 5}).ok());
  EXPECT_EQ(RingOf("a"), "6b");  // what was at 0 is not at 5
}

TEST_F(RenumberTest, NoByteIsCopiedAndTheVersionsAreNewAndEdited) {
  Steps("a", {1, 2});
  ASSERT_TRUE(SetRaw({"a", "m", 3, Exactness::kLossy, {}, {}, {}}, std::string(layout_->state_bytes(), 'd')).ok());
  const auto before = store_->Describe(op_, Seq("a"));
  const int writes = images_->writes;
  const auto after = Renumber("a", 0, -1, {.add = 7}, before->revision);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(images_->writes, writes);
  EXPECT_EQ(LiveImages(), 3);
  EXPECT_EQ(after->version.position, 10);
  EXPECT_GT(after->revision, before->revision);
  ASSERT_EQ(after->history.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(after->history[i].parent, before->history[i].id);
    EXPECT_GT(after->history[i].id, before->version.id);
    EXPECT_EQ(after->history[i].checksum, before->history[i].checksum);
    EXPECT_EQ(after->history[i].exactness, i == 0 ? Exactness::kLossy : Exactness::kEdited);
  }
  EXPECT_GT(after->history[0].id, after->history[1].id);
}

TEST_F(RenumberTest, TheHistoryIsToldToWhoAsksForItAlone) {
  Steps("a", {4, 5});
  const RequestId request{"r", 5};
  for (const int64_t add : {1, 1, 0}) {  // done, answered again, and nothing to do
    for (const bool with_history : {true, false}) {
      const auto info = store_->Renumber(
          op_, {"a", TokenRange(0, -1), {.add = add}, {}, add == 0 ? RequestId{} : request, with_history});
      ASSERT_TRUE(info.ok());
      EXPECT_EQ(info->version.position, 6);
      EXPECT_EQ(info->history.size(), with_history ? 2u : 0u);
      EXPECT_EQ(info->rollback_tokens, with_history ? std::optional<uint32_t>(1) : std::nullopt);
    }
  }
}

TEST_F(RenumberTest, ConditionsAndRetries) {
  Steps("a", {4, 5});
  const Revision revision = store_->Describe(op_, Seq("a"))->revision;
  EXPECT_REASON(Renumber("a", 0, -1, {.add = 1}, revision - 1), "REVISION_MISMATCH");
  EXPECT_REASON(Renumber("never", 0, -1, {.add = 1}), "NEVER_CREATED");
  const auto first = Renumber("a", 0, -1, {.add = 1}, {}, {"r", 5});
  const auto again = Renumber("a", 0, -1, {.add = 1}, {}, {"r", 5});
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->version.position, 6);
  EXPECT_EQ(again->history.size(), 2u);
  EXPECT_REASON(Renumber("a", 0, -1, {.add = 2}, {}, {"r", 6}), "REQUEST_ID_REUSED");
  EXPECT_EQ(RingOf("a"), "5e 6f");
}

TEST_F(RenumberTest, ARecordedSequenceComesBackRenumberedAndSharesItsImagesStill) {
  Steps("p", {4, 5}, SyncHistory(4));
  ASSERT_TRUE(Fork(Seq("p"), {"a"}).ok());
  ASSERT_TRUE(Renumber("a", 0, -1, {.add = 10}).ok());
  EXPECT_EQ(LiveImages(), 2);
  LosePower();
  EXPECT_EQ(RingOf("a"), "14e 15f");
  EXPECT_EQ(RingOf("p"), "4e 5f");
  EXPECT_EQ(LiveImages(), 2);
  store_->FoldIdle();
  store_->CheckInvariants();
  ASSERT_TRUE(Delete(Seq("p")).ok());
  store_->FoldIdle();
  store_->CheckInvariants();
  EXPECT_EQ(RingOf("a"), "14e 15f");
}

TEST_F(RenumberTest, ItemsOfABatchDoWhatTheirOwnCallsDo) {
  for (const std::string name : {"a", "b", "c", "d", "e"}) Steps(name, {4, 5});
  const auto results =
      Batch({RemoveRangeRequest{"a", TokenRange(0, -1), {}, {}, false},
             RemoveRangeRequest{"b", TokenRange(4, -1), {}, {}, false},
             RemoveRangeRequest{"c", TokenRange(3, -1), {}, {}, false},
             RenumberRequest{"d", TokenRange(0, -1), {.add = 1}, {}, {}}, RollbackRequest{"e", 0, {}, {}, 1}},
            /*all_or_none=*/true);
  ASSERT_TRUE(results.ok());
  for (const BatchResult& result : *results) EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(std::get<RemoveRangeAnswer>((*results)[0].answer).deleted);
  EXPECT_TRUE(std::get<RemoveRangeAnswer>((*results)[1].answer).done);
  EXPECT_FALSE(std::get<RemoveRangeAnswer>((*results)[2].answer).done);  // an answer: the others are done
  EXPECT_EQ(std::get<NameInfo>((*results)[3].answer).version.position, 6);
  EXPECT_REASON(Get(Seq("a")), "DELETED");
  EXPECT_EQ(RingOf("b"), "4e");
  EXPECT_EQ(RingOf("c"), "4e 5f");
  EXPECT_EQ(RingOf("d"), "5e 6f");
  EXPECT_EQ(RingOf("e"), "4e");
  EXPECT_REASON(Batch({RenumberRequest{"d", TokenRange(0, -1), {.add = 1}, {}, {}},
                       RemoveRangeRequest{"d", TokenRange(0, -1), {}, {}, false}}),
                "DUPLICATE_NAME");
}

// ---- keep only

TEST_F(HistoryTest, DeleteManyLeavesWhatIsToBeKept) {
  for (const std::string name : {"g/a", "g/b", "g/c", "h/a"}) ASSERT_TRUE(Set(name, 1, 'x').ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("g/a"), {}, ""}, "g/a", {}, {}}).ok());
  DeleteManyRequest request;
  request.name_prefix = "g/";
  request.keep = {"g/b", "g/absent", "h/z"};
  request.preview = true;
  EXPECT_EQ(store_->DeleteMany(op_, request)->names, (std::vector<std::string>{"g/a", "g/c"}));
  request.preview = false;
  request.if_count = 3;  // what is kept does not count
  EXPECT_REASON(store_->DeleteMany(op_, request), "COUNT_MISMATCH");
  request.if_count = 2;
  const auto answer = store_->DeleteMany(op_, request);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->deleted, 2u);
  EXPECT_TRUE(Get(Seq("g/b")).ok() && Get(Seq("h/a")).ok() && Get(Snap("g/a")).ok());
  EXPECT_REASON(Get(Seq("g/a")), "DELETED");
  request.keep = {"ok", "a//b"};
  const auto refused = store_->DeleteMany(op_, request);
  EXPECT_REASON(refused, "INVALID_NAME");
  EXPECT_EQ(GetErrorDetail(refused.status()).field, "keep[1]");
  request.keep.assign(options_.max_children + 1, "a");
  EXPECT_REASON(store_->DeleteMany(op_, request), "TOO_MANY");
}

}  // namespace
}  // namespace statepool
