// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Folding: packing and unpacking every field, what a store says and does of folded names, and a random history with
// everything folded that may be after each step, against a store that never folds.
#include "server/core/folded_name.h"

#include <gtest/gtest.h>

#include <random>

#include "core/store_fixture.h"

namespace statepool {
namespace {

// ---- packing

RestingName Resting() {
  RestingName name;
  name.key = {kDefaultTenant, NameKind::kSequence, "chat/42"};
  name.state.layout = *Layout::Create({"m", {{"s", TensorKind::kRecurrent, {0}, DType::kFloat32, {{"n", 8}}, {}, {}}}});
  name.state.revision = (uint64_t{3} << kCounterBits) + 1000;
  name.state.created = name.state.revision;
  name.state.create_time = absl::FromUnixNanos(1'700'000'000'123'456'789);
  name.state.durability = Durability::kWriteBehind;
  name.state.max_history = 8;
  RecordedVersion head;
  head.id = name.state.revision - 1;
  head.position = 4711;
  head.image = (uint64_t{3} << kCounterBits) + 7;
  head.checksum = 0x8123456789abcdef;
  head.attachment_checksum = ChecksumOf("");
  name.versions = {head};
  name.recorded = 1;
  name.last_used = 12'345'678'901;
  return name;
}

void ExpectSame(const RestingName& a, const RestingName& b) {
  EXPECT_EQ(a.key, b.key);
  EXPECT_EQ(a.state.layout, b.state.layout);
  EXPECT_EQ(a.state.revision, b.state.revision);
  EXPECT_EQ(a.state.created, b.state.created);
  EXPECT_EQ(a.state.create_time, b.state.create_time);
  EXPECT_EQ(a.state.ttl, b.state.ttl);
  EXPECT_EQ(a.state.expire_time, b.state.expire_time);
  EXPECT_EQ(a.state.expire_at, b.state.expire_at);
  EXPECT_EQ(a.state.durability, b.state.durability);
  EXPECT_EQ(a.state.max_history, b.state.max_history);
  EXPECT_EQ(a.recorded, b.recorded);
  EXPECT_EQ(a.last_used, b.last_used);
  EXPECT_EQ(a.forks, b.forks);
  ASSERT_EQ(a.versions.size(), b.versions.size());
  for (size_t i = 0; i < a.versions.size(); ++i) {
    const RecordedVersion &x = a.versions[i], &y = b.versions[i];
    EXPECT_EQ(std::tie(x.id, x.parent, x.position, x.exactness, x.image, x.checksum, x.attachment_checksum,
                       x.attachment_bytes),
              std::tie(y.id, y.parent, y.position, y.exactness, y.image, y.checksum, y.attachment_checksum,
                       y.attachment_bytes));
  }
  ASSERT_EQ(a.state.requests.size(), b.state.requests.size());
  for (size_t i = 0; i < a.state.requests.size(); ++i) {
    const AnsweredRequest &x = a.state.requests[i], &y = b.state.requests[i];
    EXPECT_EQ(std::tie(x.id, x.body_hash, x.revision, x.version, x.position, x.checksum),
              std::tie(y.id, y.body_hash, y.revision, y.version, y.position, y.checksum));
  }
  ASSERT_EQ(a.state.prefix == nullptr, b.state.prefix == nullptr);
  if (a.state.prefix == nullptr) return;
  EXPECT_EQ(a.state.prefix->key, b.state.prefix->key);
  EXPECT_EQ(a.state.prefix->length, b.state.prefix->length);
  const PrefixLocator &x = a.state.prefix->locator, &y = b.state.prefix->locator;
  EXPECT_EQ(std::tie(x.stem_high, x.stem_low, x.check), std::tie(y.stem_high, y.stem_low, y.check));
}

void ExpectRoundTrip(const RestingName& name) {
  const FoldedPtr folded = FoldedName::Pack(name);
  EXPECT_EQ(folded->view().tenant, name.key.tenant);
  EXPECT_EQ(folded->view().kind, name.key.kind);
  EXPECT_EQ(folded->view().name, name.key.name);
  EXPECT_EQ(folded->durability(), name.state.durability);
  EXPECT_EQ(folded->layout(), name.state.layout);
  ExpectSame(folded->Unpack(), name);
}

TEST(FoldedNameTest, APlainNameComesBackAsItWas) { ExpectRoundTrip(Resting()); }

TEST(FoldedNameTest, EveryFieldComesBack) {
  RestingName name = Resting();
  name.key = {7, NameKind::kSnapshot, std::string(kMaxNameBytes, 'n')};
  name.state.created = 17;
  name.state.ttl = absl::Nanoseconds(1);
  name.state.expire_time = absl::FromUnixNanos(1'800'000'000'000'000'001);
  name.state.expire_at = kNever - 1;
  name.state.durability = Durability::kSync;
  name.state.max_history = UINT32_MAX;
  name.forks = UINT32_MAX;
  name.last_used = INT64_MAX - 3;
  RecordedVersion old;
  old.id = 1;
  old.parent = UINT64_MAX;  // of another epoch, before or after
  old.position = kMaxPosition;
  old.exactness = Exactness::kLossy;
  old.image = UINT64_MAX - 1;
  old.checksum = 0;
  old.attachment_checksum = 77;
  old.attachment_bytes = 1 << 20;
  name.versions.insert(name.versions.begin(), old);
  name.versions.back().parent = 1;
  name.versions.back().exactness = Exactness::kEdited;
  const RecordedVersion& head = name.versions.back();
  name.state.requests = {{"first", 1, 2, 3, 4, 5},
                         {std::string(kMaxRequestIdBytes, 'r'), UINT64_MAX, UINT64_MAX, 0, kMaxPosition, UINT64_MAX},
                         {"", 9, name.state.revision, head.id, head.position, head.checksum},
                         {"of the head, but for the checksum", 9, name.state.revision, head.id, head.position, 1}};
  ExpectRoundTrip(name);
  for (size_t recorded : {1, 2}) {
    name.recorded = recorded;
    ExpectRoundTrip(name);
  }
}

TEST(FoldedNameTest, AnAttachmentOfNoBytesKeepsWhateverChecksumItsRecordHas) {
  RestingName name = Resting();
  name.versions[0].attachment_checksum = 0;
  ExpectRoundTrip(name);
}

TEST(FoldedNameTest, APrefixKeepsItsPlaceInTheIndex) {
  RestingName name = Resting();
  PrefixIndex::Place place{{UINT64_MAX, 5}, {1, UINT64_MAX, 3}, 4711};
  name.key.kind = NameKind::kPrefix;
  name.key.name = Hash128ToHex(place.key);
  name.state.prefix = std::make_shared<const PrefixIndex::Place>(place);
  name.forks = 3;
  ExpectRoundTrip(name);
}

TEST(FoldedNameTest, RandomNumbersComeBack) {
  constexpr unsigned kSeed = 11;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  const auto any = [&random] { return random() >> random() % 64; };
  for (int i = 0; i < 2000; ++i) {
    RestingName name = Resting();
    name.key.tenant = static_cast<TenantId>(any());
    name.key.name = "n" + std::to_string(any());
    name.state.revision = any();
    name.state.created = any();
    name.state.create_time = absl::FromUnixNanos(static_cast<int64_t>(any() / 2));
    if (any() % 2) name.state.ttl = absl::Nanoseconds(static_cast<int64_t>(any() / 4));
    if (any() % 2) name.state.expire_time = absl::FromUnixNanos(static_cast<int64_t>(any() / 4));
    if (any() % 2) name.state.expire_at = static_cast<MonoTime>(any() / 2);
    name.last_used = static_cast<MonoTime>(any() / 2);
    name.forks = static_cast<uint32_t>(any());
    name.versions.clear();
    for (uint64_t n = 1 + random() % 4; n > 0; --n) {
      name.versions.push_back({any(), any(), static_cast<int64_t>(any() / 2), static_cast<Exactness>(1 + random() % 3),
                               any(), any(), any(), static_cast<uint32_t>(any())});
    }
    name.recorded = 1 + random() % name.versions.size();
    for (uint64_t n = random() % 4; n > 0; --n) {
      name.state.requests.push_back(
          {std::string(random() % 65, 'q'), any(), any(), any(), static_cast<int64_t>(any() / 2), any()});
    }
    ExpectRoundTrip(name);
  }
}

// ---- in the store

class FoldingTest : public StoreTest {
 protected:
  FoldingTest() { images_->cold_at_once = true; }

