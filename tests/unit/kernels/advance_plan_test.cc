// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Advance plans against a model of the contract, and their tiles against the plan, byte by byte.
#include "kernels/advance_plan.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "kernels/advance_cases.h"
#include "kernels/advance_tiles.h"

namespace statepool {
namespace {

class AdvancePlanTest : public testing::Test {
 protected:
  AdvancePlanTest() : seed_(std::random_device()()), random_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
    printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }

  AdvanceMove RandomMove(const MoveCase& c) {
    const auto row = static_cast<uint32_t>(Below(random_, c.rows));
    const auto to = Below(random_, 3) == 0 ? static_cast<uint32_t>(Below(random_, c.rows)) : row;
    return {row, to, RandomPath(random_, c)};
  }

  const uint64_t seed_;
  Random random_;
};

TEST_F(AdvancePlanTest, MovesARowToTheStateOfItsPath) {
  for (int round = 0; round < 400; ++round) {
    const MoveCase c = RandomMoveCase(random_);
    const AdvancePlan plan = c.Plan();
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    const AdvanceMove move = RandomMove(c);
    ModelMove(c, move, &expected);
    std::vector<size_t> order(plan.parts().size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const size_t part : order) plan.Move(arena.data(), move, part);
    ASSERT_EQ(arena == expected, true) << "round " << round << ", path " << move.steps.bits();
  }
}

TEST_F(AdvancePlanTest, TilesMoveWhatThePlanMoves) {
  for (int round = 0; round < 150; ++round) {
    MoveCase c = RandomMoveCase(random_);
    if (round % 10 == 0) {
      AddMoveTensor(&c, random_, 4, {{"channel", 9000}, {"state", 2}}, 16);
      AddMoveTensor(&c, random_, 2, {{"tap", 3}, {"channel", 9001}}, 16);
      AddMoveTensor(&c, random_, 2, {{"channel", 9001}, {"tap", 3}}, 2);
    }
    const AdvancePlan plan = c.Plan();
    const absl::StatusOr<AdvanceTiles> tiles = AdvanceTilesOf(plan);
    ASSERT_TRUE(tiles.ok()) << tiles.status();
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    const AdvanceMove move = RandomMove(c);
    for (size_t part = 0; part < plan.parts().size(); ++part) plan.Move(expected.data(), move, part);
    std::vector<size_t> order(tiles->tiles.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const size_t i : order) {
      const AdvanceTile& tile = tiles->tiles[i];
      ASSERT_GT(tile.bytes, 0u);
      ASSERT_LE(uint64_t{tile.bytes} * (tile.window == 0 ? 1 : std::min(tile.steps, 16u)), kTileBytes);
      const std::vector<uint32_t> source = tile.window == 0 ? std::vector<uint32_t>{move.steps.last()}
                                                            : SourceColumns(move.steps, tile.window, tile.steps);
      for (uint32_t at = 0; at < tile.bytes; ++at) {
        uint64_t place = tile.arena_offset + at % tile.run_bytes, index = tile.runs.first + at / tile.run_bytes;
        for (uint32_t a = 0; a < tile.runs.axis_count; ++a) {
          const TileAxis& axis = tiles->axes[tile.runs.axis + a];
          const bool is_last = a + 1 == tile.runs.axis_count;
          place += (is_last ? index : index % axis.size) * axis.row_stride;
          index /= axis.size;
        }
        const bool is_aligned = (place - tile.arena_offset) % tile.runs.alignment == 0;
        ASSERT_TRUE(at % tile.run_bytes != 0 || is_aligned);
        for (size_t column = 0; column < source.size(); ++column) {
          arena[place + move.to_row * tile.row_stride + column * tile.step_stride] =
              arena[place + move.from_row * tile.row_stride + source[column] * tile.step_stride];
        }
      }
    }
    ASSERT_EQ(arena == expected, true) << "round " << round;
  }
}

TEST_F(AdvancePlanTest, OfAChainColumnsMoveUpByOneLessThanTheAcceptedLength) {
  for (uint32_t accepted = 1; accepted <= 5; ++accepted) {
    const std::vector<uint32_t> source = SourceColumns(AcceptedSteps::Chain(accepted), 3, 7);
    ASSERT_EQ(source.size(), 7 - (accepted - 1));
    for (uint32_t i = 0; i < source.size(); ++i) EXPECT_EQ(source[i], i + accepted - 1);
  }
}

TEST_F(AdvancePlanTest, OfATreeTheWindowHasTheLastInputsOfThePath) {
  // K-1 = 3: columns 0 and 1 are old, column 2 + i is step i's.
  EXPECT_EQ(SourceColumns(AcceptedSteps(0b1001), 3, 8), (std::vector<uint32_t>{1, 2, 5, 6, 7}));
  EXPECT_EQ(SourceColumns(AcceptedSteps(0b10110), 3, 8), (std::vector<uint32_t>{3, 4, 6, 7}));
  EXPECT_EQ(SourceColumns(AcceptedSteps(0b100), 3, 8), (std::vector<uint32_t>{0, 1, 4, 5, 6, 7}));
  EXPECT_EQ(SourceColumns(AcceptedSteps(0b101), 1, 4), (std::vector<uint32_t>{2, 3}));
}

TEST_F(AdvancePlanTest, SixtyFourStepsAndOffsetsBeyondThirtyTwoBitsAreMoved) {
  constexpr uint64_t kFar = uint64_t{5} << 30;
  AdvanceSegment segment;
  segment.arena_offset = 8;
  segment.row_stride = kFar;
  segment.step_stride = segment.element_bytes = 4;
  segment.steps = 66, segment.window = 2;
  EXPECT_FALSE(AdvancePlan::Checked({&segment, 1}, {kFar, 2, 64}).has_value());
  const std::optional<AdvancePlan> plan = AdvancePlan::Checked({&segment, 1}, {kFar + 8 + 66 * 4, 2, 64});
  ASSERT_TRUE(plan.has_value());
  // Addresses alone, but for the pages that are touched.
  const size_t bytes = kFar + 8 + 66 * 4;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const columns = reinterpret_cast<uint32_t*>(static_cast<char*>(memory) + 8 + kFar);
  std::iota(columns, columns + 66, 0);
  for (size_t part = 0; part < plan->parts().size(); ++part)
    plan->Move(static_cast<char*>(memory), {1, 1, AcceptedSteps::Chain(64)}, part);
  EXPECT_EQ(std::vector<uint32_t>(columns, columns + 5), (std::vector<uint32_t>{63, 64, 65, 3, 4}));
  munmap(memory, bytes);
}

TEST_F(AdvancePlanTest, SegmentsThatLeaveTheArenaOrHaveTooFewStepsAreNone) {
  for (int round = 0; round < 300; ++round) {
    MoveCase c = RandomMoveCase(random_);
    const std::vector<AdvanceSegment> segments = c.Segments();
    const CopyArena arena{c.arena_bytes, c.rows, c.steps_max()};
    ASSERT_TRUE(AdvancePlan::Checked(segments, arena).has_value()) << "round " << round;
    const size_t i = Below(random_, segments.size());
    const auto refused = [&](auto spoil) {
      std::vector<AdvanceSegment> spoilt = segments;
      spoil(&spoilt[i]);
      return !AdvancePlan::Checked(spoilt, arena).has_value();
    };
    EXPECT_TRUE(refused([&](AdvanceSegment* s) { s->arena_offset = c.arena_bytes; }));
    EXPECT_TRUE(refused([](AdvanceSegment* s) { s->arena_offset = ~uint64_t{0}; }));
    EXPECT_TRUE(refused([](AdvanceSegment* s) { s->element_bytes = 3; }));
    EXPECT_TRUE(refused([](AdvanceSegment* s) { s->axes.push_back({uint64_t{1} << 40, uint64_t{1} << 40}); }));
    EXPECT_TRUE(refused([](AdvanceSegment* s) { s->axes.push_back({0, 1}); }));
    EXPECT_TRUE(refused([](AdvanceSegment* s) { s->window = s->steps + 1; }));
    EXPECT_TRUE(
        refused([&](AdvanceSegment* s) { s->steps = s->window + c.steps_max() - 1 - (s->window > 0 ? 1 : 0); }));
  }
}

TEST_F(AdvancePlanTest, TensorsThatAreNoneOfTheArenaAreRefused) {
  MoveCase c;
  c.rows = 2, c.steps = 3, c.num_spec = 2;
  AddMoveTensor(&c, random_, 2, {{"tap", 3}, {"channel", 4}}, 16);
  const MoveTensor good = c.tensors[0];
  std::vector<AdvanceSegment> segments;
  EXPECT_TRUE(AddAdvanceSegments(good.seen(), 3, 2, &segments));
  EXPECT_FALSE(AddAdvanceSegments(good.seen(), 3, 0, &segments));  // one step of three, and no columns
  EXPECT_FALSE(AddAdvanceSegments(good.seen(), 4, 2, &segments));  // too few columns
  EXPECT_FALSE(AddAdvanceSegments(good.seen(), 3, 5, &segments));  // no window before them
  EXPECT_FALSE(AddAdvanceSegments(good.seen(), 0, 0, &segments));  // an axis of steps that the arena has not
  MoveTensor rowless = good;
  std::replace(rowless.axes.begin(), rowless.axes.end(), std::string("row"), std::string("line"));
  EXPECT_FALSE(AddAdvanceSegments(rowless.seen(), 3, 2, &segments));
}

// ---- what holds

TEST(AcceptedStepsTest, APathAscendsWithinTheSteps) {
  const auto bits = [](std::vector<uint32_t> path, uint32_t steps_max) {
    const std::optional<AcceptedSteps> steps = PathOf(path, steps_max);
    return steps ? steps->bits() : 0;
  };
  EXPECT_EQ(bits({0, 1, 2}, 3), 0b111u);
  EXPECT_EQ(bits({1, 4}, 5), 0b10010u);
  EXPECT_EQ(bits({63}, 64), uint64_t{1} << 63);
  EXPECT_EQ(bits({}, 5), 0u);
  EXPECT_EQ(bits({0, 0}, 5), 0u);
  EXPECT_EQ(bits({2, 1}, 5), 0u);
  EXPECT_EQ(bits({0, 5}, 5), 0u);
  EXPECT_EQ(bits({64}, 64), 0u);
  EXPECT_EQ(bits({~0u}, 64), 0u);
}

TEST(AcceptedStepsTest, RowsAreSkippedOnlyWhenThatIsAsked) {
  using enum AdvanceOutcome;
  const auto outcome = [](std::optional<uint32_t> length, std::vector<uint32_t> path, AdvanceRules rules) {
    return AcceptedOf(length, path, /*is_to_another=*/false, 4, rules).outcome;
  };
  EXPECT_EQ(AcceptedOf(1, {}, /*is_to_another=*/true, 4, {}).outcome, kMoved);
  EXPECT_EQ(outcome(1, {}, {}), kInPlace);
  EXPECT_EQ(outcome(4, {}, {}), kMoved);
  EXPECT_EQ(outcome(0, {}, {}), kBadLength);
  EXPECT_EQ(outcome(5, {}, {}), kBadLength);
  EXPECT_EQ(outcome(0, {}, {.skip_none = true}), kSkippedNone);
  EXPECT_EQ(outcome(5, {}, {.skip_none = true}), kBadLength);
  EXPECT_EQ(outcome(5, {}, {.skip_out_of_range = true}), kSkippedOutOfRange);
  EXPECT_EQ(outcome(0, {}, {.skip_out_of_range = true}), kBadLength);
  EXPECT_EQ(outcome(3, {}, {.verified_length = 3}), kSkippedAll);
  EXPECT_EQ(outcome(2, {}, {.verified_length = 3}), kMoved);
  EXPECT_EQ(outcome(9, {}, {.verified_length = 3}), kSkippedAll);
  EXPECT_EQ(outcome(0, {}, {.verified_length = 3}), kBadLength);
  EXPECT_EQ(outcome({}, {0, 2}, {}), kMoved);
  EXPECT_EQ(outcome({}, {0}, {}), kInPlace);
  EXPECT_EQ(outcome({}, {1}, {}), kMoved);
  EXPECT_EQ(outcome({}, {0, 2, 3}, {.verified_length = 3}), kSkippedAll);
  EXPECT_EQ(outcome({}, {0, 4}, {.skip_out_of_range = true, .verified_length = 2}), kBadPath);
  EXPECT_EQ(outcome({}, {}, {}), kNoLength);
  EXPECT_EQ(outcome(2, {0, 1}, {}), kLengthAndPath);
}

TEST(AcceptedStepsTest, APathsFirstTokensAreItsLowestSteps) {
  const AcceptedSteps path(0b1101100);
  EXPECT_EQ(path.First(1).bits(), 0b100u);
  EXPECT_EQ(path.First(3).bits(), 0b101100u);
  EXPECT_EQ(path.First(4), path);
  EXPECT_EQ(AcceptedSteps::Chain(64).First(64), AcceptedSteps::Chain(64));
}

TEST(ToStoreTest, ItIsTheStateOfALengthOrPath) {
  using enum StoreOutcome;
  const StoreRules rules{.steps_max = 4};
  const ToStore one = ToStoreOf(std::nullopt, {}, 9, rules);
  EXPECT_EQ(one.outcome, kStored);
  EXPECT_EQ(one.length, 1u);
  EXPECT_EQ(one.position, 9);
  const ToStore path = ToStoreOf(std::nullopt, {0, 2}, 9, rules);
  EXPECT_EQ(path.length, 3u);
  EXPECT_EQ(path.steps->bits(), 0b101u);

  const auto outcome = [&](std::optional<uint32_t> length, std::vector<uint32_t> path, bool has_windows = false,
                           bool skip_none = false) {
    return ToStoreOf(length, path, 9, {.steps_max = 4, .has_windows = has_windows, .skip_none = skip_none}).outcome;
  };
  EXPECT_EQ(outcome(4, {}), kStored);
  EXPECT_EQ(outcome(5, {}), kBadLength);
  EXPECT_EQ(outcome(0, {}), kBadLength);
  EXPECT_EQ(outcome(0, {}, false, true), kSkipped);
  EXPECT_EQ(outcome(1, {0}), kLengthAndPath);
  EXPECT_EQ(outcome({}, {1, 1}), kBadPath);
  EXPECT_EQ(outcome({}, {4}), kBadPath);
  EXPECT_EQ(outcome({}, {0, 1}, true), kStored);
  EXPECT_EQ(outcome({}, {0, 2}, true), kTreeOfWindows);
}

// The formula: R = N - a + 1, A = floor(N / B) * B; if A >= R and A > 0, accepted length A - R + 1 at position A.
TEST(ToStoreTest, AlignModeIsItsFormula) {
  for (int64_t block = 1; block <= 9; ++block) {
    for (int64_t tokens = 1; tokens <= 6; ++tokens) {
      for (int64_t position = 0; position <= 30; ++position) {
        const ToStore to_store = ToStoreOf(static_cast<uint32_t>(tokens), {}, position,
                                           {.steps_max = 6, .align = static_cast<uint64_t>(block)});
        const int64_t first = position - tokens + 1, at = position / block * block;
        const bool is_stored = at >= first && at > 0;
        EXPECT_EQ(to_store.outcome, is_stored ? StoreOutcome::kStored : StoreOutcome::kSkipped);
        EXPECT_EQ(to_store.length, is_stored ? at - first + 1 : 0);
        EXPECT_EQ(to_store.steps->length(), tokens) << "the row is advanced by all of them";
        EXPECT_EQ(to_store.position, is_stored ? at : to_store.position);
      }
    }
  }
  const StoreRules rules{.steps_max = 8, .align = 4};
  EXPECT_EQ(ToStoreOf(std::nullopt, {0, 3, 5, 6}, 10, rules).length, 4u) << "of a path so many first steps: 0 and 3";
  EXPECT_EQ(ToStoreOf(1, {}, -4, rules).position, -4) << "no position: for others to refuse";
  EXPECT_EQ(ToStoreOf(1, {}, INT64_MAX, rules).position, INT64_MAX);
  EXPECT_EQ(ToStoreOf(1, {}, 7, {.align = UINT64_MAX}).outcome, StoreOutcome::kSkipped);
}

TEST(FindRowClashTest, ARowIsWrittenOnceOrRead) {
  const auto clash = [](std::vector<AdvanceMove> moves) { return FindRowClash(moves); };
  EXPECT_FALSE(clash({{0, 0}, {1, 2}, {1, 3}}).has_value());
  const std::optional<RowClash> twice = clash({{0, 0}, {1, 0}});
  EXPECT_EQ(twice->item, 1u);
  EXPECT_TRUE(twice->is_to_row);
  const std::optional<RowClash> read = clash({{1, 2}, {1, 1}});
  EXPECT_EQ(read->item, 0u);
  EXPECT_FALSE(read->is_to_row);
}

}  // namespace
}  // namespace statepool
