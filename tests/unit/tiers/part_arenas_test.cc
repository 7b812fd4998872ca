// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas of the ranks of tensor parallelism: what they store together is the whole state, once it is whole, and each
// rank of any number of them loads its part of it. Over memory of each kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/core/error.h"
#include "tiers/device_arenas_fixture.h"

namespace statepool {
namespace {

class PartArenasTest : public DeviceArenasTest {
 protected:
  explicit PartArenasTest(PartAssemblyOptions parts = {.max_open = 3}) : DeviceArenasTest({.parts = parts}) {}

  std::vector<Open> OpenRanks(uint32_t tp_size, View view = {}, const std::string& device = "") {
    std::vector<Open> ranks;
    for (uint32_t rank = 0; rank < tp_size; ++rank) {
      view.tp_size = tp_size;
      view.tp_rank = rank;
      ranks.push_back(OpenArena(2, view, device));
    }
    return ranks;
  }
  StoredRow StorePart(const Open& arena, uint32_t row, const std::string& name, int64_t position,
                      const std::string& request_id, bool whole_row = true, const std::string& attachment = "") {
    StoreItem item;
    item.attachment = attachment;
    item.row = row;
    item.set.sequence = name;
    item.set.position = position;
    item.set.request.id = request_id;
    item.whole_row = whole_row;
    absl::StatusOr<StoreAnswer> answer = arenas_.Store({}, arena.id, {&item, 1}, false);
    if (answer.ok()) return std::move(answer->rows[0]);
    StoredRow refused;
    refused.status = answer.status();
    return refused;
  }
  // What the rank has of a state; of the rest zeros.
  std::string PartOf(const Open& arena, const std::string& state) {
    std::string rows(arena.shape->bytes, 0), part(state.size(), 0);
    arena.shape->plan.Gather(state.data(), 0, state.size(), rows.data(), {0}, CopyHint::kCached);
    arena.shape->plan.Scatter(rows.data(), 0, 1, 0, part.size(), part.data(), CopyHint::kCached);
    return part;
  }
  std::string ReasonOfGet(const std::string& name) {
    return ReasonOf(store_.Get({}, {Key(name), std::nullopt, ""}).status());
  }
};
INSTANTIATE_TEST_SUITE_P(Memory, PartArenasTest, AllMemories(), MemoryKindName);

TEST_P(PartArenasTest, WhatAllRanksStoreIsOneVersionAndAnyNumberOfRanksLoadsIt) {
  const View turned{.axis_orders = {{"ssm", {"head", "dv", "dk"}}, {"conv", {"tap", "channel"}}}, .conv_padding = 1};
  for (const uint32_t tp_size : {1u, 2u, 4u}) {
    const std::string name = absl::StrCat("by ", tp_size), state = MakeBytes(layout_->state_bytes(), tp_size);
    std::vector<Open> ranks = OpenRanks(tp_size, tp_size == 2 ? turned : View());
    for (uint32_t rank = 0; rank < tp_size; ++rank) {
      SetRow(ranks[rank], 1, state);
      EXPECT_EQ(ReasonOfGet(name), "NEVER_CREATED") << rank << " of " << tp_size;
      const StoredRow stored = StorePart(ranks[rank], 1, name, 7, "first");
      ASSERT_EQ(stored.status, absl::OkStatus());
      EXPECT_EQ(stored.parts_missing, tp_size - 1 - rank);
    }
    EXPECT_TRUE(Get(name) == state);
    for (const Open& rank : ranks) CloseArena(rank);
    for (const uint32_t others : {1u, 2u, 4u}) {
      for (const Open& rank : OpenRanks(others, others == 4 ? turned : View())) {
        FillArena(rank, 0x5a);
        ASSERT_EQ(Load(rank, 0, name), absl::OkStatus());
        EXPECT_TRUE(RowOf(rank, 0) == PartOf(rank, state)) << tp_size << " ranks' state in an arena of " << others;
        CloseArena(rank);
      }
    }
  }
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(PartArenasTest, RanksComeInAnyOrderAndAtTheSameTime) {
  const std::vector<Open> ranks = OpenRanks(4);
  std::mt19937 random(4);
  for (int round = 1; round <= 20; ++round) {
    const std::string state = MakeBytes(layout_->state_bytes(), round);
    std::vector<size_t> order = {0, 1, 2, 3};
    std::shuffle(order.begin(), order.end(), random);
    std::atomic<int> whole{0};
    std::vector<std::thread> threads;
    for (const size_t rank : order) {
      SetRow(ranks[rank], 0, state);
      threads.emplace_back([&, rank] {
        const StoredRow stored = StorePart(ranks[rank], 0, "seq", round, absl::StrCat("step ", round));
        EXPECT_EQ(stored.status, absl::OkStatus());
        whole += stored.parts_missing == 0;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GE(whole, 1) << "whoever comes last publishes it, and is told; others may see it already";
    EXPECT_TRUE(Get("seq") == state);
  }
  EXPECT_EQ(store_.Describe({}, Key("seq"))->version.position, 20);
  arenas_.CheckInvariants();
}

TEST_P(PartArenasTest, ARankThatAsksAgainBringsNothingTwice) {
  const std::vector<Open> ranks = OpenRanks(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1), other = MakeBytes(layout_->state_bytes(), 2);
  SetRow(ranks[0], 0, state);
  SetRow(ranks[1], 0, state);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "a").parts_missing, 1u);
  SetRow(ranks[0], 0, other);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "a").parts_missing, 1u) << "it is there already";
  const StoredRow last = StorePart(ranks[1], 0, "seq", 1, "a");
  EXPECT_EQ(last.parts_missing, 0u);
  EXPECT_TRUE(Get("seq") == state);
  const StoredRow again = StorePart(ranks[0], 0, "seq", 1, "a");
  ASSERT_EQ(again.status, absl::OkStatus());
  EXPECT_TRUE(again.info.replayed);
  EXPECT_EQ(again.info.revision, last.info.revision);
  EXPECT_TRUE(Get("seq") == state);
}

TEST_P(PartArenasTest, PartsOfDifferentVersionsNeverMix) {
  const std::vector<Open> ranks = OpenRanks(2);
  const std::string first = MakeBytes(layout_->state_bytes(), 1), second = MakeBytes(layout_->state_bytes(), 2);
  SetRow(ranks[0], 0, first);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "first try").parts_missing, 1u);
  for (const Open& rank : ranks) SetRow(rank, 0, second);
  EXPECT_EQ(StorePart(ranks[1], 0, "seq", 1, "second try").parts_missing, 1u);
  EXPECT_EQ(ReasonOfGet("seq"), "NEVER_CREATED");
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "second try").parts_missing, 0u);
  EXPECT_TRUE(Get("seq") == second);
}

