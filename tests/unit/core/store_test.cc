// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "core/store_fixture.h"

namespace statepool {
namespace {

constexpr auto kSync = Durability::kSync;
constexpr auto kVolatile = Durability::kVolatile;

// ---- sequences

TEST_F(StoreTest, CreateStartsAtPositionZeroInTheInitialStateAndAllCreatesCostOneImageAtMostEach) {
  const auto info = store_->Create(op_, {"a", "m", {}, {}});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version.position, 0);
  EXPECT_EQ(*Get(Seq("a")), '\0');
  EXPECT_REASON(store_->Create(op_, {"a", "m", {}, {}}), "NAME_EXISTS");
}

TEST_F(StoreTest, SetMovesTheHeadAndKeepsEarlierVersionsInTheRing) {
  const auto first = Set("a", 1, 'x');
  const auto second = Set("a", 2, 'y');
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_GT(second->revision, first->revision);
  EXPECT_EQ(second->version.parent, first->version.id);
  EXPECT_EQ(*Get(Seq("a")), 'y');
  EXPECT_EQ(*Get(Seq("a"), 1), 'x');
  EXPECT_REASON(Get(Seq("a"), 3), "POSITION_MISMATCH");
}

TEST_F(StoreTest, TheRingHoldsMaxHistoryVersionsAndHistoryOneMeansNoRollback) {
  NameOptions two;
  two.max_history = 2;
  for (int i = 1; i <= 4; ++i) ASSERT_TRUE(Set("a", i, static_cast<char>('0' + i), two).ok());
  EXPECT_EQ(*Get(Seq("a"), 3), '3');
  EXPECT_REASON(Get(Seq("a"), 2), "POSITION_MISMATCH");
  EXPECT_EQ(LiveImages(), 2);
  NameOptions one;
  one.max_history = 1;
  ASSERT_TRUE(Set("a", 5, '5', one).ok());
  EXPECT_EQ(LiveImages(), 1);
  EXPECT_REASON(store_->Rollback(op_, {"a", 4, {}, {}}), "POSITION_MISMATCH");
}

TEST_F(StoreTest, AReaderHoldsItsVersionWhileTheHeadMovesOn) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  auto answer = store_->Get(op_, {Seq("a"), {}, ""});
  NameOptions one;
  one.max_history = 1;
  ASSERT_TRUE(Set("a", 2, 'y', one).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_EQ(answer->pin->bytes()[0], 'x');
}

TEST_F(StoreTest, RollbackMovesBackToAnExactPositionAndDropsWhatWasAhead) {
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(Set("a", i, static_cast<char>('0' + i)).ok());
  const auto back = store_->Rollback(op_, {"a", 1, {}, {}});
  store_->CheckInvariants();
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*Get(Seq("a")), '1');
  EXPECT_REASON(Get(Seq("a"), 3), "POSITION_MISMATCH");
  EXPECT_EQ(LiveImages(), 1);
}

TEST_F(StoreTest, ARefusedWriteChangesNothing) {
  const auto info = Set("a", 1, 'x');
  EXPECT_REASON(Set("a", 2, 'y', {}, info->revision + 100), "REVISION_MISMATCH");
  EXPECT_REASON(Set("a", 2, 'y', {}, 0), "REVISION_MISMATCH");
  EXPECT_REASON(Set("a", -1, 'y'), "INVALID_POSITION");
  EXPECT_REASON(Set("", 1, 'y'), "INVALID_NAME");
  EXPECT_REASON(Set("x/../y", 1, 'y'), "INVALID_NAME");
  EXPECT_REASON(Set(std::string("a\0b", 3), 1, 'y'), "INVALID_NAME");
  EXPECT_REASON(SetRaw({"a", "m", 2, Exactness::kExact, {}, {}, {}}, "short"), "BYTES_LENGTH_MISMATCH");
  EXPECT_REASON(SetRaw({"a", "other", 2, Exactness::kExact, {}, {}, {}}, std::string(64, 'z')), "LAYOUT_MISMATCH");
  EXPECT_REASON(SetRaw({"a", "absent", 2, Exactness::kExact, {}, {}, {}}, std::string(64, 'z')), "LAYOUT_UNKNOWN");
  EXPECT_REASON(SetRaw({"new", "", 2, Exactness::kExact, {}, {}, {}}, std::string(64, 'z')), "MISSING_FIELD");
  const auto after = store_->Describe(op_, Seq("a"));
  EXPECT_EQ(after->revision, info->revision);
  EXPECT_EQ(after->history.size(), 1u);
  EXPECT_EQ(*Get(Seq("a")), 'x');
  EXPECT_EQ(LiveImages(), 1);
}

TEST_F(StoreTest, IfRevisionZeroMakesANameOnlyWhenThereIsNone) {
  EXPECT_TRUE(Set("a", 1, 'x', {}, 0).ok());
  EXPECT_REASON(Set("a", 1, 'x', {}, 0), "REVISION_MISMATCH");
}

TEST_F(StoreTest, ARetryWithTheSameRequestIdGetsTheFirstAnswer) {
  const RequestId request{"r1", 11};
  const auto first = Set("a", 1, 'x', {}, {}, request);
  ASSERT_TRUE(Set("a", 2, 'y').ok());
  const auto again = Set("a", 1, 'x', {}, {}, request);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->revision, first->revision);
  EXPECT_EQ(again->version.position, 1);
  EXPECT_EQ(again->version.checksum, first->version.checksum);
  EXPECT_EQ(*Get(Seq("a")), 'y');
  EXPECT_REASON(Set("a", 1, 'x', {}, {}, {"r1", 12}), "REQUEST_ID_REUSED");
  EXPECT_REASON(Set("a", 1, 'z', {}, {}, request), "REQUEST_ID_REUSED") << "the same but for the bytes";
}

