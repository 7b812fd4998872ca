// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Batches: what one does, what it answers, and that a crash leaves all of its names or none.
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/store_fixture.h"

namespace statepool {
namespace {

constexpr auto kSync = Durability::kSync;
constexpr auto kVolatile = Durability::kVolatile;

class StoreBatchTest : public StoreTest {
 protected:
  static BatchItem DeleteItem(const std::string& name, bool allow_missing = false) {
    return DeleteRequest{Seq(name), {}, allow_missing};
  }
  static BatchItem ForkItem(const std::string& source, std::vector<std::string> children, NameOptions options = {},
                            RequestId request = {}) {
    return ForkRequest{{Seq(source), {}, ""}, std::move(children), options, std::move(request)};
  }
  bool Exists(const std::string& name) { return store_->Describe(op_, Seq(name)).ok(); }
  void Due() {
    clock_.Advance(options_.write_behind.flush_interval);
    FlushDue();
  }
};

// ---- what it does

TEST_F(StoreBatchTest, EveryKindOfWriteMayStandInABatch) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(Set("a", 2, 'y').ok());
  ASSERT_TRUE(Set("gone", 1, 'g').ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), 1, ""}, "s", {}, {}}).ok());
  const auto results = Batch({CreateRequest{"new", "m", {}, {}}, SetItemOf("b", 3, 'b'), ForkItem("a", {"c1", "c2"}),
                              RollbackRequest{"a", 1, {}, {}}, SnapshotRequest{{Seq("a"), {}, ""}, "t", {}, {}},
                              RestoreRequest{"s", "r", {}, {}, {}}, DeleteItem("gone")});
  ASSERT_TRUE(results.ok()) << results.status();
  for (const BatchResult& result : *results) EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(std::get<NameInfo>((*results)[1].answer).key, Seq("b"));
  EXPECT_EQ(std::get<ForkAnswer>((*results)[2].answer).revisions.size(), 2u);
  EXPECT_TRUE(std::get<bool>((*results)[6].answer));
  EXPECT_EQ(*Get(Seq("new")), '\0');
  EXPECT_EQ(*Get(Seq("b")), 'b');
  EXPECT_EQ(*Get(Seq("a")), 'x');
  EXPECT_EQ(*Get(Seq("c2")), 'y');  // sources are read as they were before the batch
  EXPECT_EQ(*Get(Snap("t")), 'y');
  EXPECT_EQ(*Get(Seq("r")), 'x');
  EXPECT_REASON(Get(Seq("gone")), "DELETED");
}

TEST_F(StoreBatchTest, AnItemThatFailsChangesNothingAndTheOthersAreDone) {
  ASSERT_TRUE(Set("taken", 1, 'x').ok());
  const auto results = Batch({SetItemOf("a", 1, 'a'), CreateRequest{"taken", "m", {}, {}}, SetItemOf("b", -1, 'b'),
                              DeleteItem("absent"), SetItemOf("taken2", 1, 'z', {}, 77), SetItemOf("c", 1, 'c')});
  ASSERT_TRUE(results.ok());
  EXPECT_TRUE((*results)[0].status.ok());
  EXPECT_REASON((*results)[1].status, "NAME_EXISTS");
  EXPECT_REASON((*results)[2].status, "INVALID_POSITION");
  EXPECT_REASON((*results)[3].status, "NEVER_CREATED");
  EXPECT_REASON((*results)[4].status, "REVISION_MISMATCH");
  EXPECT_TRUE((*results)[5].status.ok());
  EXPECT_EQ(*Get(Seq("a")), 'a');
  EXPECT_EQ(*Get(Seq("c")), 'c');
  EXPECT_EQ(*Get(Seq("taken")), 'x');
  EXPECT_FALSE(Exists("b") || Exists("taken2"));
}

