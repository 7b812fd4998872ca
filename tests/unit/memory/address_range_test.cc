// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/address_range.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <random>

namespace statepool {
namespace {

TEST(AddressRange, HasRoomForAnyExtentsThatTheBudgetAllows) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  for (const uint64_t budget : {1, 2, 3, 4, 5, 7, 8, 9, 10, 31, 64, 100, 1000}) {
    AddressRange range(budget);
    std::map<uint64_t, uint64_t> living;  // place -> size
    uint64_t used = 0;
    for (int step = 0; step < 3000; ++step) {
      const uint64_t size = 1 + random() % (step % 7 == 0 ? budget : std::min<uint64_t>(budget, 5));
      if (used + size <= budget) {
        const uint64_t place = range.Take(size);
        ASSERT_LE(place + size, range.total());
        const auto after = living.lower_bound(place);
        ASSERT_TRUE(after == living.end() || place + size <= after->first) << "it overlaps with the next";
        if (after != living.begin()) {
          const auto before = std::prev(after);
          ASSERT_LE(before->first + before->second, place) << "it overlaps with the one before";
        }
        living.emplace(place, size);
        used += size;
      } else {
        const auto freed = std::next(living.begin(), static_cast<int64_t>(random() % living.size()));
        range.GiveBack(freed->first, freed->second);
        used -= freed->second;
        living.erase(freed);
      }
    }
  }
}

TEST(AddressRange, HoldsTheWholeBudgetInExtentsOfEachSize) {
  for (uint64_t size = 1; size <= 40; ++size) {
    AddressRange range(40);
    for (uint64_t used = 0; used + size <= 40; used += size) EXPECT_LE(range.Take(size) + size, range.total());
  }
}

TEST(AddressRange, TakesAFewTimesTheBudget) {
  EXPECT_EQ(AddressRange(1).total(), 1u);
  EXPECT_LE(AddressRange(4096).total(), 21 * 4096u);
  EXPECT_LE(AddressRange(1 << 16).total(), 32u << 16);
}

}  // namespace
}  // namespace statepool