  void Restart() {
    Stop();
    images_->cold_at_once = true;
  }
  // Records and folds everything that may be.
  void Fold() {
    ASSERT_TRUE(store_->Flush(op_, {}).ok());
    store_->FoldIdle();
    store_->FoldIdle();  // the first may have skipped one where it gave others the lock
    store_->CheckInvariants();
  }
  size_t OnDisk() {
    MutexLock lock(&disk_.mu);
    return disk_.written.images.size();
  }
};

TEST_F(FoldingTest, AFoldedNameCostsNoObjectOfAnImageAndSaysWhatItSaidBefore) {
  NameOptions options = Ttl(absl::Hours(3));
  options.max_history = 3;
  ASSERT_TRUE(Set("a", 1, 'x', options).ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  ASSERT_TRUE(Set("a", 2, 'y', options, {}, {"r", 5}).ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  const auto before = store_->Describe(op_, Seq("a"));
  EXPECT_EQ(LiveImages(), 2);
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 2u);
  const auto after = store_->Describe(op_, Seq("a"));
  const auto listed = store_->List(op_, {NameKind::kSequence, "", 10, ""});
  EXPECT_EQ(LiveImages(), 0) << "looking at it has unfolded it";
  for (const NameInfo& info : {*after, listed->names.at(0)}) {
    EXPECT_EQ(info.key, before->key);
    EXPECT_EQ(info.layout, before->layout);
    EXPECT_EQ(info.revision, before->revision);
    EXPECT_EQ(info.durable_revision, before->durable_revision);
    EXPECT_EQ(info.durability, before->durability);
    EXPECT_EQ(info.max_history, before->max_history);
    EXPECT_EQ(info.ttl, before->ttl);
    EXPECT_EQ(info.expire_time, before->expire_time);
    EXPECT_EQ(info.create_time, before->create_time);
    EXPECT_EQ(info.version.id, before->version.id);
    EXPECT_EQ(info.version.parent, before->version.parent);
    EXPECT_EQ(info.version.position, 2);
    EXPECT_EQ(info.version.checksum, before->version.checksum);
    EXPECT_EQ(info.version.tier, Tier::kCold);
  }
  ASSERT_EQ(after->history.size(), 2u);
  EXPECT_EQ(after->history[1].id, before->history[1].id);
  EXPECT_EQ(after->history[1].position, 1);
  EXPECT_EQ(*Get(Seq("a"), 1), 'x');
  EXPECT_EQ(*Get(Seq("a")), 'y');
  EXPECT_TRUE(Set("a", 2, 'y', options, {}, {"r", 5})->replayed);
  EXPECT_REASON(Set("a", 2, 'z', options, {}, {"r", 6}), "REQUEST_ID_REUSED");
}

TEST_F(FoldingTest, OnlyWhatIsRecordedColdAndUnsharedIsFolded) {
  images_->cold_at_once = false;
  ASSERT_TRUE(Set("hot", 1, 'h').ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  images_->cold_at_once = true;
  ASSERT_TRUE(Set("shared", 1, 's').ok());
  ASSERT_TRUE(Fork(Seq("shared"), {"child"}).ok());
  ASSERT_TRUE(Set("pinned", 1, 'p').ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  auto pin = store_->Get(op_, {Seq("pinned"), {}, ""});
  ASSERT_TRUE(Set("volatile", 1, 'v', With(Durability::kVolatile)).ok());
  Fold();
  ASSERT_TRUE(Set("dirty", 1, 'd').ok());
  store_->FoldIdle();
  store_->CheckInvariants();
  EXPECT_EQ(LiveImages(), 5);
  pin = absl::UnknownError("let go");
  ASSERT_TRUE(Delete(Seq("child")).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 2) << "hot, volatile";
}

TEST_F(FoldingTest, AVersionThatWasNeverRecordedIsKeptWhileFoldedAndGoesWithItsName) {
  NameOptions options;
  options.max_history = 4;
  ASSERT_TRUE(Set("a", 1, 'x', options).ok());
  const auto other = Fork(Seq("a"), {"b"});  // has it recorded, so that it is cold
  ASSERT_TRUE(Set("a", 2, 'y', options).ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  ASSERT_TRUE(Delete(Seq("b")).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(*Get(Seq("a"), 1), 'x');
  Fold();
  ASSERT_TRUE(Delete(Seq("a")).ok());
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 0u);
}

TEST_F(FoldingTest, DeletedExpiredAndReplacedNamesTakeTheirBytesAlong) {
  ASSERT_TRUE(Set("deleted", 1, 'd').ok());
  ASSERT_TRUE(Set("idle", 1, 'i', Ttl(absl::Seconds(10))).ok());
  ASSERT_TRUE(Set("seen", 1, 's', Ttl(absl::Seconds(10))).ok());
  NameOptions one;
  one.max_history = 1;
  ASSERT_TRUE(Set("replaced", 1, 'r', one).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 4u);
  EXPECT_TRUE(*Delete(Seq("deleted")));
  EXPECT_REASON(store_->Describe(op_, Seq("deleted")), "DELETED");
  EXPECT_EQ(OnDisk(), 3u);
  clock_.Advance(absl::Seconds(9));
  ASSERT_EQ(*Get(Seq("seen")), 's');  // a use
  Fold();
  clock_.Advance(absl::Seconds(2));
  Reap();
  FlushDue();  // buries it
  EXPECT_EQ(OnDisk(), 2u);
  EXPECT_REASON(store_->Describe(op_, Seq("idle")), "EXPIRED");
  EXPECT_EQ(*Get(Seq("seen")), 's');
  Fold();
  clock_.Advance(absl::Seconds(11));
  EXPECT_REASON(store_->Describe(op_, Seq("seen")), "EXPIRED");  // at a look, before it is reaped
  store_->CheckInvariants();
  ASSERT_TRUE(Set("replaced", 2, 'R').ok());
  Fold();
  FlushDue();
  EXPECT_EQ(OnDisk(), 1u);
  EXPECT_EQ(*Get(Seq("replaced")), 'R');
  EXPECT_EQ(store_->stats().evictions.at("expired"), 2u);
}

TEST_F(FoldingTest, ForksSnapshotsRollbacksAndRestoresOfAFoldedNameWork) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  ASSERT_TRUE(Set("a", 2, 'y').ok());
  Fold();
  ASSERT_TRUE(Fork(Seq("a"), {"b", "c"}).ok());
  Fold();
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("b"), 1, ""}, "s", {}, {}}).ok());
  ASSERT_TRUE(store_->Rollback(op_, {"c", 1, {}, {}}).ok());
  Fold();
  EXPECT_EQ(*Get(Seq("c")), 'x');
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(Delete(Seq(name)).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 1u);
  ASSERT_TRUE(store_->Restore(op_, {"s", "d", {}, {}, {}}).ok());
  store_->CheckInvariants();
  EXPECT_EQ(*Get(Seq("d")), 'x');
  EXPECT_EQ(*Get(Snap("s")), 'x');
}

TEST_F(FoldingTest, PrefixesAreFoundWhileFoldedAndLeaveByValue) {
  ASSERT_TRUE(Set("a", 3, 'x').ok());
  ASSERT_TRUE(Publish("a", {1, 2, 3}).ok());
  ASSERT_TRUE(Delete(Seq("a")).ok());
  ASSERT_TRUE(Set("b", 2, 'y').ok());
  ASSERT_TRUE(Publish("b", {7, 8}).ok());
  ASSERT_TRUE(Delete(Seq("b")).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(Match({1, 2, 3, 4})->matches.at(0).version.position, 3);
  Fold();
  EXPECT_TRUE(store_->EvictPrefix());  // the shorter one
  store_->CheckInvariants();
  EXPECT_EQ(Match({7, 8, 9})->miss_reason, "EVICTED");
  EXPECT_EQ(Match({1, 2, 3, 4})->matches.size(), 1u);
  EXPECT_EQ(OnDisk(), 1u);
  Restart();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(Match({7, 8, 9})->miss_reason, "EVICTED");
  EXPECT_EQ(Match({1, 2, 3, 4})->matches.size(), 1u);
}

TEST_F(FoldingTest, AfterARestartOnlyNamesThatShareAStateAreUnfolded) {
  ASSERT_TRUE(Set("alone", 1, 'a', Ttl(absl::Hours(1))).ok());
  ASSERT_TRUE(Set("root", 1, 'r').ok());
  ASSERT_TRUE(Fork(Seq("root"), {"child"}).ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("child"), {}, ""}, "snap", {}, {}}).ok());
  ASSERT_TRUE(store_->Create(op_, {"initial", "m", {}, {}}).ok());
  Restart();
  store_->CheckInvariants();
  EXPECT_EQ(LiveImages(), 1) << "one image for root, child and snap";
  EXPECT_EQ(OnDisk(), 3u);
  EXPECT_EQ(*Get(Seq("alone")), 'a');
  for (const NameKey& key : {Seq("root"), Seq("child"), Snap("snap")}) EXPECT_EQ(*Get(key), 'r');
  ASSERT_TRUE(Delete(Seq("root")).ok());
  ASSERT_TRUE(Delete(Snap("snap")).ok());
  Fold();
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 3u);
  EXPECT_EQ(*Get(Seq("child")), 'r');
  clock_.Advance(absl::Hours(2));
  Reap();
  FlushDue();
  EXPECT_EQ(OnDisk(), 2u);
}

