// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/advance_tiles.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace statepool {
namespace {

constexpr uint64_t kWordBytes = 16;
constexpr uint32_t kTakenTogether = 16;  // columns that make a tile smaller: of more its threads take longer

uint64_t RunsOf(const AdvancePlan::Part& part) {
  uint64_t runs = 1;
  for (const CopyAxis& axis : part.axes) {
    if (__builtin_mul_overflow(runs, axis.size, &runs)) return std::numeric_limits<uint64_t>::max();
  }
  return runs;
}

void Cut(const AdvancePlan::Part& part, uint64_t runs, AdvanceTiles* result) {
  AdvanceTile tile;
  tile.arena_offset = part.arena_offset;
  tile.row_stride = part.row_stride;
  tile.step_stride = part.step_stride;
  tile.steps = part.steps;
  tile.window = part.window;
  tile.runs.axis = static_cast<uint32_t>(result->axes.size());
  tile.runs.axis_count = static_cast<uint32_t>(part.axes.size());
  uint64_t offsets = part.run_bytes | (part.window == 0 ? 0 : part.step_stride);
  for (const CopyAxis& axis : part.axes) {
    result->axes.push_back(TileAxisOf(static_cast<uint32_t>(axis.size), axis.row_stride));
    offsets |= axis.row_stride;
  }
  tile.runs.alignment = TileAlignmentOf(offsets);
  const uint32_t columns = part.window == 0 ? 1 : std::min(part.steps, kTakenTogether);
  const uint64_t most = kTileBytes / columns / kWordBytes * kWordBytes;
  if (part.run_bytes > most) {  // pieces of one run each
    for (uint64_t run = 0; run < runs; ++run) {
      tile.runs.first = static_cast<uint32_t>(run);
      for (uint64_t at = 0; at < part.run_bytes; at += tile.bytes) {
        tile.arena_offset = part.arena_offset + at;
        tile.bytes = tile.run_bytes = static_cast<uint32_t>(std::min(most, part.run_bytes - at));
        result->tiles.push_back(tile);
      }
    }
    return;
  }
  tile.run_bytes = static_cast<uint32_t>(part.run_bytes);
  for (uint64_t first = 0, count; first < runs; first += count) {
    count = std::min(most / part.run_bytes, runs - first);
    tile.runs.first = static_cast<uint32_t>(first);
    tile.bytes = static_cast<uint32_t>(count * part.run_bytes);
    result->tiles.push_back(tile);
  }
}

}  // namespace

absl::StatusOr<AdvanceTiles> AdvanceTilesOf(const AdvancePlan& plan) {
  AdvanceTiles result;
  for (const AdvancePlan::Part& part : plan.parts()) {
    const uint64_t runs = RunsOf(part);
    if (runs > std::numeric_limits<uint32_t>::max()) {
      return absl::UnimplementedError(
          absl::StrCat("a segment of ", runs, " runs of ", part.run_bytes, " bytes: too many for a device"));
    }
    Cut(part, runs, &result);
  }
  return result;
}

}  // namespace statepool