TEST_F(StoreTest, AReplaySaysNothingOfAVersionThatItsRingHasNoMoreButWhatIsRemembered) {
  NameOptions two;
  two.max_history = 2;
  ASSERT_TRUE(Set("a", 1, 'w', two).ok());
  const auto first = Set("a", 1, 'x', two, {}, {"r1", 11});
  ASSERT_TRUE(Set("a", 2, 'y').ok());
  const auto kept = Set("a", 1, 'x', two, {}, {"r1", 11});
  ASSERT_TRUE(kept.ok() && kept->replayed);
  EXPECT_EQ(kept->version.exactness, Exactness::kExact);
  EXPECT_EQ(kept->version.parent, first->version.parent);
  EXPECT_EQ(kept->version.tier, Tier::kHot);
  ASSERT_TRUE(Set("a", 3, 'z').ok());
  const auto gone = Set("a", 1, 'x', two, {}, {"r1", 11});
  ASSERT_TRUE(gone.ok() && gone->replayed);
  EXPECT_EQ(gone->version.id, first->version.id);
  EXPECT_EQ(gone->version.position, 1);
  EXPECT_EQ(gone->version.checksum, first->version.checksum);
  EXPECT_EQ(gone->version.exactness, Exactness::kUnknown);
  EXPECT_EQ(gone->version.tier, Tier::kUnknown);
  EXPECT_EQ(gone->version.parent, 0u);
}

TEST_F(StoreTest, TheLastEightRequestIdsAreRemembered) {
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(Set("a", i, 'x', {}, {}, {"r" + std::to_string(i), 1}).ok());
  EXPECT_TRUE(Set("a", 1, 'x', {}, {}, {"r1", 1})->replayed);
  EXPECT_FALSE(Set("a", 0, 'x', {}, {}, {"r0", 1})->replayed);
}

TEST_F(StoreTest, AnExpiredDeadlineOrACancellationChangesNothing) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  op_.deadline = clock_.Now() - 1;
  EXPECT_REASON(Set("a", 2, 'y'), "DEADLINE");
  op_.deadline = kNever;
  std::atomic<bool> cancelled{true};
  op_.cancelled = &cancelled;
  EXPECT_REASON(Set("a", 2, 'y'), "CANCELLED");
  op_.cancelled = nullptr;
  EXPECT_EQ(*Get(Seq("a")), 'x');
}

TEST_F(StoreTest, WhateverWouldMakeANameThatIsThereTellsItsRevision) {
  const auto info = Set("a", 1, 'x');
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "a", {}, {}}).ok());
  const auto create = store_->Create(op_, {"a", "m", {}, {}});
  const auto fork = Fork(Seq("a"), {"b", "a"});
  const auto snapshot = store_->Snapshot(op_, {{Seq("a"), {}, ""}, "a", {}, {}});
  const auto told = [](const absl::Status& status) {
    const ErrorDetail detail = GetErrorDetail(status);
    return absl::StrCat(status.message(), "; ", detail.reason, " ", detail.field, " ", detail.metadata.at(0).second);
  };
  const uint64_t snapshots = store_->Describe(op_, Snap("a"))->revision;
  EXPECT_EQ(told(create.status()), absl::StrCat("a sequence 'a' exists; choose another name, or delete it first; "
                                                "NAME_EXISTS sequence ",
                                                info->revision));
  EXPECT_EQ(told(fork.status()),
            absl::StrCat("a sequence 'a' exists; no child was made; NAME_EXISTS children[1] ", info->revision));
  EXPECT_EQ(
      told(snapshot.status()),
      absl::StrCat("a snapshot 'a' exists; snapshots never change; delete it first; NAME_EXISTS snapshot ", snapshots));
}

// ---- fork

TEST_F(StoreTest, AThousandChildrenShareOneImageAndEachHasItsOwnRevision) {
  ASSERT_TRUE(Set("p", 7, 'x').ok());
  std::vector<std::string> children;
  for (int i = 0; i < 1000; ++i) children.push_back("c/" + std::to_string(i));
  const int writes = images_->writes;
  const auto fork = Fork(Seq("p"), children);
  ASSERT_TRUE(fork.ok());
  EXPECT_EQ(images_->writes, writes);
  EXPECT_EQ(LiveImages(), 1);
  EXPECT_EQ(std::set<Revision>(fork->revisions.begin(), fork->revisions.end()).size(), 1000u);
  ASSERT_TRUE(Set("c/5", 8, 'y').ok());
  EXPECT_EQ(*Get(Seq("c/5")), 'y');
  EXPECT_EQ(*Get(Seq("c/6")), 'x');
  EXPECT_EQ(*Get(Seq("p")), 'x');
}

TEST_F(StoreTest, ForkInheritsClassTtlAndHistory) {
  NameOptions options;
  options.durability = kVolatile;
  options.ttl = absl::Hours(1);
  options.max_history = 3;
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(Set("p", i, static_cast<char>('0' + i), options).ok());
  ASSERT_TRUE(Fork(Seq("p"), {"c"}).ok());
  const auto child = store_->Describe(op_, Seq("c"));
  EXPECT_EQ(child->durability, kVolatile);
  EXPECT_EQ(child->ttl, absl::Hours(1));
  EXPECT_EQ(child->max_history, 3u);
  ASSERT_TRUE(store_->Rollback(op_, {"c", 1, {}, {}}).ok());
  EXPECT_EQ(*Get(Seq("c")), '1');
  EXPECT_EQ(*Get(Seq("p")), '3');
}

TEST_F(StoreTest, AForkOfAnEarlierPositionEndsThere) {
  for (int64_t position : {1, 2, 3}) ASSERT_TRUE(Set("p", position, static_cast<char>('w' + position)).ok());
  const auto fork = store_->Fork(op_, {{Seq("p"), 2, ""}, {"c"}, {}, {}});
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->version.position, 2);
  EXPECT_EQ(*Get(Seq("c")), 'y');
  EXPECT_EQ(*Get(Seq("c"), 1), 'x');
  EXPECT_REASON(Get(Seq("c"), 3), "POSITION_MISMATCH");
}