TEST_P(PartArenasTest, TheOthersRowsHaveTheVersionAsTheirBaseOnceItIsThere) {
  const std::vector<Open> ranks = OpenRanks(2);
  for (const Open& rank : ranks) SetRow(rank, 0, MakeBytes(layout_->state_bytes(), 1));
  StorePart(ranks[0], 0, "seq", 1, "1");
  StorePart(ranks[1], 0, "seq", 1, "1");
  ASSERT_TRUE(Set("seq", 2, MakeBytes(layout_->state_bytes(), 2)).ok());  // somebody else
  for (const Open& rank : ranks)
    EXPECT_EQ(ReasonOf(StorePart(rank, 0, "seq", 3, "3", /*whole_row=*/false).status), "REVISION_MISMATCH");
}

TEST_P(PartArenasTest, ARowRemembersWhatMovedItWhenItsVersionIsWhole) {
  const std::vector<Open> ranks = OpenRanks(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1), other = MakeBytes(layout_->state_bytes(), 2);
  for (const Open& rank : ranks) SetRow(rank, 1, state);
  for (const Open& rank : ranks) ASSERT_EQ(StorePart(rank, 1, "seq", 1, "a").status, absl::OkStatus());
  AdvanceRequest request;
  request.items = {{.row = 0, .accepted_length = 1, .to_row = 1}};
  request.request_id = "moves";
  ASSERT_EQ(arenas_.Advance({}, ranks[0].id, request).status(), absl::OkStatus());
  EXPECT_EQ(ReasonOf(StorePart(ranks[0], 1, std::string(600, 'x'), 2, "b").status), "INVALID_NAME");
  SetRow(ranks[0], 1, other);
  ASSERT_EQ(arenas_.Advance({}, ranks[0].id, request)->rows[0].status, absl::OkStatus());
  EXPECT_TRUE(RowOf(ranks[0], 1) == PartOf(ranks[0], other)) << "a retry moves nothing";
}

