// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C interface against the C++ it stands for, and what it refuses.
#include "kernels/c_api.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/checksum.h"

namespace statepool {
namespace {

std::string Bytes(size_t size, uint32_t seed) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>((seed = seed * 1664525 + 1013904223) >> 24);
  return bytes;
}

struct Destroy {
  void operator()(statepool_kernels_plan* plan) const { statepool_kernels_plan_destroy(plan); }
};
using Plan = std::unique_ptr<statepool_kernels_plan, Destroy>;

// A state of two tensors: 6 elements of 4 bytes whose two axes the arena has the other way round, and 3 bytes, which
// have a column of zeros before them and move by one byte for each accepted token. Rows of 64 bytes.
constexpr uint64_t kSizes[] = {2, 3}, kStrides[] = {4, 8};
constexpr uint64_t kTaps[] = {3}, kTapStrides[] = {1};
constexpr uint64_t kStateBytes = 27, kRowBytes = 64;
constexpr uint32_t kRows = 3, kSteps = 2;
constexpr uint64_t kArenaBytes = kRows * kRowBytes;

std::vector<statepool_kernels_segment> Segments() {
  return {{.state_offset = 0,
           .arena_offset = 0,
           .row_stride = kRowBytes,
           .accept_stride = 24,
           .clear_offset = 0,
           .clear_bytes = 0,
           .sizes = kSizes,
           .strides = kStrides,
           .element_bytes = 4,
           .axis_count = 2},
          {.state_offset = 24,
           .arena_offset = 49,
           .row_stride = kRowBytes,
           .accept_stride = 1,
           .clear_offset = 48,
           .clear_bytes = 1,
           .sizes = kTaps,
           .strides = kTapStrides,
           .element_bytes = 1,
           .axis_count = 1}};
}

Plan Make(const std::vector<statepool_kernels_segment>& segments, uint64_t state_bytes = kStateBytes,
          uint64_t arena_bytes = kArenaBytes, uint32_t rows = kRows, uint32_t accepted_max = kSteps) {
  return Plan(
      statepool_kernels_plan_create(segments.data(), segments.size(), state_bytes, arena_bytes, rows, accepted_max));
}

TEST(CApi, RootsAreThoseOfTheChecksum) {
  const std::string image = Bytes(3 * kLeafBytes + 77, 1);
  for (const size_t cut : {size_t{0}, size_t{5}, kLeafBytes, image.size()}) {
    const statepool_kernels_piece pieces[] = {{image.data(), cut}, {image.data() + cut, image.size() - cut}};
    std::string copy(image.size(), '\0');
    uint64_t hashed = 0, copied = 0;
    EXPECT_EQ(statepool_kernels_hash(pieces, 2, &hashed), STATEPOOL_KERNELS_OK);
    EXPECT_EQ(statepool_kernels_copy_and_hash(copy.data(), pieces, 2, &copied), STATEPOOL_KERNELS_OK);
    EXPECT_EQ(hashed, ChecksumOf(image));
    EXPECT_EQ(copied, ChecksumOf(image));
    EXPECT_TRUE(copy == image);
  }
  uint64_t root = 0;
  EXPECT_EQ(statepool_kernels_hash(nullptr, 0, &root), STATEPOOL_KERNELS_OK);
  EXPECT_EQ(root, ChecksumOf(""));
}

TEST(CApi, AGatheredStateIsScatteredBack) {
  const Plan plan = Make(Segments());
  ASSERT_NE(plan, nullptr);
  const std::string state = Bytes(kStateBytes, 2);
  std::string arena(kArenaBytes, 'x');
  const uint32_t rows[] = {2, 0};
  ASSERT_EQ(statepool_kernels_gather(plan.get(), state.data(), arena.data(), rows, 2), STATEPOOL_KERNELS_OK);
  EXPECT_EQ(arena.substr(kRowBytes, kRowBytes), std::string(kRowBytes, 'x')) << "row 1 was nobody's to write";
  for (const uint32_t row : rows) {
    const std::string held = arena.substr(row * kRowBytes, kRowBytes);
    EXPECT_EQ(held.substr(8, 4), state.substr(4, 4)) << "element [0][1] of the first tensor";
    EXPECT_EQ(held[48], '\0') << "the column that only the arena has";
    EXPECT_EQ(held.substr(49, 3), state.substr(24, 3));
    std::string back(kStateBytes, '\0');
    uint64_t root = 0;
    ASSERT_EQ(statepool_kernels_scatter(plan.get(), arena.data(), row, 1, back.data(), &root), STATEPOOL_KERNELS_OK);
    EXPECT_EQ(back, state);
    EXPECT_EQ(root, ChecksumOf(state));
    // The second step: what lies 24 bytes on, and the taps moved by one.
    ASSERT_EQ(statepool_kernels_scatter(plan.get(), arena.data(), row, 2, back.data(), &root), STATEPOOL_KERNELS_OK);
    EXPECT_EQ(back.substr(0, 24), std::string(24, 'x'));
    EXPECT_EQ(back.substr(24), state.substr(25, 2) + "x");
    EXPECT_EQ(root, ChecksumOf(back));
  }
}

TEST(CApi, RowsAndAcceptedLengthsThatThePlanLacksAreRefused) {
  const Plan plan = Make(Segments());
  ASSERT_NE(plan, nullptr);
  const std::string state = Bytes(kStateBytes, 3);
  std::string arena(kArenaBytes, 'x'), out(kStateBytes, 'y');
  const uint32_t rows[] = {0, kRows};
  uint64_t root = 0;
  EXPECT_EQ(statepool_kernels_gather(plan.get(), state.data(), arena.data(), rows, 2), STATEPOOL_KERNELS_INVALID);
  EXPECT_EQ(arena, std::string(kArenaBytes, 'x'));
  for (const auto& [row, accepted] : {std::pair(kRows, 1u), {0u, 0u}, {0u, kSteps + 1}}) {
    EXPECT_EQ(statepool_kernels_scatter(plan.get(), arena.data(), row, accepted, out.data(), &root),
              STATEPOOL_KERNELS_INVALID);
  }
  EXPECT_EQ(out, std::string(kStateBytes, 'y'));
}

TEST(CApi, PlansThatWouldLeaveTheArenaOrTheStateAreRefused) {
  using Segment = statepool_kernels_segment;
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  static constexpr uint64_t kNone[] = {0, 3}, kMany[] = {kHuge, 3}, kFar[] = {kHuge, 8};
  const std::vector<std::function<void(Segment&)>> spoil_first = {
      [](Segment& s) { s.state_offset = 1; },
      [](Segment& s) { s.arena_offset = kArenaBytes; },
      [](Segment& s) { s.arena_offset = kHuge; },
      [](Segment& s) { s.row_stride = kHuge / 2 + 1; },
      [](Segment& s) { s.accept_stride = 128; },
      [](Segment& s) { s.element_bytes = 3; },
      [](Segment& s) { s.element_bytes = 0; },
      [](Segment& s) { s.sizes = kNone; },
      [](Segment& s) { s.sizes = kMany; },
      [](Segment& s) { s.strides = kFar; },
      [](Segment& s) { s.axis_count = 17; },
      [](Segment& s) { s.clear_bytes = kArenaBytes; },
      [](Segment& s) { s.clear_bytes = kHuge; },
      [](Segment& s) { s.axis_count = 1; },
      [](Segment& s) { s.clear_offset = kHuge, s.clear_bytes = 1; },
  };
  for (size_t i = 0; i < spoil_first.size(); ++i) {
    std::vector<Segment> segments = Segments();
    spoil_first[i](segments[0]);
    EXPECT_EQ(Make(segments), nullptr) << i;
  }
  EXPECT_EQ(Make(Segments(), kStateBytes - 1), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes + 1), nullptr);
  // The last byte of the last row's second step.
  const uint64_t end = (kRows - 1) * kRowBytes + 49 + 3 + 1;
  EXPECT_NE(Make(Segments(), kStateBytes, end), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes, end - 1), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes, end, kRows + 1), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes, end, kRows, kSteps + 1), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes, kArenaBytes, 0), nullptr);
  EXPECT_EQ(Make(Segments(), kStateBytes, kArenaBytes, kRows, 0), nullptr);
}