TEST_F(StoreTest, AForkMakesAllChildrenOrNone) {
  ASSERT_TRUE(Set("p", 1, 'x').ok());
  ASSERT_TRUE(Set("taken", 1, 'y').ok());
  EXPECT_REASON(Fork(Seq("p"), {"a", "taken", "b"}), "NAME_EXISTS");
  EXPECT_REASON(Fork(Seq("p"), {"a", "b", "a"}), "DUPLICATE_NAME");
  EXPECT_REASON(Fork(Seq("p"), {"a", ""}), "INVALID_NAME");
  EXPECT_REASON(Fork(Seq("absent"), {"a"}), "NEVER_CREATED");
  EXPECT_REASON(Get(Seq("a")), "NEVER_CREATED");
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(Fork(Seq("p"), {"a", "b"}, With(kSync)), "COLD_FULL");
  EXPECT_REASON(Get(Seq("a")), "NEVER_CREATED");
}

TEST_F(StoreTest, AForkIsReplayedAsAWhole) {
  ASSERT_TRUE(Set("p", 1, 'x').ok());
  const auto first = Fork(Seq("p"), {"a", "b"}, {}, {"r", 5});
  const auto again = Fork(Seq("p"), {"a", "b"}, {}, {"r", 5});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->revisions, first->revisions);
  EXPECT_REASON(Fork(Seq("p"), {"a", "b"}, {}, {"r", 6}), "REQUEST_ID_REUSED");
  EXPECT_REASON(Fork(Seq("p"), {"a", "b"}, {}, {"s", 5}), "NAME_EXISTS");
  ASSERT_TRUE(Delete(Seq("b")).ok());
  EXPECT_REASON(Fork(Seq("p"), {"a", "b"}, {}, {"r", 5}), "REVISION_MISMATCH");
}

TEST_F(StoreTest, AForkOfWhichAnyChildrenAreGoneIsNotReplayed) {
  ASSERT_TRUE(Set("p", 1, 'x').ok());
  const std::vector<std::string> children = {"a", "b", "c"};
  for (unsigned gone = 1; gone < 7; ++gone) {
    SCOPED_TRACE(gone);
    const RequestId request{absl::StrCat("r", gone), 5};
    ASSERT_TRUE(Fork(Seq("p"), children, {}, request).ok());
    for (size_t i = 0; i < children.size(); ++i) {
      if (gone >> i & 1) {
        ASSERT_TRUE(Delete(Seq(children[i])).ok());
      }
    }
    const auto again = Fork(Seq("p"), children, {}, request);
    EXPECT_REASON(again, "REVISION_MISMATCH");
    EXPECT_EQ(GetErrorDetail(again.status()).field, absl::StrCat("children[", gone & 1 ? 0 : gone & 2 ? 1 : 2, "]"));
    for (const std::string& child : children) (void)Delete(Seq(child));
  }
}

// ---- snapshots

TEST_F(StoreTest, ASnapshotStaysWhenItsSequenceMovesOnAndGoes) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", {}, {}}).ok());
  ASSERT_TRUE(Set("a", 2, 'y').ok());
  EXPECT_REASON(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", {}, {}}), "NAME_EXISTS");
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_EQ(*Get(Snap("s")), 'x');
  const auto restored = store_->Restore(op_, {"s", "b", {}, {}, {}});
  store_->CheckInvariants();
  ASSERT_TRUE(restored.ok());
  EXPECT_EQ(restored->version.position, 1);
  EXPECT_EQ(*Get(Seq("b")), 'x');
  EXPECT_REASON(Get(Snap("a")), "NEVER_CREATED");  // kinds are separate
}

TEST_F(StoreTest, RestoreOntoASequenceKeepsItsHeadInTheRing) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", {}, {}}).ok());
  const auto two = Set("a", 2, 'y');
  EXPECT_REASON(store_->Restore(op_, {"s", "a", two->revision - 1, {}, {}}), "REVISION_MISMATCH");
  ASSERT_TRUE(store_->Restore(op_, {"s", "a", two->revision, {}, {}}).ok());
  EXPECT_EQ(*Get(Seq("a")), 'x');
  EXPECT_EQ(*Get(Seq("a"), 2), 'y');
}

// ---- prefixes

std::vector<uint32_t> Tokens(size_t n, uint32_t first = 1) {
  std::vector<uint32_t> tokens(n);
  for (size_t i = 0; i < n; ++i) tokens[i] = first + static_cast<uint32_t>(i * i);
  return tokens;
}

TEST_F(StoreTest, APrefixIsFoundAtAnyLengthTheLongestFirst) {
  for (size_t n : {1u, 63u, 64u, 65u, 200u}) {
    const std::string name = "s" + std::to_string(n);
    ASSERT_TRUE(Set(name, static_cast<int64_t>(n), static_cast<char>(n)).ok());
    ASSERT_TRUE(Publish(name, Tokens(n)).ok());
  }
  const auto match = Match(Tokens(500), {}, 64);
  ASSERT_TRUE(match.ok());
  std::vector<int64_t> positions;
  for (const NameInfo& m : match->matches) positions.push_back(m.version.position);
  EXPECT_EQ(positions, (std::vector<int64_t>{200, 65, 64, 63, 1}));
  EXPECT_EQ(Match(Tokens(200))->matches.front().version.position, 65);  // something is left to compute
  EXPECT_EQ(Match(Tokens(200), 200)->matches.front().version.position, 200);
  EXPECT_EQ(Match(Tokens(500), 64)->matches.front().version.position, 64);
  ASSERT_TRUE(Fork(match->matches.front().key, {"child"}).ok());
  EXPECT_EQ(*Get(Seq("child")), static_cast<char>(200));
}