TEST_P(PartArenasTest, WhereARankIsGoneOrLateTheOthersBeginAnew) {
  std::vector<Open> ranks = OpenRanks(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  for (const Open& rank : ranks) SetRow(rank, 0, state);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "gone").parts_missing, 1u);
  arenas_.LeaseEnded(ranks[0].id);
  arenas_.ProcessGone(ranks[0].id);
  for (int i = 0; i < 2'000 && !arenas_.IsGone(ranks[0].id); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(StorePart(ranks[1], 0, "seq", 1, "gone").parts_missing, 1u) << "the other's part went with its arena";

  clock_.Advance(absl::Seconds(61));
  EXPECT_EQ(ReasonOf(StorePart(ranks[1], 0, "seq", 1, "late", /*whole_row=*/false).status), "ROW_NOT_LOADED")
      << "what it was stored as never became a version";
  EXPECT_EQ(ReasonOfGet("seq"), "NEVER_CREATED");
  ranks[0] = OpenArena(2, {.tp_size = 2, .tp_rank = 0});
  SetRow(ranks[0], 0, state);
  StorePart(ranks[0], 0, "seq", 1, "anew");
  EXPECT_EQ(StorePart(ranks[1], 0, "seq", 1, "anew").parts_missing, 0u);
  EXPECT_TRUE(Get("seq") == state);
  arenas_.CheckInvariants();
  residency_.CheckInvariants();
}

TEST_P(PartArenasTest, AVersionThatIsRefusedAtLastIsForgotten) {
  const std::vector<Open> ranks = OpenRanks(2);
  for (const Open& rank : ranks) SetRow(rank, 0, MakeBytes(layout_->state_bytes(), 1));
  for (const Open& rank : ranks) StorePart(rank, 0, "seq", 1, "1");
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 2, "2").parts_missing, 1u);
  ASSERT_TRUE(Set("seq", 2, MakeBytes(layout_->state_bytes(), 2)).ok());
  EXPECT_EQ(ReasonOf(StorePart(ranks[1], 0, "seq", 2, "2").status), "REVISION_MISMATCH");
  EXPECT_TRUE(Get("seq") == MakeBytes(layout_->state_bytes(), 2));
}

TEST_P(PartArenasTest, TooManyUnfinishedVersionsAreRefused) {
  const std::vector<Open> ranks = OpenRanks(2);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(StorePart(ranks[0], 0, absl::StrCat("seq/", i), 1, "1").status, absl::OkStatus());
  const absl::Status refused = StorePart(ranks[0], 0, "seq/3", 1, "1").status;
  EXPECT_EQ(ReasonOf(refused), "TOO_MANY_UPLOADS");
  EXPECT_TRUE(GetErrorDetail(refused).retry_after > absl::ZeroDuration());
  EXPECT_EQ(StorePart(ranks[1], 0, "seq/1", 1, "1").parts_missing, 0u);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq/3", 1, "1").status, absl::OkStatus());
}

// Slots that were reserved count nothing, but there are no more of them than that.
class FewPartArenasTest : public PartArenasTest {
 protected:
  FewPartArenasTest() : PartArenasTest({.max_open = 100, .max_bytes = 1}) {}
};
INSTANTIATE_TEST_SUITE_P(Memory, FewPartArenasTest, AllMemories(), MemoryKindName);

