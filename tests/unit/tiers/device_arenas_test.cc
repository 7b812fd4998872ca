// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Store, Residency and Arenas together, over memory of each kind: what a worker stores is what it and others load, from
// slots, from the cold store, and by Get. Nothing but the device copies where the CPU can't.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/core/error.h"
#include "server/core/view.h"
#include "server/memory/arenas.h"
#include "server/tiers/residency.h"
#include "tiers/device_arenas_fixture.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

INSTANTIATE_TEST_SUITE_P(Memory, DeviceArenasTest, AllMemories(), MemoryKindName);

TEST_P(DeviceArenasTest, WhatAWorkerStoresIsWhatIsLoadedInEveryViewAndWhatGetSees) {
  const std::vector<View> views = {
      {},
      {.layers = View::Layers::kRowMajor, .conv_padding = 1},
      {.layers = View::Layers::kLayerMajor, .axis_orders = {{"ssm", {"head", "dv", "dk"}}}},
  };
  std::vector<Open> arenas;
  for (const View& view : views) arenas.push_back(OpenArena(3, view));
  for (size_t from = 0; from < arenas.size(); ++from) {
    const std::string state = MakeBytes(layout_->state_bytes(), from + 1), name = absl::StrCat("seq/", from);
    FillArena(arenas[from], 0x5a);
    SetRow(arenas[from], 1, state);
    ASSERT_EQ(Store(arenas[from], 1, name, 7), absl::OkStatus());
    EXPECT_TRUE(Get(name) == state) << from;
    for (size_t to = 0; to < arenas.size(); ++to) {
      FillArena(arenas[to], 0x5a);
      std::string expected = BytesOfArena(arenas[to]);
      arenas[to].shape->plan.Clear(expected.data(), 2);
      arenas[to].shape->plan.Gather(state.data(), 0, state.size(), expected.data(), {2}, CopyHint::kCached);
      ASSERT_EQ(Load(arenas[to], 2, name), absl::OkStatus());
      EXPECT_EQ(RowOf(arenas[to], 2), state) << from << " to " << to;
      EXPECT_TRUE(BytesOfArena(arenas[to]) == expected)
          << "nothing but the row, and what it has beside the state, was touched: " << from << " to " << to;
    }
  }
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(DeviceArenasTest, RowsAreAdvancedOnceForEachRequestIdWholeOrAsARanksPart) {
  for (const uint32_t tp_size : {1u, 2u}) {
    const View view = {.layers = View::Layers::kRowMajor, .num_spec = 3, .tp_size = tp_size, .tp_rank = tp_size - 1};
    absl::StatusOr<OpenedArena> opened = arenas_.Open({}, {"m", 4, 4, view});
    ASSERT_TRUE(opened.ok()) << opened.status();
    absl::StatusOr<Arenas::Lease> lease = arenas_.Connect(opened->token);
    ASSERT_TRUE(lease.ok()) << lease.status();
    close(lease->fd);
    const Open arena = {opened->id, newest_memory_, opened->shape};
    std::string bytes = MakeBytes(arena.shape->bytes, tp_size);
    memory_.Write(arena.memory, bytes);
    const auto move = [&](const AdvanceMove& row) {
      for (size_t part = 0; part < arena.shape->advance_plan.parts().size(); ++part)
        arena.shape->advance_plan.Move(bytes.data(), row, part);
    };
    AdvanceRequest request{{{0, 3, {}, {}}, {1, {}, {0, 2, 3}, {}}, {2, 1, {}, {}}, {2, 4, {}, 3}}, {}, "once"};
    EXPECT_EQ(ReasonOf(arenas_.Advance({}, arena.id, request).status()), "DUPLICATE_ROW");
    request.items.erase(request.items.begin() + 2);
    for (int i = 0; i < 2; ++i) {
      const absl::StatusOr<AdvanceAnswer> answer = arenas_.Advance({}, arena.id, request);
      ASSERT_TRUE(answer.ok()) << answer.status();
      for (const AdvancedRow& row : answer->rows) {
        EXPECT_EQ(row.status, absl::OkStatus());
        EXPECT_EQ(row.outcome, AdvanceOutcome::kMoved);
      }
      if (i == 0) move({0, 0, AcceptedSteps::Chain(3)});
      if (i == 0) move({1, 1, AcceptedSteps(0b1101)});
      if (i == 0) move({2, 3, AcceptedSteps::Chain(4)});
      ASSERT_TRUE(BytesOfArena(arena) == bytes) << tp_size << " ranks, call " << i;
    }
    request.items.resize(1);
    const auto refused = [&](const AdvanceItem& item) {
      const AdvanceAnswer answer = *arenas_.Advance({}, arena.id, {{item}, {}, "once"});
      EXPECT_EQ(GetErrorDetail(answer.rows[0].status).field, "request_id");
      return ReasonOf(answer.rows[0].status);
    };
    EXPECT_EQ(refused({0, 2, {}, {}}), "REQUEST_ID_REUSED");
    EXPECT_EQ(refused({1, {}, {0, 3}, {}}), "REQUEST_ID_REUSED");
    EXPECT_EQ(refused({1, 4, {}, 3}), "REQUEST_ID_REUSED") << "from another row";
    ASSERT_TRUE(BytesOfArena(arena) == bytes);
    request.request_id = "again";
    ASSERT_TRUE(arenas_.Advance({}, arena.id, request).ok());
    move({0, 0, AcceptedSteps::Chain(3)});
    EXPECT_TRUE(BytesOfArena(arena) == bytes) << "another request";
    ASSERT_EQ(arenas_.Close({}, arena.id), absl::OkStatus());
    arenas_.CheckInvariants();
  }
}

TEST_P(DeviceArenasTest, AStoreIsRepeatedThoughItsRowHasPassedWhatItStored) {
  absl::StatusOr<OpenedArena> opened = arenas_.Open({}, {"m", 2, 4, {.num_spec = 3}});
  ASSERT_TRUE(opened.ok()) << opened.status();
  absl::StatusOr<Arenas::Lease> lease = arenas_.Connect(opened->token);
  ASSERT_TRUE(lease.ok()) << lease.status();
  close(lease->fd);
  const Open arena = {opened->id, newest_memory_, opened->shape};
  std::string bytes = MakeBytes(arena.shape->bytes, 1);
  memory_.Write(arena.memory, bytes);
  std::vector<StoreItem> items(2);
  for (uint32_t row = 0; row < 2; ++row) {
    StoreItem& item = items[row];
    item.row = row;
    item.whole_row = item.advance = true;
    item.set.sequence = row == 0 ? "stored" : "skipped";
    item.set.position = row == 0 ? 10 : 11;  // at 8 is the state after 2 of 4 tokens; of 3 none is at a multiple
    item.set.request = {"once", row};
    item.accepted_length = row == 0 ? 4 : 3;
    item.align = 8;
  }
  std::string state(layout_->state_bytes(), 0);
  arena.shape->plan.Scatter(bytes.data(), 0, 2, 0, state.size(), state.data(), CopyHint::kCached);
  for (size_t part = 0; part < arena.shape->advance_plan.parts().size(); ++part) {
    arena.shape->advance_plan.Move(bytes.data(), {0, 0, AcceptedSteps::Chain(4)}, part);
    arena.shape->advance_plan.Move(bytes.data(), {1, 1, AcceptedSteps::Chain(3)}, part);
  }
  for (const bool again : {false, true, true}) {
    const absl::StatusOr<StoreAnswer> answer = arenas_.Store({}, arena.id, items, /*all_or_none=*/again);
    ASSERT_TRUE(answer.ok() && answer->rows[0].status.ok()) << answer.status();
    EXPECT_EQ(answer->rows[0].info.version.position, 8);
    EXPECT_EQ(answer->rows[0].info.replayed, again);
    EXPECT_TRUE(answer->done && answer->rows[1].skipped);
    EXPECT_TRUE(Get("stored") == state);
    EXPECT_TRUE(BytesOfArena(arena) == bytes);
  }
  items[0].set.request.body_hash = 7;
  EXPECT_EQ(ReasonOf(arenas_.Store({}, arena.id, items, false)->rows[0].status), "REQUEST_ID_REUSED");
  // The name has forgotten it, and the row can't tell any more what it was.
  items[0].set.request.body_hash = 0;
  ASSERT_TRUE(store_.Delete({}, {Key("stored"), std::nullopt}).ok());
  EXPECT_EQ(ReasonOf(arenas_.Store({}, arena.id, items, false)->rows[0].status), "REQUEST_ID_REUSED");
  EXPECT_TRUE(BytesOfArena(arena) == bytes);
}

TEST_P(DeviceArenasTest, StatesThatLeftTheDeviceComeBackIntoRows) {
  const Open arena = OpenArena(2);
  std::vector<std::string> states;
  const uint64_t count = memory_.device()->budget_bytes() / layout_->state_bytes() + 80;
  for (uint64_t i = 0; i < count; ++i) {
    states.push_back(MakeBytes(layout_->state_bytes(), i));
    SetRow(arena, 0, states.back());
    ASSERT_EQ(Store(arena, 0, absl::StrCat("seq/", i), i), absl::OkStatus());
  }
  ASSERT_GT(residency_.stats().spills + residency_.stats().demotions, 10u);
  for (uint64_t i = 0; i < count; ++i) {
    ASSERT_EQ(Load(arena, 1, absl::StrCat("seq/", i)), absl::OkStatus());
    ASSERT_TRUE(RowOf(arena, 1) == states[i]) << i;
  }
  EXPECT_GT(residency_.stats().promotions, 10u);
  residency_.CheckInvariants();
}

TEST_P(DeviceArenasTest, TheWorkersWordEndsTheQuarantineOnlyWhereTheDeviceCantTell) {
  absl::StatusOr<OpenedArena> opened = arenas_.Open({}, {"m", 2, 0, {}});
  ASSERT_TRUE(opened.ok()) << opened.status();
  absl::StatusOr<Arenas::Lease> lease = arenas_.Connect(opened->token);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->mapped_bytes % kChunk, 0u);
  EXPECT_GE(lease->mapped_bytes, lease->bytes);
  const bool can_tell = memory_.device()->host_accessible();
  // A mapping in the way of whoever could see it. A GPU's memory is not mapped like this; that it went out is enough.
  void* const mapping = mmap(nullptr, lease->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, lease->fd, 0);
  close(lease->fd);
  const auto gone = [&] {
    for (int i = 0; i < 200 && !arenas_.IsGone(opened->id); ++i) {
      clock_.Advance(absl::Seconds(1));
      usleep(5'000);
    }
    return arenas_.IsGone(opened->id);
  };
  ASSERT_EQ(arenas_.Close({}, opened->id), absl::OkStatus());
  EXPECT_FALSE(arenas_.IsGone(opened->id));
  EXPECT_EQ(arenas_.stats().quarantined, 1u);
  arenas_.Unmapped("another");
  EXPECT_FALSE(arenas_.IsGone(opened->id));
  arenas_.Unmapped(opened->id);
  if (can_tell) {
    clock_.Advance(absl::Seconds(1));
    EXPECT_FALSE(arenas_.IsGone(opened->id)) << "it is still mapped";
  } else {
    EXPECT_TRUE(gone());
  }
  if (mapping != MAP_FAILED) munmap(mapping, lease->mapped_bytes);
  EXPECT_TRUE(gone());
  EXPECT_EQ(arenas_.stats().quarantined_bytes, 0u);
  arenas_.CheckInvariants();
}

#ifndef STATEPOOL_GPU_TESTS  // what a FarDevice tells of itself
TEST_P(DeviceArenasTest, RowsGoByTheDeviceAloneWhereTheCpuCantReachThem) {
  if (memory_.far() == nullptr) GTEST_SKIP() << "the CPU copies";
  const Open arena = OpenArena(2);
  ASSERT_EQ(Store(arena, 0, "seq", 1), absl::OkStatus());
  const uint64_t in = memory_.far()->copied_in_bytes(), out = memory_.far()->copied_out_bytes();
  for (int i = 0; i < 10; ++i) {
    ASSERT_EQ(Load(arena, 1, "seq"), absl::OkStatus());
    ASSERT_EQ(Store(arena, 1, "seq", 2 + i), absl::OkStatus());
  }
  EXPECT_EQ(memory_.far()->copied_in_bytes(), in);
  EXPECT_EQ(memory_.far()->copied_out_bytes(), out);
}

// What a call to an arena says after its device failed: until the arena was freed, and then.
bool SaysThatItsDeviceFailed(const absl::Status& status) {
  return ReasonOf(status) == "DEVICE_FAILED" || ReasonOf(status) == "ARENA_UNKNOWN";
}

TEST_P(DeviceArenasTest, ADeviceThatFailedSaysSoAndSpoilsNothing) {
  if (memory_.far() == nullptr) GTEST_SKIP() << "the host does not fail";
  const Open arena = OpenArena(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  SetRow(arena, 0, state);
  ASSERT_EQ(Store(arena, 0, "seq", 1), absl::OkStatus());
  memory_.far()->Fail();
  EXPECT_PRED1(SaysThatItsDeviceFailed, Load(arena, 1, "seq"));
  EXPECT_PRED1(SaysThatItsDeviceFailed, Store(arena, 0, "seq", 2));
  EXPECT_PRED1(SaysThatItsDeviceFailed, Store(arena, 0, "other", 2));
  EXPECT_EQ(ReasonOf(store_.Get({}, {Key("seq"), std::nullopt, ""}).status()), "DEVICE_FAILED");
  absl::StatusOr<NameInfo> info = store_.Describe({}, {kDefaultTenant, NameKind::kSequence, "seq"});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version.position, 1);
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

// The value of an error's metadata; empty: it has none.
std::string Meta(const absl::Status& status, absl::string_view key) {
  for (const auto& [name, value] : GetErrorDetail(status).metadata) {
    if (name == key) return value;
  }
  return "";
}

TEST_P(DeviceArenasTest, ArenasOfTwoDevicesExchangeStates) {
  if (memory_.devices().size() < 2) GTEST_SKIP() << "there is one";
  const Open first = OpenArena(2, {}, "far:0"), second = OpenArena(2, {}, "far:1");
  const uint64_t used = memory_.devices()[1]->used_bytes();
  EXPECT_GT(used, 0u);
  for (int i = 0; i < 8; ++i) {
    const Open &from = i % 2 ? first : second, &to = i % 2 ? second : first;
    const std::string state = MakeBytes(layout_->state_bytes(), i);
    SetRow(from, 0, state);
    ASSERT_EQ(Store(from, 0, "seq", i), absl::OkStatus());
    ASSERT_EQ(Load(to, 1, "seq"), absl::OkStatus());
    EXPECT_TRUE(RowOf(to, 1) == state);
    EXPECT_TRUE(Get("seq") == state);
  }
  const absl::Status unknown = arenas_.Open({}, {"m", 1, 0, {}, "far:2"}).status();
  EXPECT_EQ(ReasonOf(unknown), "INVALID_OPTION");
  EXPECT_EQ(GetErrorDetail(unknown).field, "device");
  EXPECT_NE(unknown.message().find("far:0, far:1"), std::string::npos) << unknown;
  arenas_.CheckInvariants();
  residency_.CheckInvariants();
}

TEST_P(DeviceArenasTest, WhereOneDeviceFailsArenasAndStatesOfTheOtherGoOn) {
  if (memory_.devices().size() < 2) GTEST_SKIP() << "there is one";
  const Open first = OpenArena(2, {}, "far:0"), second = OpenArena(2, {}, "far:1");
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  SetRow(first, 0, state);
  SetRow(second, 0, state);
  ASSERT_EQ(Store(first, 0, "on 0", 1), absl::OkStatus());
  ASSERT_EQ(Store(second, 0, "on 1", 1), absl::OkStatus());
  ASSERT_EQ(Store(first, 0, "on both", 1), absl::OkStatus());
  ASSERT_EQ(Load(second, 1, "on both"), absl::OkStatus());
  memory_.far(0)->Fail();
  EXPECT_PRED1(SaysThatItsDeviceFailed, Load(first, 0, "on 1"));
  EXPECT_EQ(ReasonOf(Load(second, 0, "on 0")), "DEVICE_FAILED");
  for (const std::string name : {"on 1", "on both"}) {
    EXPECT_EQ(Load(second, 1, name), absl::OkStatus());
    EXPECT_TRUE(RowOf(second, 1) == state);
    EXPECT_TRUE(Get(name) == state);
  }
  EXPECT_EQ(Store(second, 1, "on 0", 2), absl::OkStatus());  // whoever has the state sets it again
  EXPECT_TRUE(Get("on 0") == state);
  EXPECT_EQ(ReasonOf(arenas_.Open({}, {"m", 1, 0, {}, "far:0"}).status()), "DEVICE_FAILED");
  EXPECT_EQ(OpenArena(1).shape->rows, 1u) << "on the other device";
  for (int i = 0; i < 2'000 && arenas_.stats().leased > 2; ++i) usleep(5'000);
  EXPECT_EQ(arenas_.stats().leased, 2u);
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(DeviceArenasTest, AfterAllDevicesFailedNamesSayWhatIsDurableAndTheDaemonGoesOn) {
  if (memory_.warm() == nullptr) GTEST_SKIP() << "nothing is left then";
  const auto state = [this](uint64_t seed) { return MakeBytes(layout_->state_bytes(), seed); };
  ASSERT_TRUE(Set("durable", 1, state(1)).ok());
  const auto recorded = Set("ahead", 1, state(2));
  ASSERT_TRUE(recorded.ok());
  ASSERT_TRUE(store_.Flush({}, {}).ok());
  const uint64_t durable_revision = store_.Describe({}, Key("ahead"))->durable_revision;
  ASSERT_TRUE(Set("ahead", 2, state(3)).ok());
  ASSERT_TRUE(Set("fresh", 5, state(4)).ok());
  for (size_t i = 0; i < memory_.devices().size(); ++i) memory_.far(i)->Fail();

  EXPECT_TRUE(Get("durable") == state(1));
  const absl::Status ahead = store_.Get({}, {Key("ahead"), std::nullopt, ""}).status();
  EXPECT_EQ(ahead.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(ahead), "DEVICE_FAILED");
  EXPECT_EQ(Meta(ahead, "durable_revision"), absl::StrCat(durable_revision));
  EXPECT_NE(ahead.message().find("Rollback"), std::string::npos) << ahead;
  const absl::Status fresh = store_.Get({}, {Key("fresh"), std::nullopt, ""}).status();
  EXPECT_EQ(ReasonOf(fresh), "DEVICE_FAILED");
  EXPECT_EQ(Meta(fresh, "durable_revision"), "0");
  EXPECT_EQ(ReasonOf(store_.Flush({}, {}).status()), "DEVICE_FAILED");  // it says what can't become durable
  EXPECT_EQ(ReasonOf(arenas_.Open({}, {"m", 1, 0, {}}).status()), "DEVICE_FAILED");

  // The ways out.
  const absl::StatusOr<GetAnswer> before = store_.Get({}, {Key("ahead"), 1, ""});
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_TRUE(BytesOf(*before->pin) == state(2));
  ASSERT_TRUE(store_.Rollback({}, {"ahead", 1, std::nullopt, {}}).ok());
  EXPECT_TRUE(Get("ahead") == state(2));
  ASSERT_TRUE(Set("fresh", 5, state(5)).ok());
  EXPECT_TRUE(Get("fresh") == state(5));
  ASSERT_TRUE(store_.Fork({}, {{Key("durable"), std::nullopt, ""}, {"child"}, {}, {}}).ok());
  EXPECT_TRUE(Get("child") == state(1));
  const absl::StatusOr<FlushAnswer> flushed = store_.Flush({}, {});
  EXPECT_TRUE(flushed.ok()) << flushed.status();
  residency_.CheckInvariants();
}

TEST_P(DeviceArenasTest, WhatWasLostWithADeviceIsInNobodysWayWhenTheDaemonStops) {
  if (memory_.far() == nullptr) GTEST_SKIP() << "the host does not fail";
  ASSERT_TRUE(Set("lost", 1, MakeBytes(layout_->state_bytes(), 1)).ok());
  for (size_t i = 0; i < memory_.devices().size(); ++i) memory_.far(i)->Fail();
  EXPECT_EQ(store_.Drain({}), absl::OkStatus());
}

TEST_P(DeviceArenasTest, WhatWasWrittenTogetherWithALostStateIsRecordedWhenTheDaemonStops) {
  if (memory_.devices().size() < 2) GTEST_SKIP() << "another device must be left";
  const std::string lost = MakeBytes(layout_->state_bytes(), 1), kept = MakeBytes(layout_->state_bytes(), 2);
  const absl::string_view lost_piece = lost, kept_piece = kept;
  StateBytes lost_bytes, kept_bytes;
  lost_bytes.pieces = {&lost_piece, 1};
  kept_bytes.pieces = {&kept_piece, 1};
  const std::vector<BatchItem> items{SetItem{{"a", "m", 1, std::nullopt, std::nullopt, {}, {}}, lost_bytes},
                                     SetItem{{"b", "m", 1, std::nullopt, std::nullopt, {}, {}}, kept_bytes}};
  const auto results = store_.Batch({}, items, /*all_or_none=*/true);
  ASSERT_TRUE(results.ok()) << results.status();
  memory_.far(0)->Fail();
  residency_.CheckDevices();
  const bool a_is_lost = !store_.Get({}, {Key("a"), std::nullopt, ""}).ok();
  ASSERT_NE(a_is_lost, !store_.Get({}, {Key("b"), std::nullopt, ""}).ok()) << "each went to a device of its own";
  EXPECT_EQ(store_.Drain({}), absl::OkStatus());
  const NameInfo info = *store_.Describe({}, Key(a_is_lost ? "b" : "a"));
  EXPECT_EQ(info.durable_revision, info.revision);
}

TEST_P(DeviceArenasTest, AFlushThatWaitedForAnotherSaysWhatWasLostMeanwhile) {
  if (memory_.far() == nullptr) GTEST_SKIP() << "the host does not fail";
  ASSERT_TRUE(Set("a", 1, MakeBytes(layout_->state_bytes(), 1)).ok());
  std::atomic<bool> putting{false}, go_on{false};
  cold_.before_put = [&] {
    putting = true;
    while (!go_on) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  clock_.Advance(absl::Seconds(5));
  std::thread behind([&] { store_.FlushDue(); });
  while (!putting) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  absl::Status flushed;
  const NameKey key = Key("a");
  std::thread flush([&] { flushed = store_.Flush({}, {&key, 1}).status(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // it waits for the other
  for (size_t i = 0; i < memory_.devices().size(); ++i) memory_.far(i)->Fail();
  residency_.CheckDevices();
  go_on = true;
  behind.join();
  flush.join();
  cold_.before_put = nullptr;
  EXPECT_EQ(store_.Describe({}, key)->durable_revision, 0u);
  EXPECT_EQ(ReasonOf(flushed), "DEVICE_FAILED");
}
#endif

}  // namespace
}  // namespace statepool
