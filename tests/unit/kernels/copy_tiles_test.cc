// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Tiles against the plan that they were cut from: a model of a device does what each says, byte by byte.
#include "kernels/copy_tiles.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/plan_cases.h"

namespace statepool {
namespace {

class CopyTilesTest : public testing::Test {
 protected:
  CopyTilesTest() : seed_(std::random_device()()), random_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
    printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }

  const uint64_t seed_;
  Random random_;
};

CopyTiles Cut(const CopyPlan& plan) {
  absl::StatusOr<CopyTiles> tiles = TilesOf(plan);
  EXPECT_TRUE(tiles.ok()) << tiles.status();
  return *std::move(tiles);
}

uint32_t Divided(uint32_t n, const TileAxis& axis) {
  const uint32_t t = static_cast<uint32_t>((uint64_t{n} * axis.magic) >> 32);
  return (t + ((n - t) >> axis.shift_1)) >> axis.shift_2;
}

// Calls visit(offset in the state, offset in the row) for each byte of the tile.
template <typename Tiles, typename Visit>
void ForEachByte(const Tiles& tiles, const CopyTile& tile, Visit visit) {
  if (tile.kind == TileKind::kLinear) {
    for (uint32_t i = 0; i < tile.bytes; ++i) visit(tile.state_offset + i, tile.arena_offset + i);
  } else if (tile.kind == TileKind::kRuns) {
    for (uint32_t i = 0; i < tile.bytes; ++i) {
      uint32_t index = tile.runs.first + i / tile.run_bytes;
      uint64_t place = tile.arena_offset + i % tile.run_bytes;
      for (uint32_t a = 0; a < tile.runs.axis_count; ++a) {
        const TileAxis& axis = tiles.axes[tile.runs.axis + a];
        const uint32_t outer = Divided(index, axis);
        EXPECT_EQ(outer, index / axis.size);
        place += (index - outer * axis.size) * axis.row_stride;
        index = outer;
      }
      visit(tile.state_offset + i, place);
    }
  } else {
    for (uint32_t y = 0; y < tile.size.y; ++y) {
      for (uint32_t i = 0; i < uint32_t{tile.size.x} * tile.run_bytes; ++i) {
        visit(tile.state_offset + y * tile.transposed.y_state_stride + i,
              tile.arena_offset + i / tile.run_bytes * tile.transposed.x_row_stride + y * tile.transposed.y_row_stride +
                  i % tile.run_bytes);
      }
    }
  }
}

TEST_F(CopyTilesTest, CopyEachByteOfTheStateOnceAndClearWhatClearAloneWrites) {
  for (int round = 0; round < 300; ++round) {
    Case c = RandomCase(random_);
    if (round % 10 == 0) AddTensor(&c, 4, {3, 70, 64 + Below(random_, 40)}, {0, 2, 1}, {}, 64);
    if (round % 10 == 1) AddTensor(&c, 2, {50'000}, {0}, {}, 2);
    if (round % 10 == 2) AddTensor(&c, 2, {700, 4}, {1, 0}, {true, 1, c.steps}, 2);
    const CopyPlan plan = c.Plan();
    const CopyTiles tiles = Cut(plan);
    const uint32_t row = Below(random_, c.rows), accepted = 1 + Below(random_, c.steps);
    const std::vector<uint64_t> places = PlacesOf(c, row, accepted);
    std::vector<int> copied(c.state_bytes);
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    plan.Clear(expected.data(), row);
    for (const uint64_t place : PlacesOf(c, row, 1)) expected[place] = arena[place];
    for (size_t i = 0; i < tiles.tiles.size(); ++i) {
      const CopyTile& tile = tiles.tiles[i];
      uint32_t bytes = 0;
      ForEachByte(tiles, tile, [&](uint64_t at, uint64_t place) {
        ++bytes;
        place += row * tile.row_stride;
        if (i >= tiles.copy_count) {
          arena[place] = '\0';
        } else {
          ++copied[at];
          ASSERT_EQ(place + (accepted - 1) * tile.accept_stride, places[at]) << "round " << round << ", byte " << at;
        }
      });
      ASSERT_LE(bytes, kTileBytes);
      ASSERT_GT(bytes, 0u);
      if (tile.kind == TileKind::kTransposed) {
        ASSERT_LE(tile.size.x * (tile.size.y | 1u) * tile.run_bytes, kTransposedTileBytes);
        ASSERT_TRUE(tiles.has_transposed);
      }
    }
    ASSERT_EQ(copied, std::vector<int>(c.state_bytes, 1)) << "round " << round;
    ASSERT_EQ(arena == expected, true) << "round " << round;
  }
}

TEST_F(CopyTilesTest, OfLeavesCopyEachByteOfEachLeafOnceAndNoneOfAnother) {
  for (int round = 0; round < 300; ++round) {
    Case c = RandomCase(random_);
    if (round % 10 == 0) AddTensor(&c, 4, {3, 130, 64 + Below(random_, 100)}, {0, 2, 1}, {}, 64);
    if (round % 10 == 1) AddTensor(&c, 2, {1 + Below(random_, 100'000)}, {0}, {}, 2);
    if (round % 10 == 2) AddTensor(&c, 2, {20'000, 4}, {1, 0}, {true, 1, c.steps}, 2);
    if (round % 10 == 3) AddTensor(&c, 4, {40, 1024, 2}, {1, 0, 2}, {}, 4);
    const CopyPlan plan = c.Plan();
    const absl::StatusOr<LeafTiles> tiles = LeafTilesOf(plan);
    ASSERT_TRUE(tiles.ok()) << tiles.status();
    const uint64_t leaves = LeafCount(c.state_bytes);
    ASSERT_EQ(tiles->first.size(), leaves + 1);
    ASSERT_EQ(tiles->first.front(), 0u);
    ASSERT_EQ(tiles->first.back(), tiles->tiles.size());
    const uint32_t row = Below(random_, c.rows), accepted = 1 + Below(random_, c.steps);
    const std::vector<uint64_t> places = PlacesOf(c, row, accepted);
    std::vector<int> copied(c.state_bytes);
    for (uint64_t leaf = 0; leaf < leaves; ++leaf) {
      ASSERT_LT(tiles->first[leaf], tiles->first[leaf + 1]);
      for (uint32_t i = tiles->first[leaf]; i < tiles->first[leaf + 1]; ++i) {
        const CopyTile& tile = tiles->tiles[i];
        uint32_t bytes = 0;
        ForEachByte(*tiles, tile, [&](uint64_t at, uint64_t place) {
          ++bytes;
          ++copied[at];
          ASSERT_EQ(at / kLeafBytes, leaf) << "round " << round << ", byte " << at;
          ASSERT_EQ(place + row * tile.row_stride + (accepted - 1) * tile.accept_stride, places[at])
              << "round " << round << ", byte " << at;
        });
        ASSERT_LE(bytes, kLeafTileBytes);
        ASSERT_GT(bytes, 0u);
      }
    }
    ASSERT_EQ(copied, std::vector<int>(c.state_bytes, 1)) << "round " << round;
  }
}

TEST_F(CopyTilesTest, AClearedRangeOfSeveralSegmentsLeavesThePlacesOfAll) {
  Case c;
  c.arena_bytes = 64;
  c.state_bytes = 8;
  // Two columns each of four, of one range of 16 bytes; the second tensor names the range, and one that overlaps it.
  c.segments = {{0, 4, 32, 0, 1, {{4, 4}}, 0, 0}, {4, 6, 32, 0, 1, {{2, 8}, {2, 4}}, 4, 16}};
  c.segments[0].clear_offset = 2, c.segments[0].clear_bytes = 4;
  const CopyTiles tiles = Cut(c.Plan());
  std::multiset<uint64_t> cleared;
  for (size_t i = tiles.copy_count; i < tiles.tiles.size(); ++i) {
    ForEachByte(tiles, tiles.tiles[i], [&](uint64_t, uint64_t place) { cleared.insert(place); });
  }
  EXPECT_EQ(cleared, (std::multiset<uint64_t>{2, 3, 5, 7, 9, 11, 13, 15, 17, 19}));
}

TEST_F(CopyTilesTest, TransposedMatricesAreTilesForSharedMemoryAndTapsAreFew) {
  Case c;
  AddTensor(&c, 4, {128, 128}, {1, 0}, {}, 0);
  AddTensor(&c, 4, {5120, 3}, {1, 0}, {}, 0);
  AddTensor(&c, 4, {5120, 16}, {0, 1}, {}, 0);
  const CopyTiles tiles = Cut(c.Plan());
  std::vector<int> kinds(3);
  for (const CopyTile& tile : tiles.tiles) ++kinds[static_cast<size_t>(tile.kind)];
  EXPECT_EQ(kinds, (std::vector<int>{20, 0, 4 + 4}));
}

TEST_F(CopyTilesTest, ManySegmentsAreCutInGoodTime) {
  Case c;
  c.rows = 2;
  for (int i = 0; i < 1 << 16; ++i) AddTensor(&c, 4, {64, 4}, {0, 1}, {true, 0, 1}, 0);
  const CopyTiles tiles = Cut(c.Plan());
  EXPECT_EQ(tiles.copy_count, size_t{1} << 16);
}

TEST_F(CopyTilesTest, DivisionByMultiplicationIsExact) {
  for (int round = 0; round < 2000; ++round) {
    const TileAxis axis = TileAxisOf(1 + Below(random_, round < 1000 ? 300 : (uint64_t{1} << 32) - 1), 0);
    const uint32_t size = axis.size, most = ~0u / size * size;
    for (const uint32_t n : {0u, 1u, size - 1, size, ~0u, most, most - 1, static_cast<uint32_t>(random_())}) {
      ASSERT_EQ(Divided(n, axis), n / size) << n << " by " << size;
    }
  }
}

}  // namespace
}  // namespace statepool