TEST_P(FewPartArenasTest, UnfinishedVersionsHaveTheReservedSlotsAndTheirBytesAndNoMore) {
  const std::vector<Open> ranks = OpenRanks(2);  // of 2 rows: each has one slot reserved
  for (const Open& rank : ranks) SetRow(rank, 0, MakeBytes(layout_->state_bytes(), 1));
  const auto name = [](int i) { return absl::StrCat("seq/", i); };
  for (int i = 0; i < 3; ++i) {  // the third counts, and one alone may have more than the limit
    EXPECT_EQ(StorePart(ranks[0], 0, name(i), 1, "1").status, absl::OkStatus());
    absl::SleepFor(absl::Milliseconds(50));  // in which slots would be reserved anew
  }
  EXPECT_EQ(arenas_.stats().reserved_slots, 0u);
  EXPECT_EQ(ReasonOf(StorePart(ranks[0], 0, name(3), 1, "1").status), "TOO_MANY_UPLOADS");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(StorePart(ranks[1], 0, name(i), 1, "1").parts_missing, 0u);
  for (int i = 0; i < 2000 && arenas_.stats().reserved_slots < 2; ++i) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(arenas_.stats().reserved_slots, 2u) << "they are whole";
  arenas_.CheckInvariants();
}

TEST_P(PartArenasTest, WhatAPartCantBeIsRefused) {
  const Open rank = OpenArena(2, {.tp_size = 2, .tp_rank = 0});
  EXPECT_EQ(GetErrorDetail(StorePart(rank, 0, "seq", 1, "").status).field, "request_id");
  StoreItem item;
  item.set.sequence = "seq";
  item.set.request.id = "1";
  item.whole_row = true;
  EXPECT_EQ(GetErrorDetail(arenas_.Store({}, rank.id, {&item, 1}, /*all_or_none=*/true).status()).field, "all_or_none");
  item.advance = true;
  const absl::StatusOr<StoreAnswer> advanced = arenas_.Store({}, rank.id, {&item, 1}, /*all_or_none=*/false);
  ASSERT_TRUE(advanced.ok()) << advanced.status();
  EXPECT_EQ(ReasonOf(advanced->rows[0].status), "INVALID_OPTION");
  EXPECT_EQ(GetErrorDetail(advanced->rows[0].status).field, "advance");
}

TEST_P(PartArenasTest, AnyRanksAttachmentIsTheVersions) {
  const std::vector<Open> ranks = OpenRanks(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  const auto attachment_of = [&](const std::string& name) {
    return std::string(store_.Get({}, {Key(name), std::nullopt, ""})->pin->attachment());
  };
  for (const Open& rank : ranks) SetRow(rank, 0, state);
  for (const size_t giver : {0, 1}) {
    const std::string name = absl::StrCat("by ", giver);
    StoredRow stored;
    for (const size_t rank : {0, 1}) {
      stored = StorePart(ranks[rank], 0, name, 1, "1", true, rank == giver ? "logits" : "");
      ASSERT_EQ(stored.status, absl::OkStatus());
    }
    EXPECT_EQ(stored.info.version.attachment_bytes, 6u);
    EXPECT_EQ(attachment_of(name), "logits");
    EXPECT_TRUE(Get(name) == state);
  }
  EXPECT_EQ(StorePart(ranks[0], 0, "two", 1, "1", true, "logits").parts_missing, 1u);
  const absl::Status other = StorePart(ranks[1], 0, "two", 1, "1", true, "others").status;
  EXPECT_EQ(ReasonOf(other), "INVALID_OPTION");
  EXPECT_EQ(GetErrorDetail(other).field, "attachment");
  EXPECT_EQ(ReasonOfGet("two"), "NEVER_CREATED");
  EXPECT_EQ(StorePart(ranks[1], 0, "two", 1, "1", true, "logits").parts_missing, 0u);
  EXPECT_EQ(attachment_of("two"), "logits");
  EXPECT_EQ(GetErrorDetail(StorePart(ranks[0], 0, "large", 1, "1", true, std::string((1 << 20) + 1, 'a')).status).field,
            "attachment");
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

// ---- on several devices

#ifndef STATEPOOL_GPU_TESTS  // those have one; tests/gpu/ranks_check.py

class PartArenasOnSeveralTest : public PartArenasTest {
 protected:
  // Ranks on the devices by turns.
  std::vector<Open> OpenSpread(uint32_t tp_size) {
    std::vector<Open> ranks;
    const std::vector<Device*> devices = memory_.devices();
    for (uint32_t rank = 0; rank < tp_size; ++rank)
      ranks.push_back(OpenArena(2, {.tp_size = tp_size, .tp_rank = rank}, devices[rank % devices.size()]->name()));
    return ranks;
  }
  void StoreAll(const std::vector<Open>& ranks, const std::string& name, int64_t position, const std::string& state) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      SetRow(ranks[rank], 1, state);
      const StoredRow stored = StorePart(ranks[rank], 1, name, position, absl::StrCat("at ", position));
      ASSERT_EQ(stored.status, absl::OkStatus());
      EXPECT_EQ(stored.parts_missing, ranks.size() - 1 - rank);
    }
  }
  bool reach_each_other() const { return memory_.devices()[0]->Reaches(*memory_.devices()[1]); }
};
INSTANTIATE_TEST_SUITE_P(Memory, PartArenasOnSeveralTest,
                         testing::Values(MemoryKind::kTwoFarWarm, MemoryKind::kTwoFarApart), MemoryKindName);