TEST_F(FoldingTest, FlushCountsFoldedNames) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  ASSERT_TRUE(Set("b", 1, 'b').ok());
  Fold();
  ASSERT_TRUE(Set("c", 1, 'c').ok());
  const auto flushed = store_->Flush(op_, {});
  EXPECT_EQ(flushed->names, 3u);
  EXPECT_EQ(flushed->written, 1u);
  const std::vector<NameKey> folded = {Seq("a")};
  EXPECT_EQ(store_->Flush(op_, folded)->names, 1u);
}

// ---- random histories: what a store that folds answers is what one says that never does

class FoldingModelTest : public FoldingTest, public testing::WithParamInterface<unsigned> {
 protected:
  using Versions = std::vector<std::pair<int64_t, char>>;  // a ring: position, fill
  std::string Name() { return "n" + std::to_string(random_() % 6); }
  NameKey Key() { return random_() % 4 == 0 ? Snap(Name()) : Seq(Name()); }

  void Check() {
    store_->CheckInvariants();
    for (const auto& [key, ring] : model_) {
      const auto info = store_->Describe(op_, key);
      ASSERT_TRUE(info.ok()) << key.name << ": " << info.status();
      ASSERT_EQ(info->version.position, ring.back().first);
      ASSERT_EQ(info->history.size(), ring.size());
      ASSERT_EQ(info->version.checksum, ChecksumOf(std::string(layout_->state_bytes(), ring.back().second)));
    }
    const StoreStats stats = store_->stats();
    ASSERT_EQ(stats.sequences + stats.snapshots, model_.size());
  }