TEST_F(StoreBatchTest, AllOrNoneDoesNothingWhenOneItemFailsAndSaysWhich) {
  const auto before = Set("a", 1, 'x');
  // Refused when it is decided, and refused before.
  for (const BatchItem& bad : {SetItemOf("b", 1, 'b', {}, 77), SetItemOf("b", -1, 'b')}) {
    const auto results = Batch({SetItemOf("a", 2, 'y'), bad, DeleteItem("nothing", true)}, /*all_or_none=*/true);
    ASSERT_TRUE(results.ok());
    EXPECT_REASON((*results)[0].status, "BATCH_ABORTED");
    EXPECT_EQ((*results)[0].status.code(), absl::StatusCode::kAborted);
    EXPECT_NE(ReasonOf((*results)[1].status), "BATCH_ABORTED");
    EXPECT_FALSE((*results)[1].status.ok());
    EXPECT_REASON((*results)[2].status, "BATCH_ABORTED");
  }
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->revision, before->revision);
  EXPECT_EQ(LiveImages(), 1);
  const auto good = Batch({SetItemOf("a", 2, 'y'), SetItemOf("b", 1, 'b')}, true);
  ASSERT_TRUE(good.ok());
  for (const BatchResult& result : *good) EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(*Get(Seq("a")), 'y');
}

TEST_F(StoreBatchTest, ANameThatTwoItemsWriteIsRefusedWithTheSecondItem) {
  const auto refused = Batch({SetItemOf("a", 1, 'x'), SetItemOf("b", 1, 'x'), ForkItem("p", {"c", "b"})});
  EXPECT_REASON(refused, "DUPLICATE_NAME");
  EXPECT_EQ(GetErrorDetail(refused.status()).field, "items[2]");
  EXPECT_FALSE(Exists("a"));
  // Kinds are separate, and to read a name that another item writes is fine.
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  const auto fine = Batch({SetItemOf("a", 2, 'y'), SnapshotRequest{{Seq("a"), {}, ""}, "a", {}, {}}}, true);
  ASSERT_TRUE(fine.ok());
  EXPECT_TRUE((*fine)[1].status.ok());
  EXPECT_EQ(*Get(Snap("a")), 'x');
  // A child that stands twice is its own Fork's error.
  const auto twice = Batch({ForkItem("a", {"c", "c"}), SetItemOf("b", 1, 'b')});
  ASSERT_TRUE(twice.ok());
  EXPECT_REASON((*twice)[0].status, "DUPLICATE_NAME");
  EXPECT_EQ(GetErrorDetail((*twice)[0].status).field, "children[1]");
  EXPECT_TRUE((*twice)[1].status.ok());
}

TEST_F(StoreBatchTest, BatchesAreBoundedInItemsAndInNames) {
  options_.max_batch = 3;
  options_.max_children = 4;
  options_.max_names = 5;
  Stop();
  EXPECT_REASON(Batch({}), "MISSING_FIELD");
  std::vector<BatchItem> items;
  for (int i = 0; i < 4; ++i) items.push_back(CreateRequest{"n" + std::to_string(i), "m", {}, {}});
  const auto many = Batch(items);
  EXPECT_REASON(many, "TOO_MANY");
  EXPECT_EQ(GetErrorDetail(many.status()).field, "items");
  items.pop_back();
  ASSERT_TRUE(Batch(items).ok());
  const auto names = Batch({ForkItem("n0", {"a", "b", "c"}), ForkItem("n0", {"d", "e"})});
  EXPECT_REASON(names, "TOO_MANY");
  EXPECT_REASON(Batch({ForkItem("n0", {"a", "b"}), ForkItem("n0", {"d"})}), "TOO_MANY_NAMES");
  EXPECT_FALSE(Exists("a") || Exists("d"));  // not even those that would have had a place
  ASSERT_TRUE(Batch({ForkItem("n0", {"a", "b"})}).ok());
}

TEST_F(StoreBatchTest, AnItemThatWasAnsweredBeforeCountsAsDone) {
  const std::vector<BatchItem> items = {SetItemOf("a", 1, 'a', {}, {}, {"ra", 1}),
                                        ForkItem("p", {"c1", "c2"}, {}, {"rf", 2})};
  ASSERT_TRUE(Set("p", 1, 'p').ok());
  const auto first = Batch(items, true);
  ASSERT_TRUE(first.ok());
  const auto again = Batch(items, true);
  ASSERT_TRUE(again.ok());
  for (const BatchResult& result : *again) EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(std::get<NameInfo>((*again)[0].answer).replayed);
  EXPECT_EQ(std::get<NameInfo>((*again)[0].answer).revision, std::get<NameInfo>((*first)[0].answer).revision);
  EXPECT_TRUE(std::get<ForkAnswer>((*again)[1].answer).replayed);
  // An item beside it that is new is done, also all or none.
  const auto mixed = Batch({items[0], SetItemOf("new", 1, 'n')}, true);
  ASSERT_TRUE(mixed.ok());
  EXPECT_TRUE(std::get<NameInfo>((*mixed)[0].answer).replayed);
  EXPECT_EQ(*Get(Seq("new")), 'n');
  const auto other = Batch({SetItemOf("a", 1, 'z', {}, {}, {"ra", 1}), SetItemOf("late", 1, 'n')}, true);
  ASSERT_TRUE(other.ok());
  EXPECT_REASON((*other)[0].status, "REQUEST_ID_REUSED");
  EXPECT_FALSE(Exists("late"));
}

