// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/slot_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "server/memory/host_device.h"

namespace statepool {
namespace {

constexpr uint64_t kChunk = 64 << 10;

class SlotPoolTest : public testing::Test {
 protected:
  void MakePool(uint64_t state_bytes, TenantId tenant = 0) {
    pool_ = std::make_unique<SlotPool>(tenant, state_bytes, kChunk);
  }

  // A slot, with a new extent if it takes one.
  Slot Take() {
    std::optional<Slot> slot = pool_->Allocate();
    if (!slot) {
      auto extent = device_->AllocateExtent(pool_->tenant(), pool_->preferred_chunks());
      EXPECT_TRUE(extent.ok()) << extent.status();
      pool_->AddExtent(*std::move(extent));
      slot = pool_->Allocate();
    }
    EXPECT_TRUE(slot.has_value());
    pool_->CheckInvariants(true);
    return *slot;
  }
  void Free(Slot slot) {
    pool_->Free(slot);
    pool_->CheckInvariants(true);
  }

  const std::unique_ptr<HostDevice> device_ =
      *HostDevice::Create({.budget_bytes = 1024 * kChunk, .chunk_bytes = kChunk});
  std::unique_ptr<SlotPool> pool_;
};

TEST_F(SlotPoolTest, AnOwnersSlotsAreForThisOwnerAloneAndForNobodyAfterItsEnd) {
  MakePool(kChunk / 4);
  pool_->AddExtent(*device_->AllocateExtent(0, 1), /*owner=*/7);
  EXPECT_EQ(pool_->owned_bytes(), kChunk);
  EXPECT_FALSE(pool_->Allocate().has_value());
  EXPECT_FALSE(pool_->Allocate(6).has_value());
  const Slot slot = *pool_->Allocate(7), own = Take();
  EXPECT_NE(slot.extent, own.extent);
  pool_->EndOwner(7, /*gone=*/false);
  pool_->CheckInvariants(true);
  EXPECT_FALSE(pool_->Allocate(7).has_value());
  pool_->SetDraining(slot.extent, true);
  pool_->SetDraining(slot.extent, false);
  EXPECT_FALSE(pool_->Allocate(7).has_value());
  Free(slot);
  EXPECT_FALSE(pool_->Allocate(7).has_value());
  EXPECT_EQ(pool_->owned_bytes(), kChunk);
  pool_->EndOwner(7, /*gone=*/true);
  pool_->EndOwner(7, /*gone=*/true);
  pool_->CheckInvariants(true);
  EXPECT_EQ(pool_->owned_bytes(), 0u);
  const Slot other = Take();  // of an extent that is nobody's
  EXPECT_EQ(other.extent, own.extent);
  Free(other);
  EXPECT_TRUE(pool_->has_empty_closed());
  const auto closed = pool_->TakeEmptyOwned(/*closed_only=*/true);
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_TRUE(closed[0]->retired());
  EXPECT_FALSE(pool_->has_empty_closed());
  Free(own);
  EXPECT_TRUE(pool_->TakeEmptyOwned(/*closed_only=*/false).empty());
  EXPECT_EQ(pool_->TakeEmpty(0).size(), 1u);
  pool_->CheckInvariants(true);
}

TEST(ExtentChunks, WasteAtMostAnEighthWhereSixteenChunksCanDoIt) {
  for (uint64_t slot = 256; slot < 20 * kChunk; slot += 7 * 256) {
    const uint64_t chunks = ExtentChunks(slot, kChunk);
    const uint64_t bytes = chunks * kChunk;
    ASSERT_GE(bytes, slot);
    if (chunks > kMaxSharedChunks) {
      ASSERT_LT(bytes - slot, kChunk) << slot;
    }
    if (bytes % slot > bytes / 8) {  // nothing up to 16 would do
      ASSERT_EQ(chunks, (slot + kChunk - 1) / kChunk) << slot;
    }
    for (uint64_t fewer = 1; fewer < chunks && chunks <= kMaxSharedChunks && bytes % slot <= bytes / 8; ++fewer) {
      const uint64_t smaller = fewer * kChunk;
      ASSERT_TRUE(smaller < slot || smaller % slot > smaller / 8) << slot << ": " << fewer << " chunks were enough";
    }
  }
}

TEST(ExtentChunks, AreTheFewestForTypicalStates) {
  constexpr uint64_t kMiB = 1 << 20;
  EXPECT_EQ(ExtentChunks(80'000, 2 * kMiB), 1u);
  EXPECT_EQ(ExtentChunks(2 * kMiB, 2 * kMiB), 1u);
  EXPECT_EQ(ExtentChunks(2'600'192, 2 * kMiB), 4u);  // three states in 8 MiB
  EXPECT_EQ(ExtentChunks(913'000'192, 2 * kMiB), 436u);
}

TEST_F(SlotPoolTest, GivesSlotsThatDoNotOverlap) {
  MakePool(10'000);
  std::set<char*> seen;
  std::vector<Slot> slots;
  for (int i = 0; i < 40; ++i) {
    slots.push_back(Take());
    std::memset(slots.back().data, i, 10'000);
    EXPECT_TRUE(seen.insert(slots.back().data).second);
  }
  for (int i = 0; i < 40; ++i) {
    for (int at : {0, 9'999}) EXPECT_EQ(slots[i].data[at], i);
    Free(slots[i]);
  }
  EXPECT_EQ(pool_->used_slots(), 0u);
}

TEST_F(SlotPoolTest, LeavesPaddingZero) {
  MakePool(1'000);
  EXPECT_EQ(pool_->slot_bytes(), 1'024u);
  const Slot slot = Take();
  std::memset(slot.data, 0xff, 1'000);
  Free(slot);  // Free checks the padding
}

TEST_F(SlotPoolTest, DiesWhenSomeoneWritesThePadding) {
  MakePool(1'000);
  const Slot slot = Take();
  slot.data[1'000] = 1;
  EXPECT_DEATH(pool_->CheckInvariants(true), "padding is not zero");
  slot.data[1'000] = 0;
  Free(slot);
}

TEST_F(SlotPoolTest, DiesWhenASlotIsFreedTwice) {
  MakePool(1'000);
  const Slot slot = Take();
  Free(slot);
  EXPECT_DEATH(pool_->Free(slot), "not in use");
}

TEST_F(SlotPoolTest, RefusesAnExtentOfAnotherTenant) {
  MakePool(1'000, /*tenant=*/1);
  EXPECT_DEATH(pool_->AddExtent(*device_->AllocateExtent(/*tenant=*/2, 1)), "another tenant");
}

TEST_F(SlotPoolTest, FillsOlderExtentsFirstSoThatYoungerOnesRunEmpty) {
  MakePool(kChunk / 2);
  std::vector<Slot> slots;
  for (int i = 0; i < 6; ++i) slots.push_back(Take());
  ASSERT_EQ(pool_->extents(), 3u);
  Free(slots[5]);
  Free(slots[0]);
  const Slot again = Take();
  EXPECT_EQ(again.extent, slots[0].extent);
  Free(slots[4]);
  EXPECT_EQ(pool_->empty_extents(), 1u);
  for (int i : {1, 2, 3}) Free(slots[i]);
  Free(again);
}

TEST_F(SlotPoolTest, GivesEmptyExtentsBackAllButAsManyAsAreKept) {
  MakePool(kChunk);
  std::vector<Slot> slots;
  for (int i = 0; i < 4; ++i) slots.push_back(Take());
  for (Slot slot : slots) Free(slot);
  EXPECT_EQ(pool_->TakeEmpty(1).size(), 3u);
  EXPECT_EQ(device_->used_bytes(), kChunk);
  const Slot again = Take();
  EXPECT_EQ(again.extent, slots[0].extent) << "the oldest stays";
  Free(again);
  EXPECT_EQ(pool_->TakeEmpty(1).size(), 0u);
  EXPECT_EQ(pool_->TakeEmpty(0).size(), 1u);
  EXPECT_EQ(device_->used_bytes(), 0u);
  EXPECT_FALSE(pool_->Allocate().has_value());
  pool_->CheckInvariants(true);
}

TEST_F(SlotPoolTest, AllocatesNothingFromAnExtentThatDrains) {
  MakePool(kChunk / 4);
  const Slot slot = Take();
  pool_->SetDraining(slot.extent, true);
  pool_->CheckInvariants(true);
  EXPECT_FALSE(pool_->Allocate().has_value());
  Free(slot);
  EXPECT_EQ(pool_->TakeEmpty(0).size(), 0u);
  pool_->SetDraining(slot.extent, false);
  EXPECT_EQ(pool_->TakeEmpty(0).size(), 1u);
}

TEST_F(SlotPoolTest, AgreesWithItselfAfterAnyOperations) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << std::endl;
  std::mt19937_64 random(seed);
  MakePool(1 + random() % (3 * kChunk));
  std::vector<Slot> slots;
  for (int i = 0; i < 3'000; ++i) {
    switch (random() % 5) {
      case 0:
      case 1:
        if (slots.size() < 60) slots.push_back(Take());
        break;
      case 2:
      case 3:
        if (!slots.empty()) {
          std::swap(slots[random() % slots.size()], slots.back());
          Free(slots.back());
          slots.pop_back();
        }
        break;
      case 4:
        pool_->TakeEmpty(random() % 3);
        pool_->CheckInvariants(true);
        break;
    }
    ASSERT_EQ(pool_->used_slots(), slots.size());
    ASSERT_EQ(pool_->extent_bytes(), device_->used_bytes());
  }
  for (Slot slot : slots) Free(slot);
}

}  // namespace
}  // namespace statepool
