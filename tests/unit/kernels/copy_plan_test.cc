// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Copies against a model that moves one byte at a time, where the plan says that it lies.
#include "kernels/copy_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "kernels/plan_cases.h"

namespace statepool {
namespace {

constexpr CopyHint kHints[] = {CopyHint::kCached, CopyHint::kStreaming};

// Some of 0..limit, ascending, with both ends.
std::vector<uint64_t> RandomCuts(Random& random, uint64_t limit, uint64_t count) {
  std::vector<uint64_t> cuts = {0, limit};
  while (count-- > 0) cuts.push_back(Below(random, limit + 1));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

class CopyPlanTest : public testing::Test {
 protected:
  CopyPlanTest() : seed_(std::random_device()()), random_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
    printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }

  const uint64_t seed_;
  Random random_;
};

TEST_F(CopyPlanTest, GatherGivesTheBytesThatTheModelGivesAndTouchesNoOther) {
  for (int round = 0; round < 300; ++round) {
    const Case c = RandomCase(random_);
    const CopyPlan plan = c.Plan();
    const std::string state = RandomBytes(random_, c.state_bytes);
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    const uint64_t begin = Below(random_, c.state_bytes + 1);
    const uint64_t end = begin + Below(random_, c.state_bytes + 1 - begin);
    const uint32_t row = Below(random_, c.rows);
    plan.Gather(state.data(), begin, end, arena.data(), {&row, 1}, kHints[round % 2]);
    ModelGather(c, state, begin, end, row, &expected);
    ASSERT_EQ(arena == expected, true) << "round " << round << ", bytes " << begin << " to " << end;
  }
}

TEST_F(CopyPlanTest, GatherIntoSeveralRowsIsThatIntoEach) {
  for (int round = 0; round < 100; ++round) {
    const Case c = RandomCase(random_);
    const CopyPlan plan = c.Plan();
    const std::string state = RandomBytes(random_, c.state_bytes);
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    std::vector<uint32_t> rows(c.rows);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random_);
    rows.resize(Below(random_, c.rows + 1));
    const uint64_t begin = Below(random_, c.state_bytes + 1);
    plan.Gather(state.data(), begin, c.state_bytes, arena.data(), rows, kHints[round % 2]);
    for (const uint32_t row : rows) ModelGather(c, state, begin, c.state_bytes, row, &expected);
    ASSERT_EQ(arena == expected, true) << "round " << round << ", " << rows.size() << " rows";
  }
}

TEST_F(CopyPlanTest, ScatterTakesTheStepThatTheAcceptedLengthNames) {
  for (int round = 0; round < 300; ++round) {
    const Case c = RandomCase(random_);
    const CopyPlan plan = c.Plan();
    const std::string arena = RandomBytes(random_, c.arena_bytes);
    const uint32_t row = Below(random_, c.rows), accepted = 1 + Below(random_, c.steps);
    const uint64_t begin = Below(random_, c.state_bytes + 1);
    const uint64_t end = begin + Below(random_, c.state_bytes + 1 - begin);
    std::string out(end - begin + 2, '!');
    plan.Scatter(arena.data(), row, accepted, begin, end, out.data() + 1, kHints[round % 2]);
    const std::string expected = "!" + ModelScatter(c, arena, row, accepted).substr(begin, end - begin) + "!";
    ASSERT_EQ(out == expected, true) << "round " << round << ", bytes " << begin << " to " << end;
  }
}

TEST_F(CopyPlanTest, PiecesCutAnywhereAreTheWhole) {
  for (int round = 0; round < 100; ++round) {
    const Case c = RandomCase(random_);
    const CopyPlan plan = c.Plan();
    const std::string state = RandomBytes(random_, c.state_bytes);
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    std::string back(c.state_bytes, '\0');
    const uint32_t row = Below(random_, c.rows);
    const std::vector<uint64_t> cuts = RandomCuts(random_, c.state_bytes, Below(random_, 50));
    for (size_t i = 1; i < cuts.size(); ++i) {
      plan.Gather(state.data(), cuts[i - 1], cuts[i], arena.data(), {&row, 1}, kHints[round % 2]);
      plan.Scatter(arena.data(), row, 1, cuts[i - 1], cuts[i], back.data() + cuts[i - 1], kHints[i % 2]);
    }
    ModelGather(c, state, 0, c.state_bytes, row, &expected);
    ASSERT_EQ(arena == expected, true) << "round " << round;
    ASSERT_EQ(back == state, true) << "round " << round;
  }
}

TEST_F(CopyPlanTest, EveryPairOfCutsOfASmallStateGivesItsBytes) {
  Case c;
  c.steps = 2;
  AddTensor(&c, 4, {2, 3, 2}, {1, 2, 0}, {}, 4);
  AddTensor(&c, 2, {5, 3}, {0, 1}, {true, 1, 1}, 2);
  AddTensor(&c, 8, {3}, {0}, {}, 0);
  const CopyPlan plan = c.Plan();
  const std::string arena = RandomBytes(random_, c.arena_bytes);
  for (uint32_t accepted = 1; accepted <= 2; ++accepted) {
    const std::string state = ModelScatter(c, arena, 0, accepted);
    for (uint64_t begin = 0; begin <= c.state_bytes; ++begin) {
      for (uint64_t end = begin; end <= c.state_bytes; ++end) {
        std::string out(end - begin, '\0');
        plan.Scatter(arena.data(), 0, accepted, begin, end, out.data(), CopyHint::kCached);
        ASSERT_EQ(out, state.substr(begin, end - begin)) << begin << " to " << end;
      }
    }
  }
}

TEST_F(CopyPlanTest, LeavesAreTheStateAndHaveItsHashes) {
  for (int round = 0; round < 60; ++round) {
    Case c = RandomCase(random_);
    // Some states of several leaves, whole ones among them.
    if (round % 3 == 1) AddTensor(&c, 4, {3, 64, 64 + Below(random_, 40)}, {0, 2, 1}, {}, 64);
    if (round % 3 == 2) AddTensor(&c, 1, {kLeafBytes * 3 - c.state_bytes % kLeafBytes}, {0}, {}, 3);
    const CopyPlan plan = c.Plan();
    const std::string arena = RandomBytes(random_, c.arena_bytes);
    const uint32_t row = Below(random_, c.rows), accepted = 1 + Below(random_, c.steps);
    const std::string expected = ModelScatter(c, arena, row, accepted);
    const std::vector<uint64_t> cuts = RandomCuts(random_, LeafCount(c.state_bytes), 2);
    std::string state = "!" + std::string(c.state_bytes, '\0') + "!";
    std::vector<LeafHash> hashes(LeafCount(c.state_bytes));
    for (size_t i = 1; i < cuts.size(); ++i) {
      plan.ScatterLeaves(arena.data(), row, accepted, cuts[i - 1], cuts[i], state.data() + 1,
                         hashes.data() + cuts[i - 1], kHints[(round + i) % 2]);
    }
    ASSERT_EQ(state == "!" + expected + "!", true) << "round " << round;
    ASSERT_EQ(hashes, HashLeaves(expected)) << "round " << round;
  }
}

TEST_F(CopyPlanTest, LeavesOutsideTheRangeStayAsTheyAre) {
  Case c;
  AddTensor(&c, 2, {4 * kLeafBytes / 2 + 5}, {0}, {}, 0);
  const CopyPlan plan = c.Plan();
  const std::string arena = RandomBytes(random_, c.arena_bytes);
  std::string state(c.state_bytes, '!'), expected = state;
  const std::string all = ModelScatter(c, arena, 0, 1);
  expected.replace(kLeafBytes, 2 * kLeafBytes, all, kLeafBytes, 2 * kLeafBytes);
  std::vector<LeafHash> hashes(4, 7);
  plan.ScatterLeaves(arena.data(), 0, 1, 1, 3, state.data(), hashes.data(), CopyHint::kStreaming);
  EXPECT_EQ(state == expected, true);
  EXPECT_EQ(hashes[0], HashLeaf(absl::string_view(all).substr(kLeafBytes, kLeafBytes)));
  EXPECT_EQ(hashes[1], HashLeaf(absl::string_view(all).substr(2 * kLeafBytes, kLeafBytes)));
  EXPECT_EQ(hashes[2], 7u);
}

// Tiles, runs and streams at sizes that random shapes seldom have: both sides large, at any alignment.
TEST_F(CopyPlanTest, LargeTransposedAndContiguousTensorsAreCopiedAtAnyAlignment) {
  for (const uint32_t element_bytes : {1u, 2u, 4u, 8u}) {
    Case c;
    c.rows = 2;
    AddTensor(&c, element_bytes, {130, 257}, {1, 0}, {}, element_bytes);
    AddTensor(&c, element_bytes, {2, 67, 5, 33}, {0, 3, 2, 1}, {}, element_bytes);
    AddTensor(&c, element_bytes, {9, 700}, {0, 1}, {}, 3 * element_bytes);
    AddTensor(&c, element_bytes, {1000, 3}, {1, 0}, {true, 1, 2}, 0);
    AddTensor(&c, element_bytes, {7, 3, 20'000 / element_bytes}, {1, 0, 2}, {}, element_bytes);
    const CopyPlan plan = c.Plan();
    for (uint64_t shift = 0; shift < 64; shift += 13) {
      for (const CopyHint hint : kHints) {
        const std::string state = RandomBytes(random_, c.state_bytes);
        std::string arena(c.arena_bytes + shift, '!'), back(c.state_bytes + shift, '!'), expected(c.arena_bytes, '!');
        const uint32_t row = 1;
        plan.Gather(state.data(), 0, c.state_bytes, arena.data() + shift, {&row, 1}, hint);
        ModelGather(c, state, 0, c.state_bytes, row, &expected);
        ASSERT_EQ(arena.substr(shift) == expected, true) << element_bytes << " bytes, shift " << shift;
        plan.Scatter(arena.data() + shift, row, 1, 0, c.state_bytes, back.data() + shift, hint);
        ASSERT_EQ(back.substr(shift) == state, true) << element_bytes << " bytes, shift " << shift;
      }
    }
  }
}

TEST_F(CopyPlanTest, ClearMakesOneRowsColumnsZeroAndGatherFillsWhatIsTheStates) {
  for (int round = 0; round < 100; ++round) {
    const Case c = RandomCase(random_);
    const CopyPlan plan = c.Plan();
    const std::string state = RandomBytes(random_, c.state_bytes);
    std::string arena = RandomBytes(random_, c.arena_bytes), expected = arena;
    const uint32_t row = Below(random_, c.rows);
    plan.Clear(arena.data(), row);
    for (const CopySegment& segment : c.segments) {
      const uint64_t begin = segment.clear_offset + row * segment.row_stride;
      for (uint64_t i = 0; i < segment.clear_bytes; ++i) expected[begin + i] = '\0';
    }
    ASSERT_EQ(arena == expected, true) << "round " << round;
    plan.Gather(state.data(), 0, c.state_bytes, arena.data(), {&row, 1}, CopyHint::kCached);
    ModelGather(c, state, 0, c.state_bytes, row, &expected);
    ASSERT_EQ(arena == expected, true) << "round " << round;
  }
}

TEST_F(CopyPlanTest, AStateOfOneByteIsCopied) {
  Case c;
  AddTensor(&c, 1, {}, {}, {}, 5);
  const CopyPlan plan = c.Plan();
  std::string arena(c.arena_bytes, '!'), expected = arena, state = "xy";
  const uint32_t row = 0;
  for (const CopyHint hint : kHints) {
    plan.Gather("s", 0, 0, arena.data(), {&row, 1}, hint);
    plan.Gather("s", 1, 1, arena.data(), {&row, 1}, hint);
    plan.Gather("s", 0, 1, arena.data(), {}, hint);
    EXPECT_EQ(arena, expected);
  }
  expected[5] = 's';
  plan.Gather("s", 0, 1, arena.data(), {&row, 1}, CopyHint::kStreaming);
  EXPECT_EQ(arena, expected);
  LeafHash hash = 0;
  plan.ScatterLeaves(arena.data(), 0, 1, 0, 0, state.data(), &hash, CopyHint::kStreaming);
  EXPECT_EQ(state, "xy");
  plan.ScatterLeaves(arena.data(), 0, 1, 0, 1, state.data(), &hash, CopyHint::kStreaming);
  EXPECT_EQ(state, "sy");
  EXPECT_EQ(hash, HashLeaf("s"));
}

TEST_F(CopyPlanTest, APlaceBeyondFourGiBIsReached) {
  CopySegment segment;
  segment.arena_offset = 16;
  segment.row_stride = (uint64_t{5} << 30) + 8;
  segment.accept_stride = 32;
  segment.element_bytes = 8;
  segment.axes = {{4, 8}};
  const CopyPlan plan({segment}, 32);
  // The row alone, where an arena would have it.
  std::string row_bytes(64, '!'), back(32, '\0');
  const uint32_t row = 3;
  char* arena = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(row_bytes.data()) - row * segment.row_stride);
  const std::string state = RandomBytes(random_, 32);
  plan.Gather(state.data(), 0, 32, arena, {&row, 1}, CopyHint::kCached);
  EXPECT_EQ(row_bytes, std::string(16, '!') + state + std::string(16, '!'));
  plan.Scatter(arena, row, 1, 0, 32, back.data(), CopyHint::kCached);
  EXPECT_EQ(back, state);
}

#ifndef __SANITIZE_THREAD__  // the race is what it is about
TEST_F(CopyPlanTest, HashesAreOfTheBytesWrittenAlsoWhenTheRowChangesMeanwhile) {
  Case c;
  AddTensor(&c, 4, {3 * kLeafBytes / 4}, {0}, {}, 0);
  const CopyPlan plan = c.Plan();
  std::string arena(c.arena_bytes, '\0'), state(c.state_bytes, '\0');
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (char value = 0; !done; ++value) std::memset(arena.data(), value, arena.size());
  });
  std::vector<LeafHash> hashes(3);
  int torn = 0;  // leaves that did see a change; two reads of one place seldom do
  for (int round = 0; round < 200'000 && (round < 5'000 || torn < 10); ++round) {
    plan.ScatterLeaves(arena.data(), 0, 1, 0, 3, state.data(), hashes.data(), kHints[round % 2]);
    EXPECT_EQ(hashes, HashLeaves(state));
    for (size_t leaf = 0; leaf < 3; ++leaf) torn += state[leaf * kLeafBytes] != state[(leaf + 1) * kLeafBytes - 1];
  }
  done = true;
  writer.join();
  EXPECT_GE(torn, 1);
}
#endif