TEST_F(StoreTest, AHitIsFoundBelowAnyNumberOfPrefixesThatAreGone) {
  std::vector<NameKey> keys;
  for (int64_t n = 1; n <= 40; ++n) {
    ASSERT_TRUE(Set("a", n, 'x').ok());
    keys.push_back(Publish("a", Tokens(static_cast<size_t>(n)))->info.key);
  }
  while (!keys.empty()) {
    EXPECT_EQ(Match(Tokens(50))->matches.front().version.position, static_cast<int64_t>(keys.size()));
    EXPECT_EQ(Match(Tokens(50), 49, 64)->matches.size(), keys.size());
    EXPECT_EQ(Match(Tokens(50), 0)->nearest_published_position, 1);
    ASSERT_TRUE(Delete(keys.back()).ok());
    keys.pop_back();
  }
  EXPECT_EQ(Match(Tokens(50))->miss_reason, "DELETED");
}

TEST_F(StoreTest, AMissSaysWhyAndWhatIsNear) {
  EXPECT_EQ(Match(Tokens(10))->miss_reason, "NEVER_PUBLISHED");
  ASSERT_TRUE(Set("a", 10, 'x').ok());
  const auto published = Publish("a", Tokens(10), Ttl(absl::Minutes(1)));
  ASSERT_TRUE(published.ok());
  EXPECT_TRUE(Publish("a", Tokens(10))->already_published);
  EXPECT_REASON(Publish("a", Tokens(11)), "POSITION_MISMATCH");
  EXPECT_REASON(store_->PublishPrefix(op_, {"other", Tokens(10), "", {Seq("a"), {}, ""}, {}}), "LAYOUT_MISMATCH");
  const auto beyond = Match(Tokens(10));
  EXPECT_EQ(beyond->miss_reason, "POSITION_MISMATCH");
  EXPECT_EQ(beyond->nearest_published_position, 10);
  EXPECT_EQ(Match(Tokens(20, 2))->miss_reason, "NEVER_PUBLISHED");                            // other tokens
  EXPECT_EQ(store_->MatchPrefix(op_, {"m", Tokens(20), "lora", {}, 1})->matches.size(), 0u);  // other key
  EXPECT_EQ(store_->MatchPrefix(op_, {"other", Tokens(20), "", {}, 1})->matches.size(), 0u);  // other layout
  EXPECT_EQ(Match(Tokens(20))->matches.size(), 1u);
  clock_.Advance(absl::Minutes(2));
  EXPECT_EQ(Match(Tokens(20))->miss_reason, "EXPIRED");
  store_->CheckInvariants();
  ASSERT_TRUE(Publish("a", Tokens(10)).ok());
  ASSERT_TRUE(Delete(published->info.key).ok());
  EXPECT_EQ(Match(Tokens(20))->miss_reason, "DELETED");
  ASSERT_TRUE(Publish("a", Tokens(10), With(kSync)).ok());
  EXPECT_FALSE(store_->EvictPrefix());  // its going would free nothing: the sequence needs the bytes
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_TRUE(store_->EvictPrefix());
  store_->CheckInvariants();
  EXPECT_EQ(Match(Tokens(20))->miss_reason, "EVICTED");
  EXPECT_FALSE(store_->EvictPrefix());
}

class CollidingStoreTest : public StoreTest {
 protected:
  CollidingStoreTest() {
    options_.prefix_key_bits = 0;  // every prefix has the same key
    store_.reset();
    Start();
  }
};

TEST_F(CollidingStoreTest, ACollisionIsAMissAndTheNewerPrefixWins) {
  ASSERT_TRUE(Set("a", 5, 'x').ok());
  ASSERT_TRUE(Set("b", 5, 'y').ok());
  ASSERT_TRUE(Publish("a", Tokens(5)).ok());
  EXPECT_TRUE(Match(Tokens(9, 1000))->matches.empty());
  ASSERT_TRUE(Publish("b", Tokens(5, 1000)).ok());
  EXPECT_TRUE(Match(Tokens(9))->matches.empty());
  EXPECT_EQ(*Get(Match(Tokens(9, 1000))->matches.front().key), 'y');
}

TEST_F(StoreTest, AForkThatIsRefusedDoesNotCountForItsPrefix) {
  NameKey refused, forked;
  for (NameKey* prefix : {&refused, &forked}) {
    ASSERT_TRUE(Set("a", 5, 'x').ok());
    const auto published = Publish("a", Tokens(5, prefix == &refused ? 1 : 1000), With(kSync));
    ASSERT_TRUE(published.ok()) << published.status();
    *prefix = published->info.key;
    ASSERT_TRUE(Delete(Seq("a")).ok());
  }
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  for (int i = 0; i < 3; ++i) EXPECT_REASON(Fork(refused, {"c"}, With(kSync)), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  ASSERT_TRUE(Fork(forked, {"c"}, With(kVolatile)).ok());
  ASSERT_TRUE(Delete(Seq("c")).ok());
  ASSERT_TRUE(store_->EvictPrefix());  // the one whose forks saved nothing
  EXPECT_REASON(Get(refused), "EVICTED");
  EXPECT_EQ(*Get(forked), 'x');
}

TEST_F(StoreTest, AWriteFromASourceIsAUseOfItOnlyWhenItIsDone) {
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Seconds(10))).ok());
  clock_.Advance(absl::Seconds(8));
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", With(kVolatile), {}}).ok());
  clock_.Advance(absl::Seconds(8));
  ASSERT_TRUE(Fork(Seq("a"), {"c"}, With(kVolatile)).ok());
  clock_.Advance(absl::Seconds(8));
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "t", With(kSync), {}}), "COLD_FULL");
  EXPECT_REASON(Fork(Seq("a"), {"d"}, With(kSync)), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  clock_.Advance(absl::Seconds(3));
  EXPECT_REASON(Get(Seq("a")), "EXPIRED");
}

// ---- layouts