TEST_F(StoreBatchTest, AnExpiredDeadlineOrAFullDiskLeavesNothingOfABatch) {
  ASSERT_TRUE(Set("old", 1, 'o', With(kSync)).ok());
  op_.deadline = clock_.Now() - 1;
  EXPECT_REASON(Batch({SetItemOf("a", 1, 'a'), SetItemOf("b", 1, 'b')}), "DEADLINE");
  op_.deadline = kNever;
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(Batch({SetItemOf("a", 1, 'a'), SetItemOf("b", 1, 'b', With(kSync))}), "COLD_FULL");
  EXPECT_REASON(Batch({SetItemOf("a", 1, 'a'), DeleteItem("old")}), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(Batch({SetItemOf("a", 1, 'a'), SetItemOf("b", 1, 'b', With(kSync))}), "COLD_FULL");
  EXPECT_FALSE(Exists("a") || Exists("b"));
  EXPECT_TRUE(Exists("old"));
  EXPECT_EQ(LiveImages(), 1);
}

// ---- what is on disk of it

TEST_F(StoreBatchTest, OneSyncItemMakesTheWholeBatchDurableInOneCommit) {
  ASSERT_TRUE(Set("old", 1, 'o', With(kSync)).ok());
  const int commits = log_->commits;
  ASSERT_TRUE(Batch({SetItemOf("behind", 1, 'b'), SetItemOf("sync", 1, 's', With(kSync)),
                     SetItemOf("volatile", 1, 'v', With(kVolatile)), DeleteItem("old")})
                  .ok());
  EXPECT_EQ(log_->commits, commits + 1);
  EXPECT_EQ(store_->stats().dirty_names, 0u);
  LosePower();
  EXPECT_EQ(*Get(Seq("behind")), 'b');
  EXPECT_EQ(*Get(Seq("sync")), 's');
  EXPECT_FALSE(Exists("volatile") || Exists("old"));
}

TEST_F(StoreBatchTest, AWriteBehindBatchIsRecordedInOneCommitAlsoWhenItsNamesWereDirtyBefore) {
  options_.flush_batch_bytes = 1;
  Stop();
  for (const char* name : {"a", "b", "c", "d"}) ASSERT_TRUE(Set(name, 1, '1').ok());
  ASSERT_TRUE(Fork(Seq("a"), {"f1", "f2"}).ok());
  ASSERT_TRUE(Batch({SetItemOf("f1", 2, '2'), SetItemOf("c", 2, '2')}).ok());
  ASSERT_TRUE(Batch({SetItemOf("c", 3, '3'), SetItemOf("new", 3, '3')}).ok());
  const int commits = log_->commits;
  Due();
  EXPECT_EQ(log_->commits, commits + 4);  // a, b, d, and all else together
  EXPECT_EQ(store_->stats().dirty_names, 0u);
}

TEST_F(StoreBatchTest, FlushingOneNameRecordsAllThatWasWrittenWithIt) {
  ASSERT_TRUE(Batch({SetItemOf("a", 1, 'a'), SetItemOf("b", 1, 'b')}).ok());
  ASSERT_TRUE(Batch({SetItemOf("b", 2, 'B'), SetItemOf("c", 2, 'C')}).ok());
  const NameKey a = Seq("a");
  ASSERT_TRUE(store_->Flush(op_, {&a, 1}).ok());
  LosePower();
  EXPECT_EQ(*Get(Seq("a")), 'a');
  EXPECT_EQ(*Get(Seq("b")), 'B');
  EXPECT_EQ(*Get(Seq("c")), 'C');
}

TEST_F(StoreBatchTest, ASyncWriteOfOneNameRecordsTheBatchItWasIn) {
  ASSERT_TRUE(Batch({SetItemOf("a", 1, 'a'), SetItemOf("b", 1, 'b')}).ok());
  ASSERT_TRUE(Set("a", 2, 'A', With(kSync)).ok());
  LosePower();
  EXPECT_EQ(*Get(Seq("a")), 'A');
  EXPECT_EQ(*Get(Seq("b")), 'b');
}

TEST_F(StoreBatchTest, DeletingARecordedNameRecordsTheBatchItWasIn) {
  ASSERT_TRUE(Set("a", 1, '1', With(kSync)).ok());
  ASSERT_TRUE(Batch({SetItemOf("a", 2, 'a', With(Durability::kWriteBehind)), SetItemOf("b", 2, 'b')}).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  LosePower();
  EXPECT_FALSE(Exists("a"));
  EXPECT_EQ(*Get(Seq("b")), 'b');
}

TEST_F(StoreBatchTest, ABatchThatJoinsNamesOfAQueueBeingRecordedIsNotTorn) {
  options_.flush_batch_bytes = 1;  // one group at a time
  Stop();
  ASSERT_TRUE(Set("first", 1, '1').ok());
  ASSERT_TRUE(Set("a", 1, '1').ok());
  log_->before_commit = [this](absl::Span<const NameChange> changes) {
    if (changes[0].key != Seq("first")) return;
    ASSERT_TRUE(store_->Batch(op_, {{SetItemOf("a", 2, '2'), SetItemOf("b", 2, '2')}}, false).ok());
  };
  Due();
  log_->before_commit = nullptr;
  LosePower();
  const auto a = store_->Describe(op_, Seq("a"));
  EXPECT_EQ(a.ok() && a->version.position == 2, Exists("b"));
}

TEST_F(StoreBatchTest, ABatchOfWhichOneStateDoesNotFitOnDiskIsNotTorn) {
  ASSERT_TRUE(Set("full", 1, 'f').ok());
  ASSERT_TRUE(Batch({SetItemOf("full", 2, 'F'), SetItemOf("b", 2, 'b')}).ok());
  ASSERT_TRUE(Set("alone", 1, 'x').ok());
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  images_->persist_fails_for = images_->first_written + 1;  // full's second
  Due();
  {
    MutexLock lock(&disk_.mu);
    EXPECT_FALSE(disk_.synced.names.contains(Seq("full")));
    EXPECT_FALSE(disk_.synced.names.contains(Seq("b")));
    EXPECT_TRUE(disk_.synced.names.contains(Seq("alone")));
  }
  EXPECT_EQ(ReasonOf(store_->stats().flush_status), "COLD_FULL");
  EXPECT_EQ(store_->stats().dirty_names, 2u);
  images_->persist_error = absl::OkStatus();
  Due();
  LosePower();
  EXPECT_EQ(*Get(Seq("full")), 'F');
  EXPECT_EQ(*Get(Seq("b")), 'b');
}

TEST_F(StoreBatchTest, ABatchThatJoinsAGroupWhichCouldNotBeRecordedIsNotTorn) {
  options_.flush_batch_bytes = 1;
  Stop();
  ASSERT_TRUE(Set("full", 1, 'f').ok());
  ASSERT_TRUE(Set("next", 1, 'n').ok());
  images_->persist_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  images_->persist_fails_for = images_->first_written;
  log_->before_commit = [this](absl::Span<const NameChange> changes) {
    if (changes[0].key != Seq("next")) return;
    ASSERT_TRUE(
        store_->Batch(op_, {{SnapshotRequest{{Seq("full"), {}, ""}, "s", {}, {}}, SetItemOf("b", 2, '2')}}, false)
            .ok());
    ASSERT_TRUE(store_->Batch(op_, {{SetItemOf("full", 2, 'F'), SetItemOf("b", 3, '3')}}, false).ok());
  };
  Due();
  log_->before_commit = nullptr;
  MutexLock lock(&disk_.mu);
  EXPECT_TRUE(disk_.synced.names.contains(Seq("next")));
  EXPECT_EQ(disk_.synced.names.contains(Seq("b")), disk_.synced.names.contains(Seq("full")));
  EXPECT_EQ(disk_.synced.names.contains(Seq("b")), disk_.synced.names.contains(Snap("s")));
}

TEST_F(StoreBatchTest, ANameThatIsJustBeingRecordedIsDeletedAfterwards) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  log_->before_commit = [this](absl::Span<const NameChange>) {
    clock_.SetTick(absl::Milliseconds(1));
    Op op;
    op.deadline = clock_.Now() + absl::ToInt64Nanoseconds(absl::Milliseconds(5));
    EXPECT_REASON(store_->Delete(op, {Seq("a"), {}, false}), "DEADLINE");  // it waits for the record
    clock_.SetTick(absl::ZeroDuration());
  };
  Due();
  log_->before_commit = nullptr;
  EXPECT_EQ(*Get(Seq("a")), 'a');
  EXPECT_TRUE(*Delete(Seq("a")));
  LosePower();
  EXPECT_FALSE(Exists("a"));
}

// ---- random batches, with a look at the disk after every commit

class BatchCrashTest : public StoreBatchTest, public ::testing::WithParamInterface<unsigned> {
 protected:
  static constexpr int kNames = 7;

  // What happened to one name, in order. Revision 0: it was deleted.
  struct Event {
    Revision revision;
    int batch;      // names with the same number were written together
    bool recorded;  // false: VOLATILE, so nothing of it ever comes to disk
  };
  using Disk = std::map<std::string, Revision>;

  std::string RandomName() { return "n" + std::to_string(random_() % kNames); }
  NameOptions RandomOptions() {
    NameOptions options;
    switch (random_() % 8) {
      case 0: options.durability = kSync; break;
      case 1: options.durability = kVolatile; break;
      default: options.durability = Durability::kWriteBehind;
    }
    options.max_history = 1 + random_() % 3;
    return options;
  }

  void Note(const std::string& name, int batch) {
    const auto info = store_->Describe(op_, Seq(name));
    if (info.ok()) {
      histories_[name].push_back({info->revision, batch, info->durability != kVolatile});
    } else {
      histories_[name].push_back({0, batch, true});
    }
  }

  bool IsAsNoted(const std::string& name) {
    const auto info = store_->Describe(op_, Seq(name));
    const Revision revision = info.ok() ? info->revision : 0;
    return revision == (histories_[name].empty() ? 0 : histories_[name].back().revision);
  }

  void RandomBatch(const std::set<std::string>& busy) {
    std::vector<BatchItem> items;
    std::vector<std::vector<std::string>> written;
    std::set<std::string> used = busy;
    const size_t size = 1 + random_() % 4;
    for (size_t i = 0; i < size; ++i) {
      const std::string name = RandomName();
      if (!used.insert(name).second) continue;
      written.push_back({name});
      const TokenRange range(static_cast<int64_t>(random_() % 3), random_() % 2 == 0 ? -1 : 2);
      switch (random_() % 8) {
        case 0: items.push_back(DeleteItem(name, random_() % 2 == 0)); break;
        case 3: items.push_back(RemoveRangeRequest{name, range, {}, {}, random_() % 2 == 0}); break;
        case 4: items.push_back(RenumberRequest{name, range, {.add = 1}, {}, {}}); break;
        case 1: items.push_back(RollbackRequest{name, static_cast<int64_t>(random_() % 3), {}, {}}); break;
        case 2: {
          const std::string second = RandomName();
          if (used.insert(second).second) written.back().push_back(second);
          items.push_back(ForkItem(RandomName(), written.back(), RandomOptions()));
          break;
        }
        default:
          items.push_back(SetItemOf(name, random_() % 3, static_cast<char>('a' + random_() % 26), RandomOptions()));
      }
    }
    if (items.empty()) return;
    const bool all_or_none = random_() % 2 == 0;
    const auto results = store_->Batch(op_, items, all_or_none);
    if (!results.ok()) {
      EXPECT_REASON(results, "COLD_FULL");
      return;
    }
    const int batch = ++batches_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (!(*results)[i].status.ok()) continue;
      // A Delete that found nothing is none, nor is what leaves a name as it is.
      if (const bool* deleted = std::get_if<bool>(&(*results)[i].answer); deleted != nullptr && !*deleted) continue;
      const bool may_leave =
          std::holds_alternative<RemoveRangeRequest>(items[i]) || std::holds_alternative<RenumberRequest>(items[i]);
      if (may_leave && IsAsNoted(written[i].front())) continue;
      for (const std::string& name : written[i]) Note(name, batch);
    }
    ++done_;
  }

  void Step() {
    switch (random_() % 12) {
      case 0: {
        const std::string name = RandomName();
        if (Set(name, random_() % 3, 'x', RandomOptions()).ok()) Note(name, ++batches_);
        break;
      }
      case 1: {
        const std::string name = RandomName();
        if (Delete(Seq(name)).ok()) Note(name, ++batches_);
        break;
      }
      case 2: {
        const NameKey key = Seq(RandomName());
        recording_ = true;
        (void)store_->Flush(op_, {&key, 1});
        recording_ = false;
        break;
      }
      case 3: (void)store_->SetTtl(op_, {Seq(RandomName()), Ttl(absl::Hours(1)), {}}); break;
      case 4:
      case 5: clock_.Advance(options_.write_behind.flush_interval); [[fallthrough]];
      case 6:
        recording_ = true;
        store_->FlushDue();
        recording_ = false;
        break;
      default: RandomBatch({});
    }
    store_->CheckInvariants();
  }

  Disk Names(const FakeDisk::Content& content) {
    Disk names;
    for (const auto& [key, record] : content.names) names[key.name] = record->revision;
    return names;
  }
  void TakeSnapshots() {
    MutexLock lock(&disk_.mu);
    snapshots_.push_back(Names(disk_.synced));
    snapshots_.push_back(Names(disk_.written));
  }

  // How far in its history a name may be on this disk: [first, last], as numbers of events.
  std::pair<size_t, size_t> Range(const std::vector<Event>& history, Revision revision) {
    std::pair<size_t, size_t> range{history.size() + 1, 0};
    const auto add = [&](size_t n) { range = {std::min(range.first, n), std::max(range.second, n)}; };
    if (revision == 0 && (history.empty() || history[0].batch > first_batch_)) add(0);
    for (size_t i = 0; i < history.size(); ++i) {
      if (history[i].revision == revision) add(i + 1);
    }
    EXPECT_LE(range.first, range.second) << "a revision that was never issued";
    return range;
  }

  void Check(const Disk& disk) {
    struct Seen {
      bool with = false, without = false;
    };
    std::map<int, Seen> batches;
    std::string story;
    for (const auto& [name, history] : histories_) {
      const auto found = disk.find(name);
      const auto [first, last] = Range(history, found == disk.end() ? 0 : found->second);
      absl::StrAppend(&story, name, ": ", first, "..", last, " of");
      for (size_t i = 0; i < history.size(); ++i)
        absl::StrAppend(&story, " ", history[i].batch, history[i].recorded ? "" : "v");
      absl::StrAppend(&story, "\n");
      for (size_t i = 0; i < history.size(); ++i) {
        // A name that was VOLATILE since tells nothing: its record stayed behind for good.
        if (std::any_of(history.begin() + static_cast<ptrdiff_t>(i), history.end(),
                        [](const Event& e) { return !e.recorded; }))
          continue;
        // Nor does one that was deleted since and made anew.
        const bool anew = first > i + 1 && std::any_of(history.begin() + static_cast<ptrdiff_t>(i),
                                                       history.begin() + static_cast<ptrdiff_t>(first) - 1,
                                                       [](const Event& e) { return e.revision == 0; });
        if (first > i && !anew) batches[history[i].batch].with = true;
        if (last <= i) batches[history[i].batch].without = true;
      }
    }
    for (const auto& [batch, seen] : batches) {
      ASSERT_FALSE(seen.with && seen.without) << "batch " << batch << " is torn on disk:\n" << story;
      whole_ += seen.with;
    }
  }

  // A new life of the store: what was on disk is where all histories begin.
  void Forget() {
    histories_.clear();
    for (int i = 0; i < kNames; ++i) {
      const std::string name = "n" + std::to_string(i);
      if (!Exists(name)) continue;
      EXPECT_TRUE(Get(Seq(name)).ok());
      Note(name, ++batches_);
    }
    first_batch_ = batches_;
  }

  std::mt19937 random_{GetParam()};
  std::map<std::string, std::vector<Event>> histories_;
  std::vector<Disk> snapshots_;
  int first_batch_ = 0;     // of this life: what histories begin with up to here was on disk
  bool recording_ = false;  // write-behind or a Flush is under way
  int batches_ = 0, done_ = 0, whole_ = 0;
};

