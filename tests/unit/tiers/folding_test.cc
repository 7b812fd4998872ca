// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A store whose names are folded, over a real residency and cold store: bytes are right, none is lost, and none stays
// that nobody needs.
#include <gtest/gtest.h>

#include <random>

#include "server/core/store.h"
#include "server/memory/host_device.h"
#include "server/tiers/residency.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

constexpr uint64_t kStateBytes = 8 << 10;
constexpr uint64_t kHotStates = 8;

class FoldedNamesOnDiskTest : public RocksDbTest {
 protected:
  void SetUp() override {
    RocksDbTest::SetUp();
    if (!IsSkipped()) Start();
  }
  void TearDown() override { End(); }

  void End() {
    store_.reset();
    residency_.reset();
  }
  void Start() {
    End();
    Restart();
    device_ = *HostDevice::Create({.budget_bytes = kHotStates * kStateBytes, .chunk_bytes = kStateBytes});
    residency_ = std::make_unique<Residency>(ResidencyOptions(), ResidencyMemories{.hot = {{device_.get()}}},
                                             cold_.get(), &clock_);
    store_ = std::make_unique<Store>(StoreOptions(), residency_.get(), cold_.get(), &clock_);
    ASSERT_TRUE(store_->Recover().ok());
    ASSERT_TRUE(store_->RegisterLayout({}, layout_, "m").ok());
    Check();
  }
  void Check() {
    store_->CheckInvariants();
    residency_->CheckInvariants();
  }
  static NameKey Key(const std::string& name) { return {kDefaultTenant, NameKind::kSequence, name}; }
  void Set(const std::string& name, uint64_t seed) {
    const std::string bytes = MakeBytes(kStateBytes, seed);
    const absl::string_view piece(bytes);
    StateBytes state;
    state.pieces = {&piece, 1};
    NameOptions one;
    one.max_history = 1;
    const auto info = store_->Set({}, {name, "m", static_cast<int64_t>(seed), Exactness::kExact, {}, one, {}}, state);
    ASSERT_TRUE(info.ok()) << info.status();
  }
  void ExpectState(const std::string& name, uint64_t seed) {
    const auto answer = store_->Get({}, {Key(name), {}, ""});
    ASSERT_TRUE(answer.ok()) << name << ": " << answer.status();
    EXPECT_EQ(answer->info.version.position, static_cast<int64_t>(seed));
    EXPECT_TRUE(BytesOf(*answer->pin) == MakeBytes(kStateBytes, seed)) << name;
  }
  void Fold() {
    ASSERT_TRUE(store_->Flush({}, {}).ok());
    store_->FoldIdle();
    Check();
  }
  std::vector<ImageId> StoredOnceReclaimed() {
    store_->FlushDue();  // buries what went by itself
    EXPECT_TRUE(residency_->WaitForReclaim());
    return Stored();
  }

  const LayoutRef layout_ = MakeLayout(kStateBytes);
  ManualClock clock_;
  std::unique_ptr<HostDevice> device_;
  std::unique_ptr<Residency> residency_;
  std::unique_ptr<Store> store_;
};

TEST_F(FoldedNamesOnDiskTest, TheSweepLeavesFoldedNamesTheirImagesAndTakesGarbage) {
  for (uint64_t i = 0; i < 40; ++i) Set("n" + std::to_string(i), 100 + i);
  ASSERT_TRUE(store_->Fork({}, {{Key("n1"), {}, ""}, {"child"}, {}, {}}).ok());
  Fold();
  const std::vector<ImageId> needed = StoredOnceReclaimed();
  EXPECT_EQ(needed.size(), 40u);
  const std::string orphan = MakeBytes(kStateBytes, 1);
  ASSERT_TRUE(Put(MakeInfo(needed.back() + 1000, layout_, orphan), orphan).ok());
  Start();  // without a stop
  EXPECT_EQ(StoredOnceReclaimed(), needed);
  for (uint64_t i = 0; i < 40; ++i) ExpectState("n" + std::to_string(i), 100 + i);
  ExpectState("child", 101);
  Fold();
  for (uint64_t i = 0; i < 40; ++i) ASSERT_TRUE(*store_->Delete({}, {Key("n" + std::to_string(i)), {}, false}));
  Check();
  EXPECT_EQ(StoredOnceReclaimed().size(), 1u);
  ExpectState("child", 101);
}

TEST_F(FoldedNamesOnDiskTest, ARandomHistoryOfWritesReadsDeletesForksAndRestartsKeepsEveryByte) {
  constexpr unsigned kSeed = 5;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::map<std::string, uint64_t> model;
  uint64_t next = 1000;
  for (int step = 0; step < 600; ++step) {
    const std::string name = "n" + std::to_string(random() % 30);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: Set(name, model[name] = ++next); break;
      case 3: {
        const std::string child = "n" + std::to_string(random() % 30);
        const bool forked = store_->Fork({}, {{Key(name), {}, ""}, {child}, {}, {}}).ok();
        ASSERT_EQ(forked, model.contains(name) && !model.contains(child));
        if (forked) model[child] = model.at(name);
        break;
      }
      case 4: ASSERT_EQ(*store_->Delete({}, {Key(name), {}, true}), model.erase(name) == 1); break;
      case 5:
        if (random() % 8 == 0) {
          ASSERT_TRUE(store_->Flush({}, {}).ok());
          Start();
        }
        break;
      default:
        if (model.contains(name)) ExpectState(name, model.at(name));
    }
    if (random() % 3 == 0) Fold();
    if (HasFailure()) return;
  }
  for (const auto& [name, seed] : model) ExpectState(name, seed);
  Fold();
  std::set<uint64_t> distinct;
  for (const auto& [name, seed] : model) distinct.insert(seed);
  EXPECT_EQ(StoredOnceReclaimed().size(), distinct.size());
}

}  // namespace
}  // namespace statepool