TEST_F(StoreTest, LayoutsAreBoundedInNumberAndInBytesAndADeletedOneGivesItsRoomBack) {
  const auto make = [](std::string model_id) {
    return *Layout::Create(
        {std::move(model_id), {{"ssm", TensorKind::kRecurrent, {0}, DType::kFloat32, {{"state", 8}}, {}, {}}}});
  };
  const LayoutRef third = make("third"), fourth = make("forth");
  for (const bool in_bytes : {false, true}) {
    options_ = StoreOptions();
    if (in_bytes) {
      options_.max_layout_bytes = third->canonical().size();
      for (const LayoutRef& there : {layout_, other_layout_}) options_.max_layout_bytes += there->canonical().size();
    } else {
      options_.max_layouts = 3;
    }
    Stop();
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(store_->RegisterLayout(op_, third, "third").ok());
      EXPECT_TRUE(store_->RegisterLayout(op_, third, "again").ok()) << "it is there already";
      EXPECT_REASON(store_->RegisterLayout(op_, fourth, "fourth"), "TOO_MANY_LAYOUTS");
      ASSERT_TRUE(store_->DeleteLayout(op_, "third").ok());
      ASSERT_TRUE(store_->RegisterLayout(op_, fourth, "fourth").ok());
      EXPECT_REASON(store_->RegisterLayout(op_, third, "third"), "TOO_MANY_LAYOUTS");
      ASSERT_TRUE(store_->DeleteLayout(op_, "fourth").ok());
    }
  }
}

// ---- expiry

TEST_F(StoreTest, IdleTimeStartsAnewWithEveryUseAndDescribeIsNone) {
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Seconds(10))).ok());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(absl::Seconds(8));
    Reap();
    EXPECT_TRUE(Get(Seq("a")).ok());
  }
  clock_.Advance(absl::Seconds(8));
  EXPECT_TRUE(store_->Describe(op_, Seq("a")).ok());
  clock_.Advance(absl::Seconds(3));
  EXPECT_REASON(store_->Describe(op_, Seq("a")), "EXPIRED");
  EXPECT_EQ(LiveImages(), 0);
}

TEST_F(StoreTest, ExpiredNamesAreReclaimedWithoutAnybodyLooking) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Set("a" + std::to_string(i), 1, 'x', Ttl(absl::Seconds(10 + i))).ok());
  clock_.Advance(absl::Seconds(12));
  Reap();
  EXPECT_EQ(store_->stats().sequences, 2u);
  EXPECT_EQ(LiveImages(), 2);
}

TEST_F(StoreTest, ARetriedCreateHasItsAnswerAlsoWhenItsExpireTimeIsOver) {
  CreateRequest request{"a", "m", {}, {"id", 1}};
  request.options.expire_time = clock_.WallNow() + absl::Seconds(10);
  const auto created = store_->Create(op_, request);
  ASSERT_TRUE(created.ok());
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("a"), Ttl(absl::Minutes(1)), {}}).ok());
  clock_.Advance(absl::Seconds(20));
  const auto again = store_->Create(op_, request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->revision, created->revision);
}

TEST_F(StoreTest, AnAbsoluteTimeIsNotMovedByUseNorByTheWallClock) {
  NameOptions options;
  options.expire_time = clock_.WallNow() + absl::Seconds(10);
  ASSERT_TRUE(Set("a", 1, 'x', options).ok());
  clock_.JumpWall(absl::Hours(24 * 365));
  Reap();
  clock_.Advance(absl::Seconds(9));
  EXPECT_TRUE(Get(Seq("a")).ok());
  clock_.Advance(absl::Seconds(1));
  EXPECT_REASON(Get(Seq("a")), "EXPIRED");
  options.expire_time = clock_.WallNow() - absl::Seconds(1);
  EXPECT_REASON(Set("a", 1, 'x', options), "INVALID_OPTION");
  EXPECT_REASON(Set("a", 1, 'x', Ttl(absl::ZeroDuration())), "INVALID_OPTION");
  EXPECT_REASON(Set("a", 1, 'x', Ttl(options_.max_ttl + absl::Seconds(1))), "INVALID_OPTION");
}