// A state of 2 x 3 elements of 4 bytes, with the axes the other way round in rows of 64 bytes, where 1 byte is cleared;
// 3 taps of 1 byte after them.
Case SoundCase() {
  Case c;
  c.rows = 3, c.steps = 2;
  c.state_bytes = 27;
  CopySegment matrix;
  matrix.row_stride = 64, matrix.accept_stride = 24;
  matrix.element_bytes = 4;
  matrix.axes = {{2, 4}, {3, 8}};
  CopySegment taps;
  taps.state_offset = 24, taps.arena_offset = 49;
  taps.row_stride = 64, taps.accept_stride = 1;
  taps.element_bytes = 1;
  taps.axes = {{3, 1}};
  taps.clear_offset = 48, taps.clear_bytes = 1;
  c.segments = {matrix, taps};
  c.arena_bytes = 2 * 64 + 49 + 3 + 1;  // the last byte of the last row's second step
  return c;
}

bool IsSound(const Case& c) {
  return CopyPlan::Checked(c.segments, c.state_bytes, {c.arena_bytes, c.rows, c.steps}).has_value();
}

TEST(CheckedCopyPlan, IsThePlanOfSoundSegments) {
  const Case c = SoundCase();
  const std::optional<CopyPlan> plan = CopyPlan::Checked(c.segments, c.state_bytes, {c.arena_bytes, c.rows, c.steps});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->state_bytes(), c.state_bytes);
  std::string arena(c.arena_bytes, 'x'), state(c.state_bytes, '\0');
  std::iota(arena.begin(), arena.end(), '\0');
  plan->Scatter(arena.data(), 2, 2, 0, c.state_bytes, state.data(), CopyHint::kCached);
  EXPECT_EQ(state, ModelScatter(c, arena, 2, 2));
  EXPECT_TRUE(CopyPlan::Checked({}, 0, {0, 1, 1})) << "an empty state has an empty plan";
  Random random(1);
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(IsSound(RandomCase(random))) << i;
}