TEST_P(PartArenasOnSeveralTest, RanksStoreOneVersionAndOnlyTheirPartsComeBack) {
  for (const uint32_t tp_size : {2u, 4u}) {
    const std::string name = absl::StrCat("by ", tp_size), state = MakeBytes(layout_->state_bytes(), tp_size);
    const std::vector<Open> ranks = OpenSpread(tp_size);
    StoreAll(ranks, name, 7, state);
    EXPECT_TRUE(Get(name) == state);
    const uint64_t promotions = residency_.stats().promotions;
    for (const uint32_t others : {2u, 4u}) {
      for (const Open& rank : OpenSpread(others)) {
        FillArena(rank, 0x5a);
        ASSERT_EQ(Load(rank, 0, name), absl::OkStatus());
        EXPECT_TRUE(RowOf(rank, 0) == PartOf(rank, state)) << tp_size << " ranks' state in an arena of " << others;
        EXPECT_EQ(arenas_.Close({}, rank.id), absl::OkStatus());
      }
    }
    EXPECT_EQ(residency_.stats().promotions - promotions, reach_each_other() ? 0 : 1) << "copies of the whole state";
    for (const Open& rank : ranks) EXPECT_EQ(arenas_.Close({}, rank.id), absl::OkStatus());
  }
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(PartArenasOnSeveralTest, AStoreOfAllRowsTakesTheSlotsThatAllRanksReserved) {
  std::vector<Open> ranks = OpenSpread(2);
  const std::vector<std::string> states = {MakeBytes(layout_->state_bytes(), 1), MakeBytes(layout_->state_bytes(), 2)};
  const auto store_rows = [&](const Open& rank, const std::string& request_id) {
    std::vector<StoreItem> items(2);
    for (uint32_t row = 0; row < 2; ++row) {
      SetRow(rank, row, states[row]);
      items[row].row = row;
      items[row].set.sequence = absl::StrCat("seq/", row);
      items[row].set.position = 1;
      items[row].set.request.id = request_id;
      items[row].any_revision = items[row].whole_row = true;
    }
    return *arenas_.Store({}, rank.id, items, false);
  };
  // Slots of versions that wait for parts; the arenas' own thread may be about to reserve one.
  const auto come_to = [&](uint64_t expected) {
    uint64_t used = ~expected;
    for (int i = 0; i < 2'000 && used != expected; ++i) {
      if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      used = 0;
      for (const auto& pool : residency_.stats().pools) used += pool.slots_used;
      used -= arenas_.stats().reserved_slots;
    }
    return used == expected;
  };
  EXPECT_TRUE(come_to(0));
  for (const StoredRow& row : store_rows(ranks[0], "first").rows) EXPECT_EQ(row.parts_missing, 1u);
  EXPECT_TRUE(come_to(2));

  // A rank that is gone takes along what all brought, wherever it lies.
  arenas_.LeaseEnded(ranks[0].id);
  arenas_.ProcessGone(ranks[0].id);
  for (int i = 0; i < 2'000 && !arenas_.IsGone(ranks[0].id); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(come_to(0));
  ranks[0] = OpenArena(2, {.tp_size = 2, .tp_rank = 0}, memory_.devices()[0]->name());
  for (const StoredRow& row : store_rows(ranks[1], "second").rows) EXPECT_EQ(row.parts_missing, 1u);
  for (const StoredRow& row : store_rows(ranks[0], "second").rows) EXPECT_EQ(row.status, absl::OkStatus());
  std::vector<int> on_device(2);
  for (uint32_t row = 0; row < 2; ++row) {
    EXPECT_TRUE(Get(absl::StrCat("seq/", row)) == states[row]);
    const GetAnswer answer = *store_.Get({}, {Key(absl::StrCat("seq/", row)), std::nullopt, ""});
    for (size_t device = 0; device < 2; ++device)
      on_device[device] += memory_.far(device)->Behind(answer.pin->data(), 1) != nullptr;
  }
  EXPECT_EQ(on_device, (std::vector<int>{1, 1}));
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(PartArenasOnSeveralTest, AColdStateIsBroughtOnceForRanksThatReachIt) {
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  ASSERT_TRUE(Set("seq", 1, state).ok());
  const std::vector<Open> ranks = OpenSpread(4);
  // Others take all the room, so that it leaves the devices.
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(Set(absl::StrCat("other/", i), 1, MakeBytes(state.size(), i)).ok());
  ASSERT_EQ(store_.Describe({}, Key("seq"))->version.tier == Tier::kHot, false);
  const uint64_t promotions = residency_.stats().promotions;
  std::vector<std::thread> threads;
  for (const Open& rank : ranks) threads.emplace_back([&] { EXPECT_EQ(Load(rank, 0, "seq"), absl::OkStatus()); });
  for (std::thread& thread : threads) thread.join();
  for (const Open& rank : ranks) EXPECT_TRUE(RowOf(rank, 0) == PartOf(rank, state));
  EXPECT_EQ(residency_.stats().promotions - promotions, reach_each_other() ? 1 : 2);
}

TEST_P(PartArenasOnSeveralTest, RanksOfAllDevicesComeAtTheSameTime) {
  const std::vector<Open> ranks = OpenSpread(4);
  for (int round = 1; round <= 20; ++round) {
    const std::string state = MakeBytes(layout_->state_bytes(), round), name = absl::StrCat("seq/", round % 5);
    std::vector<std::thread> threads;
    for (const Open& rank : ranks) {
      SetRow(rank, 0, state);
      threads.emplace_back([&] {
        const StoredRow stored = StorePart(rank, 0, name, round, absl::StrCat("step ", round));
        EXPECT_EQ(stored.status, absl::OkStatus());
        while (ReasonOfGet(name) == "NEVER_CREATED" || store_.Describe({}, Key(name))->version.position < round)
          std::this_thread::yield();
        EXPECT_EQ(Load(rank, 1, name), absl::OkStatus());
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(Get(name) == state);
    for (const Open& rank : ranks) EXPECT_TRUE(RowOf(rank, 1) == PartOf(rank, state));
  }
  residency_.CheckInvariants();
  arenas_.CheckInvariants();
}

TEST_P(PartArenasOnSeveralTest, PartsOnADeviceThatFailedAreDroppedAndTheRanksBeginAnew) {
  const std::vector<Open> ranks = OpenSpread(2);
  const std::string state = MakeBytes(layout_->state_bytes(), 1);
  for (const Open& rank : ranks) SetRow(rank, 0, state);
  EXPECT_EQ(StorePart(ranks[0], 0, "seq", 1, "first").parts_missing, 1u);
  memory_.far(0)->Fail();  // which has the slot
  // Whether the arenas' own thread has noticed it already or not: nothing of the first part is left.
  const StoredRow second = StorePart(ranks[1], 0, "seq", 1, "first");
  EXPECT_TRUE(ReasonOf(second.status) == "UPLOAD_UNKNOWN" || second.parts_missing == 1) << second.status;
  EXPECT_EQ(ReasonOfGet("seq"), "NEVER_CREATED");
  const Open instead = OpenArena(2, {.tp_size = 2, .tp_rank = 0}, memory_.devices()[1]->name());
  SetRow(instead, 0, state);
  EXPECT_EQ(StorePart(instead, 0, "seq", 1, "anew").parts_missing, 1u);
  EXPECT_EQ(StorePart(ranks[1], 0, "seq", 1, "anew").parts_missing, 0u);
  EXPECT_TRUE(Get("seq") == state);
  arenas_.CheckInvariants();
}

#endif

}  // namespace
}  // namespace statepool
