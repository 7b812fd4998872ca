// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/c_api.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/c_api_plan.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

namespace statepool {
namespace {

constexpr size_t kSegmentsMax = 65536;
constexpr uint32_t kAxesMax = 16;
// Larger copies go past the caches.
constexpr uint64_t kStreamingGatherBytes = 4 << 20;
constexpr uint64_t kStreamingScatterBytes = 1 << 20;

CopyHint HintOf(uint64_t bytes, uint64_t streaming) {
  return bytes > streaming ? CopyHint::kStreaming : CopyHint::kCached;
}

absl::string_view ViewOf(const statepool_kernels_piece& piece) {
  return {static_cast<const char*>(piece.data), static_cast<size_t>(piece.size)};
}

CopySegment SegmentOf(const statepool_kernels_segment& from) {
  CopySegment segment = {.state_offset = from.state_offset,
                         .arena_offset = from.arena_offset,
                         .row_stride = from.row_stride,
                         .accept_stride = from.accept_stride,
                         .element_bytes = from.element_bytes,
                         .axes = {},
                         .clear_offset = from.clear_offset,
                         .clear_bytes = from.clear_bytes};
  for (uint32_t axis = 0; axis < from.axis_count; ++axis) {
    segment.axes.push_back({.size = from.sizes[axis], .row_stride = from.strides[axis]});
  }
  return segment;
}

}  // namespace
}  // namespace statepool

uint32_t statepool_kernels_version(void) { return STATEPOOL_KERNELS_VERSION; }

int statepool_kernels_hash(const statepool_kernels_piece* pieces, size_t count, uint64_t* root) {
  return statepool::Guarded([&] {
    std::vector<absl::string_view> views;
    views.reserve(count);
    for (size_t i = 0; i < count; ++i) views.push_back(statepool::ViewOf(pieces[i]));
    *root = statepool::ChecksumOfPieces(views);
  });
}

int statepool_kernels_copy_and_hash(void* to, const statepool_kernels_piece* pieces, size_t count, uint64_t* root) {
  return statepool::Guarded([&] {
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) bytes += pieces[i].size;
    statepool::CopyHasher hasher(static_cast<char*>(to), bytes);
    for (size_t i = 0; i < count; ++i) hasher.Append(statepool::ViewOf(pieces[i]));
    *root = statepool::HashRoot(hasher.Finish());
  });
}

statepool_kernels_plan* statepool_kernels_plan_create(const statepool_kernels_segment* segments, size_t count,
                                                      uint64_t state_bytes, uint64_t arena_bytes, uint32_t rows,
                                                      uint32_t accepted_max) {
  if (count > statepool::kSegmentsMax) return nullptr;
  statepool_kernels_plan* plan = nullptr;
  statepool::Guarded([&] {
    std::vector<statepool::CopySegment> copies;
    copies.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (segments[i].axis_count > statepool::kAxesMax) return;
      copies.push_back(statepool::SegmentOf(segments[i]));
    }
    std::optional<statepool::CopyPlan> checked =
        statepool::CopyPlan::Checked(std::move(copies), state_bytes, {arena_bytes, rows, accepted_max});
    if (checked) plan = new statepool_kernels_plan{*std::move(checked), rows, accepted_max};
  });
  return plan;
}

void statepool_kernels_plan_destroy(statepool_kernels_plan* plan) { delete plan; }

int statepool_kernels_gather(const statepool_kernels_plan* plan, const void* state, void* arena, const uint32_t* rows,
                             size_t row_count) {
  for (size_t i = 0; i < row_count; ++i) {
    if (rows[i] >= plan->rows) return STATEPOOL_KERNELS_INVALID;
  }
  return statepool::Guarded([&] {
    char* const to = static_cast<char*>(arena);
    const uint64_t bytes = plan->plan.state_bytes();
    for (size_t i = 0; i < row_count; ++i) plan->plan.Clear(to, rows[i]);
    plan->plan.Gather(static_cast<const char*>(state), 0, bytes, to, absl::MakeConstSpan(rows, row_count),
                      statepool::HintOf(bytes * row_count, statepool::kStreamingGatherBytes));
  });
}

int statepool_kernels_scatter(const statepool_kernels_plan* plan, const void* arena, uint32_t row, uint32_t accepted,
                              void* state, uint64_t* root) {
  if (row >= plan->rows || accepted == 0 || accepted > plan->accepted_max) return STATEPOOL_KERNELS_INVALID;
  return statepool::Guarded([&] {
    const uint64_t bytes = plan->plan.state_bytes();
    std::vector<statepool::LeafHash> leaves(statepool::LeafCount(bytes));
    plan->plan.ScatterLeaves(static_cast<const char*>(arena), row, accepted, 0, leaves.size(),
                             static_cast<char*>(state), leaves.data(),
                             statepool::HintOf(bytes, statepool::kStreamingScatterBytes));
    *root = statepool::HashRoot(leaves);
  });
}

statepool_kernels_advance* statepool_kernels_advance_create(const statepool_kernels_advance_segment* segments,
                                                            size_t count, uint64_t arena_bytes, uint32_t rows,
                                                            uint32_t steps_max) {
  if (count > statepool::kSegmentsMax) return nullptr;
  statepool_kernels_advance* plan = nullptr;
  statepool::Guarded([&] {
    std::vector<statepool::AdvanceSegment> moved;
    moved.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const statepool_kernels_advance_segment& from = segments[i];
      if (from.axis_count > statepool::kAxesMax) return;
      statepool::AdvanceSegment& to = moved.emplace_back();
      to.arena_offset = from.arena_offset;
      to.row_stride = from.row_stride;
      to.step_stride = from.step_stride;
      to.steps = from.steps;
      to.window = from.window;
      to.element_bytes = from.element_bytes;
      for (uint32_t axis = 0; axis < from.axis_count; ++axis)
        to.axes.push_back({.size = from.sizes[axis], .row_stride = from.strides[axis]});
    }
    std::optional<statepool::AdvancePlan> checked =
        statepool::AdvancePlan::Checked(moved, {arena_bytes, rows, steps_max});
    if (checked) plan = new statepool_kernels_advance{*std::move(checked), rows};
  });
  return plan;
}

void statepool_kernels_advance_destroy(statepool_kernels_advance* plan) { delete plan; }

int statepool_kernels_advance_rows(const statepool_kernels_advance* plan, void* arena,
                                   const statepool_kernels_move* moves, size_t count) {
  int result = STATEPOOL_KERNELS_INVALID;
  const int made = statepool::Guarded([&] {
    const auto listed = statepool::MovesOf(moves, count, plan->rows, plan->plan.steps_max());
    if (!listed) return;
    for (const statepool::AdvanceMove& move : *listed) {
      for (size_t part = 0; part < plan->plan.parts().size(); ++part)
        plan->plan.Move(static_cast<char*>(arena), move, part);
    }
    result = STATEPOOL_KERNELS_OK;
  });
  return made == STATEPOOL_KERNELS_OK ? result : made;
}

void statepool_kernels_roots(const uint64_t* leaves, size_t leaf_count, size_t count, uint64_t* roots) {
  static_assert(sizeof(statepool::LeafHash) == sizeof(uint64_t));
  for (size_t i = 0; i < count; ++i) roots[i] = statepool::HashRoot({leaves + i * leaf_count, leaf_count});
}