TEST(CheckedCopyPlan, EveryByteThatIsTouchedLiesInTheArena) {
  const std::vector<std::function<void(Case*)>> one_too_far = {
      [](Case* c) { --c->arena_bytes; },
      [](Case* c) { ++c->rows; },
      [](Case* c) { ++c->steps; },
      [](Case* c) { ++c->segments[1].arena_offset; },
      [](Case* c) { ++c->segments[1].row_stride; },
      [](Case* c) { ++c->segments[1].accept_stride; },
      [](Case* c) { ++c->segments[1].axes[0].row_stride; },
      [](Case* c) { c->segments[1].clear_bytes = 6; },
      [](Case* c) { c->segments[1].clear_offset = 53; },
  };
  ASSERT_TRUE(IsSound(SoundCase()));
  for (size_t i = 0; i < one_too_far.size(); ++i) {
    Case c = SoundCase();
    one_too_far[i](&c);
    EXPECT_FALSE(IsSound(c)) << i;
    c.arena_bytes = 4 * 64;
    EXPECT_TRUE(IsSound(c)) << i;
  }
  Case c = SoundCase();
  c.segments[1].clear_bytes = 0, c.segments[1].clear_offset = 1000;
  EXPECT_TRUE(IsSound(c)) << "nothing is cleared";
}