TEST_F(StoreTest, AnExpiredNameCanBeMadeAnewAndItsOldRecordNeverComesBack) {
  ASSERT_TRUE(Set("a", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(Set("a", 5, 'y', With(kVolatile)).ok());
  FlushDue();
  Crash();
  EXPECT_REASON(Get(Seq("a")), "UNKNOWN_SINCE_RESTART");
}

TEST_F(StoreTest, AnExpiredNameThatNobodyLookedAtDoesNotComeBackFromAnOrderlyStop) {
  ASSERT_TRUE(Set("recorded", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  ASSERT_TRUE(Set("dirty", 1, 'x', Ttl(absl::Seconds(1))).ok());
  ASSERT_TRUE(Set("volatile", 1, 'x', {kVolatile, {}, absl::Seconds(1), {}, false}).ok());
  clock_.Advance(absl::Seconds(2));
  Stop();
  for (const char* name : {"recorded", "dirty", "volatile"}) EXPECT_REASON(Get(Seq(name)), "EXPIRED");
}

TEST_F(StoreTest, AnExpiredNameThatNobodyLookedAtIsNotCountedAndNeedsNoLayout) {
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Seconds(1))).ok());
  clock_.Advance(absl::Seconds(2));
  const absl::StatusOr<FlushAnswer> flushed = store_->Flush(op_, {});
  ASSERT_TRUE(flushed.ok());
  EXPECT_EQ(flushed->names, 0u);
  EXPECT_EQ(flushed->written, 0u);
  ASSERT_TRUE(Set("b", 1, 'x', Ttl(absl::Seconds(1))).ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(store_->DeleteLayout(op_, "m").ok());
}

TEST_F(StoreTest, ADeleteAlsoTakesTheRecordOfAnEarlierExpiredName) {
  ASSERT_TRUE(Set("a", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  ASSERT_TRUE(Set("b", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(Set("a", 5, 'y', With(kVolatile)).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_REASON(Delete(Seq("b")), "EXPIRED");
  LosePower();
  EXPECT_REASON(Get(Seq("a")), "UNKNOWN_SINCE_RESTART");
  EXPECT_REASON(Get(Seq("b")), "UNKNOWN_SINCE_RESTART");
}

TEST_F(StoreTest, AStateThatComesSlowlyDoesNotBringItsDeletedSequenceBack) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  SetRequest request;
  request.sequence = "a";  // and no layout: only a sequence that exists
  request.position = 2;
  absl::StatusOr<PendingSet> pending = BeginSet(request, "", std::nullopt);
  ASSERT_TRUE(pending.ok()) << pending.status();
  const std::string bytes(pending->layout->state_bytes(), 'y');
  const absl::string_view piece = bytes;
  ASSERT_TRUE(pending->writer->Append({&piece, 1}, ChecksumOf(piece)).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_REASON(store_->FinishSet(op_, &*pending), "DELETED");
  EXPECT_REASON(Get(Seq("a")), "DELETED");
}

TEST_F(StoreTest, AStrongerDurabilityIsAllThatPublishingAgainChanges) {
  ASSERT_TRUE(Set("a", 10, 'x').ok());
  const auto published = Publish("a", Tokens(10), Ttl(absl::Minutes(1)));
  ASSERT_TRUE(published.ok());
  const auto again = Publish("a", Tokens(10), {kSync, {}, absl::Seconds(1), {}, false});
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->already_published);
  EXPECT_EQ(again->info.durability, kSync);
  EXPECT_EQ(again->info.durable_revision, again->info.revision);
  EXPECT_EQ(again->info.ttl, absl::Minutes(1));
  EXPECT_EQ(again->info.version.id, published->info.version.id);
}

TEST_F(StoreTest, APrefixCanBePublishedAgainFromItselfAtTheMomentItExpires) {
  ASSERT_TRUE(Set("a", 10, 'x').ok());
  for (int i = 1; i < 30; ++i) {
    clock_.SetTick(absl::ZeroDuration());
    const auto published = Publish("a", Tokens(10), Ttl(absl::Seconds(10)));
    ASSERT_TRUE(published.ok());
    clock_.SetTick(absl::Nanoseconds(1));
    clock_.Advance(absl::Seconds(10) - absl::Nanoseconds(i));
    (void)store_->PublishPrefix(op_, {"m", Tokens(10), "", {published->info.key, {}, ""}, Ttl(absl::Seconds(10))});
    store_->CheckInvariants();
    clock_.Advance(absl::Seconds(20));
  }
  clock_.SetTick(absl::ZeroDuration());
}

TEST_F(StoreTest, TimesBeyondTheClockAreForever) {
  options_.max_ttl = absl::InfiniteDuration();
  Stop();
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Hours(24 * 365 * 300))).ok());
  NameOptions options;
  options.expire_time = clock_.WallNow() + absl::Hours(24 * 365 * 3000);
  ASSERT_TRUE(Set("b", 1, 'x', options).ok());
  Reap();
  EXPECT_TRUE(Get(Seq("a")).ok());
  EXPECT_TRUE(Get(Seq("b")).ok());
}

TEST_F(StoreTest, ANewRecordReplacesTheOneInTheGrave) {
  ASSERT_TRUE(Set("a", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(Set("a", 5, 'y', With(kSync)).ok());
  FlushDue();
  Crash();
  EXPECT_EQ(*Get(Seq("a")), 'y');
}

// ---- durability

TEST_F(StoreTest, SyncSurvivesPowerLossWriteBehindAfterItsTurnAndVolatileNever) {
  ASSERT_TRUE(Set("sync", 1, 's', With(kSync)).ok());
  ASSERT_TRUE(Set("behind", 1, 'b').ok());
  ASSERT_TRUE(Set("volatile", 1, 'v', With(kVolatile)).ok());
  EXPECT_EQ(store_->Describe(op_, Seq("sync"))->durable_revision, store_->Describe(op_, Seq("sync"))->revision);
  EXPECT_EQ(store_->Describe(op_, Seq("behind"))->durable_revision, 0u);
  FlushDue();
  EXPECT_EQ(store_->Describe(op_, Seq("behind"))->durable_revision, 0u);
  clock_.Advance(options_.write_behind.flush_interval);
  FlushDue();
  EXPECT_GT(store_->Describe(op_, Seq("behind"))->durable_revision, 0u);
  LosePower();
  EXPECT_EQ(*Get(Seq("sync")), 's');
  EXPECT_EQ(*Get(Seq("behind")), 'b');
  EXPECT_REASON(Get(Seq("volatile")), "UNKNOWN_SINCE_RESTART");
}

TEST_F(StoreTest, AnOrderlyStopRecordsWriteBehindAndRemembersWhatItLost) {
  ASSERT_TRUE(Set("behind", 1, 'b').ok());
  ASSERT_TRUE(Set("volatile", 1, 'v', With(kVolatile)).ok());
  ASSERT_TRUE(Set("gone", 1, 'g').ok());
  ASSERT_TRUE(Delete(Seq("gone")).ok());
  Stop();
  EXPECT_EQ(*Get(Seq("behind")), 'b');
  EXPECT_REASON(Get(Seq("volatile")), "NOT_DURABLE_AT_RESTART");
  EXPECT_REASON(Get(Seq("gone")), "DELETED");
  EXPECT_REASON(Get(Seq("never")), "NEVER_CREATED");
  Crash();
  EXPECT_REASON(Get(Seq("never")), "UNKNOWN_SINCE_RESTART");
  Stop();
  EXPECT_REASON(Get(Seq("never")), "UNKNOWN_SINCE_RESTART");  // the crash is not forgotten
}

TEST_F(StoreTest, RevisionsAreNeverIssuedTwice) {
  const auto before = Set("a", 1, 'x', With(kVolatile));
  Crash();
  const auto after = Set("a", 1, 'x', With(kVolatile));
  EXPECT_GT(after->revision, before->revision);
  EXPECT_GT(EpochOf(after->revision), EpochOf(before->revision));
}

TEST_F(StoreTest, TheNewestDurableVersionComesBackWithItsRingAndRequestIds) {
  ASSERT_TRUE(Set("a", 1, '1', With(kSync)).ok());
  ASSERT_TRUE(Set("a", 2, '2', With(kSync), {}, {"r", 9}).ok());
  const auto recorded = store_->Describe(op_, Seq("a"));
  ASSERT_TRUE(Set("a", 3, '3', With(Durability::kWriteBehind)).ok());  // not recorded before the crash
  LosePower();
  const auto back = store_->Describe(op_, Seq("a"));
  EXPECT_EQ(back->version.position, 2);
  EXPECT_EQ(back->revision, recorded->revision);
  EXPECT_EQ(back->durable_revision, recorded->revision);
  EXPECT_EQ(back->history.size(), 2u);
  EXPECT_EQ(*Get(Seq("a")), '2');
  EXPECT_EQ(*Get(Seq("a"), 1), '1');
  EXPECT_TRUE(Set("a", 2, '2', With(kSync), {}, {"r", 9})->replayed);
}

TEST_F(StoreTest, BytesThatARecordNeedsOutliveUnrecordedChanges) {
  NameOptions one = With(kSync);
  one.max_history = 1;
  ASSERT_TRUE(Set("a", 1, 'x', one).ok());
  one.durability = Durability::kWriteBehind;
  ASSERT_TRUE(Set("a", 2, 'y', one).ok());  // drops version 1 from the ring, not from the record
  EXPECT_EQ(LiveImages(), 2);
  Crash();
  EXPECT_EQ(*Get(Seq("a")), 'x');
}

TEST_F(StoreTest, SupersededVersionsAreSkippedByWriteBehind) {
  for (int i = 1; i <= 10; ++i) ASSERT_TRUE(Set("a", i, static_cast<char>('0' + i)).ok());
  clock_.Advance(options_.write_behind.flush_interval);
  FlushDue();
  EXPECT_EQ(images_->persists, 1);
  EXPECT_EQ(store_->stats().dirty_names, 0u);
}

TEST_F(StoreTest, ChildrenOfOneForkAreRecordedInOneCommit) {
  options_.flush_batch_bytes = 4096;  // a few names
  Stop();
  ASSERT_TRUE(Set("p", 1, 'x').ok());
  clock_.Advance(options_.write_behind.flush_interval);
  FlushDue();
  std::vector<std::string> children;
  for (int i = 0; i < 100; ++i) children.push_back("c" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("p"), children).ok());
  const int before = log_->commits;
  clock_.Advance(options_.write_behind.flush_interval);
  FlushDue();
  EXPECT_EQ(log_->commits, before + 1);
  EXPECT_EQ(images_->persists, 1);
  children.clear();
  for (int i = 0; i < 100; ++i) children.push_back("d" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("p"), children).ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  EXPECT_EQ(log_->commits, before + 2);
}

TEST_F(StoreTest, ChildrenOfOneForkComeDueTogether) {
  ASSERT_TRUE(Set("p", 1, 'x', With(kSync)).ok());
  clock_.SetTick(absl::Milliseconds(1));
  std::vector<std::string> children;
  for (int i = 0; i < 100; ++i) children.push_back("c" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("p"), children, With(Durability::kWriteBehind)).ok());
  for (int i = 0; i < 200; ++i) {
    FlushDue();
    const uint64_t left = store_->stats().dirty_names;
    EXPECT_TRUE(left == 0 || left == 100) << left;
    clock_.Advance(absl::Milliseconds(10));
  }
  EXPECT_EQ(store_->stats().dirty_names, 0u);
}

TEST_F(StoreTest, AnOrderlyStopGoesOnPastWhatCannotBeRecorded) {
  options_.flush_batch_bytes = 1;
  Stop();
  ASSERT_TRUE(Set("bad", 1, 'b').ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Set("a" + std::to_string(i), 1, 'x').ok());
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  images_->persist_fails_for = images_->first_written;
  EXPECT_REASON(store_->Drain(op_), "COLD_FULL");
  Crash();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(*Get(Seq("a" + std::to_string(i))), 'x');
  EXPECT_REASON(Get(Seq("bad")), "NOT_DURABLE_AT_RESTART");
}

TEST_F(StoreTest, ADamagedStateKeepsNobodyFromAnOrderlyStop) {
  options_.flush_batch_bytes = 1;
  Stop();
  ASSERT_TRUE(Set("bad", 1, 'b').ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Set("a" + std::to_string(i), 1, 'x').ok());
  images_->persist_error = Error(absl::StatusCode::kDataLoss, "CORRUPT", "");
  images_->persist_fails_for = images_->first_written;
  EXPECT_REASON(store_->Flush(op_, {Seq("bad")}).status(), "CORRUPT");
  ASSERT_TRUE(store_->Flush(op_, {Seq("a0")}).ok());
  EXPECT_EQ(store_->stats().dirty_names, 4u) << "it waits for nothing any more";
  EXPECT_REASON(store_->Flush(op_, {Seq("bad")}).status(), "CORRUPT");
  EXPECT_REASON(store_->Flush(op_, {}).status(), "CORRUPT");
  store_->CheckInvariants();
  images_->persist_error = absl::OkStatus();
  ASSERT_TRUE(Set("bad", 2, 'c').ok());
  EXPECT_TRUE(store_->Flush(op_, {Seq("bad")}).ok());
  ASSERT_TRUE(Set("worse", 1, 'd').ok());
  images_->persist_error = Error(absl::StatusCode::kDataLoss, "CORRUPT", "");
  images_->persist_fails_for = 0;
  EXPECT_REASON(store_->Flush(op_, {Seq("worse")}).status(), "CORRUPT");
  images_->persist_error = absl::OkStatus();
  EXPECT_TRUE(store_->Drain(op_).ok());
  Crash();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(*Get(Seq("a" + std::to_string(i))), 'x');
  EXPECT_EQ(*Get(Seq("bad")), 'c');
  EXPECT_REASON(Get(Seq("worse")), "NOT_DURABLE_AT_RESTART");
}

TEST_F(StoreTest, AVolatilePrefixIsRememberedAsLostAfterAnOrderlyStop) {
  ASSERT_TRUE(Set("a", 10, 'x', With(kVolatile)).ok());
  ASSERT_TRUE(Publish("a", Tokens(10), With(kVolatile)).ok());
  Stop();
  EXPECT_EQ(Match(Tokens(20))->miss_reason, "NOT_DURABLE_AT_RESTART");
}

TEST_F(StoreTest, AFailedDiskRefusesSyncWritesAndKeepsWhatWasThere) {
  ASSERT_TRUE(Set("a", 1, 'x', With(kSync)).ok());
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(Set("a", 2, 'y'), "COLD_FULL");
  EXPECT_REASON(Set("new", 2, 'y', With(kSync)), "COLD_FULL");
  EXPECT_REASON(Delete(Seq("a")), "COLD_FULL");
  EXPECT_EQ(*Get(Seq("a")), 'x');
  EXPECT_REASON(Get(Seq("new")), "NEVER_CREATED");
  EXPECT_EQ(LiveImages(), 1);
  ASSERT_TRUE(Set("behind", 1, 'b', With(Durability::kWriteBehind)).ok());
  clock_.Advance(options_.write_behind.flush_interval);
  FlushDue();
  EXPECT_EQ(ReasonOf(store_->stats().flush_status), "COLD_FULL");
  EXPECT_EQ(store_->stats().dirty_names, 1u);
  log_->commit_error = absl::OkStatus();
  clock_.Advance(absl::Seconds(1));
  FlushDue();
  EXPECT_EQ(store_->stats().dirty_names, 0u);
}

TEST_F(StoreTest, ADurableDeleteStaysDeleted) {
  ASSERT_TRUE(Set("a", 1, 'x', With(kSync)).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_REASON(Get(Seq("a")), "DELETED");
  LosePower();
  EXPECT_REASON(Get(Seq("a")), "UNKNOWN_SINCE_RESTART");
}

TEST_F(StoreTest, FlushMakesNamesDurableNow) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(Set("b", 1, 'y').ok());
  ASSERT_TRUE(Set("v", 1, 'v', With(kVolatile)).ok());
  const NameKey a = Seq("a");
  auto flushed = store_->Flush(op_, {&a, 1});
  ASSERT_TRUE(flushed.ok());
  EXPECT_EQ(flushed->written, 1u);
  flushed = store_->Flush(op_, {});
  EXPECT_EQ(flushed->names, 2u);
  EXPECT_EQ(flushed->written, 1u);
  const NameKey absent = Seq("absent");
  EXPECT_REASON(store_->Flush(op_, {&absent, 1}), "NEVER_CREATED");
  LosePower();
  EXPECT_EQ(*Get(Seq("a")), 'x');
  EXPECT_EQ(*Get(Seq("b")), 'y');
}

TEST_F(StoreTest, PrefixesAndSnapshotsComeBackAndShareTheirImages) {
  ASSERT_TRUE(Set("a", 10, 'x', With(kSync)).ok());
  ASSERT_TRUE(Publish("a", Tokens(10), With(kSync)).ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", With(kSync), {}}).ok());
  ASSERT_TRUE(Fork(Seq("a"), {"c1", "c2"}).ok());
  LosePower();
  EXPECT_EQ(LiveImages(), 1);
  EXPECT_EQ(store_->Describe(op_, Seq("c1"))->version.id, store_->Describe(op_, Snap("s"))->version.id);
  const auto match = Match(Tokens(20));
  ASSERT_EQ(match->matches.size(), 1u);
  EXPECT_EQ(*Get(match->matches.front().key), 'x');
}

TEST_F(StoreTest, ACorruptRecordCostsItsNameAndSaysSo) {
  ASSERT_TRUE(Set("a", 1, 'x', With(kSync)).ok());
  ASSERT_TRUE(Set("b", 1, 'y', With(kSync)).ok());
  {
    MutexLock lock(&disk_.mu);
    disk_.written.names[Seq("a")] = std::nullopt;
  }
  Crash();
  EXPECT_EQ(Get(Seq("a")).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(*Get(Seq("b")), 'y');
  FlushDue();
  Crash();
  EXPECT_EQ(Get(Seq("a")).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(*Delete(Seq("a")));
  LosePower();
  EXPECT_REASON(Get(Seq("a")), "UNKNOWN_SINCE_RESTART");
}

// ---- listing

TEST_F(StoreTest, ListGoesThroughNamesInOrderPageByPage) {
  for (const char* name : {"b/2", "a", "b/1", "c", "b/3"}) ASSERT_TRUE(Set(name, 1, 'x').ok());
  const auto page = store_->List(op_, {NameKind::kSequence, "b/", 2, ""});
  ASSERT_EQ(page->names.size(), 2u);
  EXPECT_EQ(page->names[0].key.name, "b/1");
  const auto rest = store_->List(op_, {NameKind::kSequence, "b/", 2, page->next_page_token});
  ASSERT_EQ(rest->names.size(), 1u);
  EXPECT_EQ(rest->names[0].key.name, "b/3");
  EXPECT_EQ(rest->next_page_token, "");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "b/", 2, "a"}), "INVALID_OPTION");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "", 100'000, ""}), "INVALID_OPTION");
}

TEST_F(StoreTest, ATableOfNamesHasALimit) {
  options_.max_names = 3;
  Stop();
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(Fork(Seq("a"), {"b", "c"}).ok());
  EXPECT_REASON(Set("d", 1, 'x'), "TOO_MANY_NAMES");
  EXPECT_REASON(Fork(Seq("a"), {"d"}), "TOO_MANY_NAMES");
  EXPECT_TRUE(Set("a", 2, 'x').ok());
}

}  // namespace
}  // namespace statepool