  std::mt19937 random_{GetParam()};
  std::map<NameKey, Versions> model_;
  int64_t position_ = 0;
};

TEST_P(FoldingModelTest, AStoreWhereEverythingIsFoldedAfterEachStepAnswersAsIfNothingWere) {
  SCOPED_TRACE(GetParam());
  for (int step = 0; step < 400; ++step) {
    const std::string name = Name(), other = Name();
    NameOptions options;
    options.max_history = 3;
    if (random_() % 3 == 0) options.durability = Durability::kSync;
    switch (random_() % 9) {
      case 0:
      case 1:
      case 2: {
        const auto fill = static_cast<char>('a' + random_() % 26);
        ASSERT_TRUE(Set(name, ++position_, fill, options, {}, {"r" + std::to_string(step), 1}).ok());
        Versions& ring = model_[Seq(name)];
        ring.emplace_back(position_, fill);
        if (ring.size() > 3) ring.erase(ring.begin());
        break;
      }
      case 3: {
        const auto fork = Fork(Seq(name), {other}, options);
        ASSERT_EQ(fork.ok(), model_.contains(Seq(name)) && !model_.contains(Seq(other)));
        if (fork.ok()) model_[Seq(other)] = model_.at(Seq(name));
        break;
      }
      case 4: {
        const bool ok = store_->Snapshot(op_, {{Seq(name), {}, ""}, other, options, {}}).ok();
        ASSERT_EQ(ok, model_.contains(Seq(name)) && !model_.contains(Snap(other)));
        if (ok) model_[Snap(other)] = {model_.at(Seq(name)).back()};
        break;
      }
      case 5: {
        const NameKey key = Key();
        ASSERT_EQ(Delete(key).ok(), model_.erase(key) == 1);
        break;
      }
      case 6: {
        if (!model_.contains(Seq(name))) break;
        Versions& ring = model_.at(Seq(name));
        ASSERT_TRUE(store_->Rollback(op_, {name, ring.front().first, {}, {}}).ok());
        ring.resize(1);
        break;
      }
      case 7: {
        for (const auto& [key, ring] : model_) {
          for (const auto& [position, fill] : ring) ASSERT_EQ(*Get(key, position), fill);
        }
        break;
      }
      default:
        if (random_() % 4 == 0) Restart();
        // A version that was superseded before its record is not in the ring that comes back.
        for (auto& [key, ring] : model_) {
          const auto info = store_->Describe(op_, key);
          ASSERT_TRUE(info.ok());
          ring.erase(ring.begin(), ring.end() - static_cast<ptrdiff_t>(info->history.size()));
        }
    }
    if (random_() % 4 != 0) Fold();
    Check();
    if (HasFatalFailure()) return;
  }
  model_.clear();
  for (NameKind kind : {NameKind::kSequence, NameKind::kSnapshot}) {
    const auto all = store_->List(op_, {kind, "", 1000, ""});
    for (const NameInfo& info : all->names) ASSERT_TRUE(Delete(info.key).ok());
  }
  EXPECT_EQ(LiveImages(), 0);
  EXPECT_EQ(OnDisk(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, FoldingModelTest, testing::Range(1u, 9u));

}  // namespace
}  // namespace statepool
