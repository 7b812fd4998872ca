// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// An advance plan cut into tiles: what one block of a device's threads moves of a row, with all that it must know in
// one record. The form in which a plan lies in a device's memory; no device is needed to make or to test it. Pure
// functions, thread-safe.
#ifndef STATEPOOL_KERNELS_ADVANCE_TILES_H_
#define STATEPOOL_KERNELS_ADVANCE_TILES_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/advance_plan.h"
#include "kernels/copy_tiles.h"

namespace statepool {

// Runs, and of each its places in all steps or columns. Different tiles, and different runs of one, have no place in
// common, so only the places of a run need an order. Offsets of row 0, and of step or column 0.
struct alignas(64) AdvanceTile {
  uint64_t arena_offset = 0;  // of the segment, wherever the tile begins, but for a piece of one run
  uint64_t row_stride = 0;
  uint64_t step_stride = 0;
  uint32_t steps = 1;   // or columns
  uint32_t window = 0;  // columns of the window; 0: steps
  uint32_t bytes = 0;   // of its runs, in one step or column
  uint32_t run_bytes = 0;
  CopyTile::Runs runs = {};  // `alignment` is of everything but rows and steps
};
static_assert(sizeof(AdvanceTile) == 64);

struct AdvanceTiles {
  std::vector<AdvanceTile> tiles;
  std::vector<TileAxis> axes;
};

// Fails for segments of 2^32 runs or more: UNIMPLEMENTED.
absl::StatusOr<AdvanceTiles> AdvanceTilesOf(const AdvancePlan& plan);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_ADVANCE_TILES_H_