TEST(CApi, RootsOfManyImagesAreThoseOfEach) {
  const std::string image = Bytes(2 * kLeafBytes + 5, 1), other = Bytes(2 * kLeafBytes + 5, 2);
  std::vector<LeafHash> leaves = HashLeaves(image);
  for (const LeafHash leaf : HashLeaves(other)) leaves.push_back(leaf);
  uint64_t roots[2] = {};
  statepool_kernels_roots(leaves.data(), 3, 2, roots);
  EXPECT_EQ(roots[0], ChecksumOf(image));
  EXPECT_EQ(roots[1], ChecksumOf(other));
}

TEST(CApi, WithoutKernelsForAGpuItSaysSo) {
  const Plan plan = Make(Segments());
  EXPECT_EQ(statepool_kernels_device_plan_create(plan.get()), nullptr);
  EXPECT_NE(std::string(statepool_kernels_device_error()).find("libstatepool_kernels_cuda.so"), std::string::npos);
  EXPECT_EQ(statepool_kernels_device_gather(nullptr, nullptr, nullptr, 0, nullptr, nullptr), STATEPOOL_KERNELS_DEVICE);
  EXPECT_EQ(statepool_kernels_device_scatter(nullptr, nullptr, nullptr, nullptr, 0, nullptr, nullptr, nullptr),
            STATEPOOL_KERNELS_DEVICE);
  statepool_kernels_device_plan_destroy(nullptr);
}

}  // namespace
}  // namespace statepool