TEST_P(BatchCrashTest, WhateverHappensBetweenACrashLeavesAllOfABatchOrNone) {
  SCOPED_TRACE(testing::Message() << "seed " << GetParam());
  options_.flush_batch_bytes = GetParam() % 2 == 0 ? 1 : 4096;
  options_.max_children = GetParam() % 3 == 0 ? 8 : 10'000;  // groups soon are too large to wait
  for (int life = 0; life < 12; ++life) {
    if (life > 0) random_() % 2 == 0 ? LosePower() : Crash();
    if (life == 0) Stop();
    bool in_hook = false;
    log_->before_commit = [&](absl::Span<const NameChange> changes) {
      if (in_hook || random_() % 3 != 0) return;
      in_hook = true;
      // While these go to disk others are written: no batch may wait here for them.
      std::set<std::string> busy;
      for (const NameChange& change : changes) busy.insert(change.key.name);
      if (busy.size() < kNames && recording_ && images_->persist_error.ok()) {
        RandomBatch(busy);
      }
      in_hook = false;
    };
    log_->after_commit = [this] { TakeSnapshots(); };
    Forget();
    for (int i = 0; i < 60 && !HasFatalFailure(); ++i) {
      if (random_() % 10 == 0) {
        images_->persist_error = random_() % 2 == 0
                                     ? absl::OkStatus()
                                     : absl::Status(Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", ""));
        images_->persist_fails_for = images_->first_written + random_() % 40;
      }
      snapshots_.clear();
      Step();
      TakeSnapshots();
      for (const Disk& disk : snapshots_) {
        Check(disk);
        if (HasFatalFailure()) return;
      }
    }
  }
  log_->before_commit = nullptr;
  log_->after_commit = nullptr;
  EXPECT_GT(done_, 40);
  EXPECT_GT(whole_, 40);
}

INSTANTIATE_TEST_SUITE_P(Seeds, BatchCrashTest, ::testing::Range(1u, 41u));

// ---- threads

TEST_F(StoreBatchTest, BatchesOfOverlappingNamesFromManyThreadsAllEnd) {
  constexpr int kThreads = 6, kRounds = 150, kNames = 4;
  constexpr unsigned kSeed = 3;
  SCOPED_TRACE(kSeed);
  std::atomic<bool> stop{false};
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(kSeed * 100 + static_cast<unsigned>(t));
      const std::string bytes(layout_->state_bytes(), static_cast<char>('a' + t));
      const absl::string_view piece(bytes);
      for (int round = 0; round < kRounds; ++round) {
        // All of the names in an order of its own: the position tells which batch it was.
        std::vector<int> order(kNames);
        for (int i = 0; i < kNames; ++i) order[static_cast<size_t>(i)] = i;
        std::shuffle(order.begin(), order.end(), random);
        std::vector<BatchItem> items;
        for (int i : order) {
          StateBytes state;
          state.pieces = {&piece, 1};
          const auto durability = static_cast<Durability>(random() % 8 == 0 ? 3 : 2);
          items.push_back(SetItem{
              {"n" + std::to_string(i), "m", t * kRounds + round, Exactness::kExact, {}, With(durability), {}}, state});
        }
        const auto results = store_->Batch(Op(), items, random() % 2 == 0);
        ASSERT_TRUE(results.ok()) << results.status();
        for (const BatchResult& result : *results) ASSERT_TRUE(result.status.ok()) << result.status;
        ++done;
      }
    });
  }
  std::thread housekeeping([&] {
    while (!stop) {
      clock_.Advance(options_.write_behind.flush_interval);
      store_->FlushDue();
      store_->CheckInvariants();
    }
  });
  std::thread reader([&] {
    std::vector<Source> sources;
    for (int i = 0; i < kNames; ++i) sources.push_back({Seq("n" + std::to_string(i)), {}, ""});
    while (!stop) {
      const auto read =
          store_->GetMany(Op(), sources, [](absl::Span<absl::StatusOr<GetAnswer>>) { return absl::OkStatus(); });
      ASSERT_TRUE(read.ok());
      const auto& answers = *read;
      if (!answers[0].ok()) continue;
      for (const auto& answer : answers) {
        ASSERT_TRUE(answer.ok());
        ASSERT_EQ(answer->info.version.position, answers[0]->info.version.position);  // of one moment
      }
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  housekeeping.join();
  reader.join();
  EXPECT_EQ(done, kThreads * kRounds);
  LosePower();
  const auto first = store_->Describe(op_, Seq("n0"));
  for (int i = 1; i < kNames; ++i) {
    const auto other = store_->Describe(op_, Seq("n" + std::to_string(i)));
    EXPECT_EQ(other.ok(), first.ok());
    if (!first.ok() || !other.ok()) continue;
    EXPECT_EQ(other->version.position, first->version.position);
  }
}

}  // namespace
}  // namespace statepool
