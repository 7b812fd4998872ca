// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/advance_plan.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <unordered_set>

namespace statepool {
namespace {

constexpr absl::string_view kLayer = "layer", kRow = "row", kStep = "step", kTap = "tap";

// The last byte's offset and one, of a segment in the last row; nothing: it exceeds 64 bits.
std::optional<uint64_t> EndOf(const AdvanceSegment& segment, uint32_t rows) {
  uint64_t end = 0;
  bool fits = !__builtin_add_overflow(segment.arena_offset, segment.element_bytes, &end);
  const auto add = [&](uint64_t count, uint64_t stride) {
    uint64_t bytes = 0;
    fits = fits && count > 0 && !__builtin_mul_overflow(count - 1, stride, &bytes) &&
           !__builtin_add_overflow(end, bytes, &end);
  };
  add(rows, segment.row_stride);
  add(segment.steps, segment.step_stride);
  for (const CopyAxis& axis : segment.axes) add(axis.size, axis.row_stride);
  if (!fits) return std::nullopt;
  return end;
}

// Calls visit(offset) for each run.
template <typename Visit>
void ForEachRun(absl::Span<const CopyAxis> axes, uint64_t at, const Visit& visit) {
  if (axes.empty()) return visit(at);
  const CopyAxis& outer = axes.back();
  for (uint64_t i = 0; i < outer.size; ++i) ForEachRun(axes.first(axes.size() - 1), at + i * outer.row_stride, visit);
}

}  // namespace

bool AddAdvanceSegments(const AdvanceTensor& tensor, uint32_t steps, uint32_t num_spec,
                        std::vector<AdvanceSegment>* segments) {
  AdvanceSegment segment;
  segment.element_bytes = tensor.element_bytes;
  CopyAxis layers{1, 0}, step{0, 0}, tap{0, 0};
  bool has_row = false;
  for (size_t i = 0; i < tensor.axes.size(); ++i) {
    const CopyAxis axis{tensor.shape[i], tensor.strides[i]};
    if (axis.size == 0) return false;
    if (tensor.axes[i] == kLayer) {
      layers = axis;
    } else if (tensor.axes[i] == kRow) {
      segment.row_stride = axis.row_stride;
      has_row = true;
    } else if (tensor.axes[i] == kStep) {
      step = axis;
    } else {
      if (tensor.axes[i] == kTap) tap = axis;
      segment.axes.push_back(axis);
    }
  }
  if (!has_row || (step.size == 0) != (steps == 0)) return false;
  if (step.size < steps) {  // its steps are columns
    if (num_spec == 0 || num_spec + 1 < steps || step.size != 1 || tap.size <= num_spec || tap.size > UINT32_MAX)
      return false;
    segment.steps = static_cast<uint32_t>(tap.size);
    segment.window = segment.steps - num_spec;
    segment.step_stride = tap.row_stride;
    const auto is_tap = [&](const CopyAxis& axis) {
      return axis.row_stride == tap.row_stride && axis.size == tap.size;
    };
    segment.axes.erase(std::find_if(segment.axes.begin(), segment.axes.end(), is_tap));
  } else if (steps > 0) {
    segment.steps = steps;
    segment.step_stride = step.row_stride;
  }
  for (uint64_t layer = 0; layer < layers.size; ++layer) {
    segment.arena_offset = tensor.offset + layer * layers.row_stride;
    segments->push_back(segment);
  }
  return true;
}

std::vector<uint32_t> SourceColumns(AcceptedSteps steps, uint32_t window, uint32_t columns) {
  assert(window >= 1 && window + steps.last() <= columns);
  std::vector<uint32_t> in;
  for (uint32_t i = 0; i + 1 < window; ++i) in.push_back(i);
  for (uint64_t rest = steps.bits(); rest != 0; rest &= rest - 1)
    in.push_back(window - 1 + static_cast<uint32_t>(std::countr_zero(rest)));
  for (uint32_t i = window + steps.last(); i < columns; ++i) in.push_back(i);
  in.erase(in.begin(), in.begin() + (steps.length() - 1));
  return in;
}

std::optional<RowClash> FindRowClash(absl::Span<const AdvanceMove> moves) {
  std::unordered_set<uint32_t> written;
  for (size_t i = 0; i < moves.size(); ++i) {
    if (!written.insert(moves[i].to_row).second) return RowClash{i, /*is_to_row=*/true};
  }
  for (size_t i = 0; i < moves.size(); ++i) {
    if (moves[i].from_row != moves[i].to_row && written.contains(moves[i].from_row))
      return RowClash{i, /*is_to_row=*/false};
  }
  return std::nullopt;
}

std::optional<AdvancePlan> AdvancePlan::Checked(absl::Span<const AdvanceSegment> segments, const CopyArena& arena) {
  if (arena.rows == 0 || arena.accepted_max == 0 || arena.accepted_max > kAcceptedStepsMax) return std::nullopt;
  for (const AdvanceSegment& segment : segments) {
    const uint32_t element = segment.element_bytes;
    if (element != 1 && element != 2 && element != 4 && element != 8) return std::nullopt;
    const uint32_t steps_max = segment.window == 0 ? segment.steps : segment.steps - segment.window + 1;
    if (segment.window > segment.steps || steps_max < arena.accepted_max) return std::nullopt;
    const std::optional<uint64_t> end = EndOf(segment, arena.rows);
    if (!end || *end > arena.bytes) return std::nullopt;
  }
  return AdvancePlan(segments, arena.accepted_max);
}

AdvancePlan::AdvancePlan(absl::Span<const AdvanceSegment> segments, uint32_t steps_max) : steps_max_(steps_max) {
  assert(steps_max >= 1 && steps_max <= kAcceptedStepsMax);
  for (const AdvanceSegment& segment : segments) {
    Part part{segment.arena_offset,
              segment.row_stride,
              segment.step_stride,
              segment.steps,
              segment.window,
              segment.element_bytes,
              {}};
    for (const CopyAxis& axis : segment.axes) {
      if (axis.size > 1) part.axes.push_back(axis);
    }
    std::sort(part.axes.begin(), part.axes.end(),
              [](const CopyAxis& a, const CopyAxis& b) { return a.row_stride < b.row_stride; });
    auto inner = part.axes.begin();
    for (; inner != part.axes.end() && inner->row_stride == part.run_bytes; ++inner) part.run_bytes *= inner->size;
    part.axes.erase(part.axes.begin(), inner);
    uint64_t bytes = part.run_bytes * (part.window == 0 ? 1 : part.steps);
    for (const CopyAxis& axis : part.axes) bytes *= axis.size;
    bytes_ += bytes;
    parts_.push_back(std::move(part));
  }
}

bool AdvancePlan::has_windows() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.window > 0; });
}

void AdvancePlan::Move(char* arena, const AdvanceMove& move, size_t index) const {
  const Part& part = parts_[index];
  assert(move.steps.last() < steps_max_);
  char* const to = arena + part.arena_offset + move.to_row * part.row_stride;
  const char* const from = arena + part.arena_offset + move.from_row * part.row_stride;
  const uint64_t stride = part.step_stride, skipped = move.steps.last() * stride;
  if (from == to && move.steps.bits() == 1) return;
  if (part.window == 0) {
    return ForEachRun(part.axes, 0, [&](uint64_t run) { std::memcpy(to + run, from + skipped + run, part.run_bytes); });
  }
  if (move.steps.is_chain() && stride == part.run_bytes) {
    const uint64_t bytes = part.steps * stride - skipped;
    return ForEachRun(part.axes, 0, [&](uint64_t run) { std::memmove(to + run, from + skipped + run, bytes); });
  }
  const std::vector<uint32_t> source = SourceColumns(move.steps, part.window, part.steps);
  ForEachRun(part.axes, 0, [&](uint64_t run) {
    for (size_t i = 0; i < source.size(); ++i)
      std::memmove(to + run + i * stride, from + run + source[i] * stride, part.run_bytes);
  });
}

}  // namespace statepool