TEST(CheckedCopyPlan, SumsAndProductsBeyond64BitsAreSeen) {
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  // With each the sum or product, cut off at 64 bits, would be small.
  const std::vector<std::function<void(Case*)>> huge = {
      [](Case* c) { c->segments[0].arena_offset = kHuge - 3; },
      [](Case* c) { c->segments[0].row_stride = kHuge / 2 + 1; },
      [](Case* c) { c->segments[0].accept_stride = kHuge; },
      [](Case* c) { c->segments[0].axes[0].row_stride = kHuge; },
      [](Case* c) {
        c->segments[0].axes = {{uint64_t{1} << 63, 0}, {2, 0}, {6, 0}};
      },
      [](Case* c) {
        c->segments[0].axes[0] = {(uint64_t{1} << 62) + 2, 0};
      },
      [](Case* c) { c->segments[1].clear_offset = kHuge; },
      [](Case* c) { c->segments[1].clear_bytes = kHuge; },
  };
  for (size_t i = 0; i < huge.size(); ++i) {
    Case c = SoundCase();
    huge[i](&c);
    EXPECT_FALSE(IsSound(c)) << i;
  }
}

TEST(CheckedCopyPlan, SegmentsAreTheStateWithoutGaps) {
  const std::vector<std::function<void(Case*)>> spoil = {
      [](Case* c) { ++c->state_bytes; },
      [](Case* c) { --c->state_bytes; },
      [](Case* c) { c->segments[0].state_offset = 1; },
      [](Case* c) { c->segments[1].state_offset = 23; },
      [](Case* c) { c->segments[1].state_offset = 25; },
      [](Case* c) { c->segments.pop_back(); },
      [](Case* c) { c->segments.clear(); },
      [](Case* c) { c->segments[0].element_bytes = 0; },
      [](Case* c) { c->segments[0].element_bytes = 3; },
      [](Case* c) { c->segments[0].axes[0].size = 0; },
      [](Case* c) { c->rows = 0; },
      [](Case* c) { c->steps = 0; },
      // Elements that share a place, so that the state is larger than the arena.
      [](Case* c) {
        c->segments[1].axes = {{200, 0}}, c->state_bytes = 224;
      },
  };
  for (size_t i = 0; i < spoil.size(); ++i) {
    Case c = SoundCase();
    spoil[i](&c);
    EXPECT_FALSE(IsSound(c)) << i;
  }
}

}  // namespace
}  // namespace statepool
