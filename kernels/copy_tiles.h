// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A copy plan cut into tiles: pieces of at most kTileBytes that one block of a device's threads copies by itself, with
// all that it must know in one record. The form in which a plan lies in a device's memory; no device is needed to make
// or to test it.
//
// Tiles for copying cover each byte of the state once, ascending but for transposed ones. Tiles for clearing cover what
// a row has beside the state, that is what Clear makes zero and Gather does not write: so the two need no order among
// them. Tiles of leaves are smaller, one warp's each, and none crosses a leaf of the state's checksum: so a block that
// copies the tiles of a leaf has all that it must hash. Pure functions, thread-safe.
#ifndef STATEPOOL_KERNELS_COPY_TILES_H_
#define STATEPOOL_KERNELS_COPY_TILES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

namespace statepool {

inline constexpr uint32_t kTileBytes = 16 << 10;
// Of a transposed tile in shared memory: with what keeps its columns in different banks.
inline constexpr uint32_t kTransposedTileBytes = 20 << 10;
inline constexpr uint32_t kLeafTileBytes = 4 << 10;  // of one that lies within a leaf

// How a tile's bytes are found. In the state a linear tile and one of runs are one piece.
enum class TileKind : uint16_t {
  kLinear,      // one piece on both sides
  kRuns,        // runs of `run_bytes`, whose places in the row come from axes
  kTransposed,  // two axes of elements of `run_bytes` (1, 2, 4, 8 or 16): x, contiguous in the state, and y
};

// Offsets and strides in bytes. Of row 0 and accepted length 1.
struct alignas(64) CopyTile {
  struct Runs {
    uint32_t first;       // index of the tile's first run among those of its axes
    uint32_t axis;        // into CopyTiles::axes, innermost first
    uint32_t axis_count;  // at least 1
    uint32_t alignment;   // of every run's offset beside the tile's: 1, 2, 4, 8 or 16
  };
  struct Transposed {
    uint64_t y_state_stride, x_row_stride, y_row_stride;
  };

  uint64_t state_offset = 0;  // of its first byte; nothing for a tile that clears
  uint64_t arena_offset = 0;  // of the same; for kRuns of run 0, wherever the tile begins
  uint64_t row_stride = 0;
  uint64_t accept_stride = 0;
  TileKind kind = TileKind::kLinear;
  uint16_t run_bytes = 0;  // not of a linear tile
  union {
    uint32_t bytes = 0;  // of a linear tile, or one of runs
    struct {
      uint16_t x, y;
    } size;  // of a transposed one
  };
  union {
    Runs runs = {};
    Transposed transposed;
  };
};
static_assert(sizeof(CopyTile) == 64);

struct TileAxis {
  uint64_t row_stride = 0;
  uint32_t size = 0;
  // n / size == (t + ((n - t) >> shift_1)) >> shift_2 with t = the upper half of n * magic.
  uint32_t magic = 0;
  uint16_t shift_1 = 0, shift_2 = 0;
};

// REQUIRES: size >= 1.
TileAxis TileAxisOf(uint32_t size, uint64_t row_stride);

struct CopyTiles {
  std::vector<CopyTile> tiles;  // those that copy, then those that clear
  size_t copy_count = 0;
  std::vector<TileAxis> axes;
  bool has_transposed = false;
};

// The largest of 1, 2, 4, 8 and 16 that divides all numbers whose bits are in `offsets`.
uint32_t TileAlignmentOf(uint64_t offsets);

// Fails for segments of 2^32 runs or more: UNIMPLEMENTED.
absl::StatusOr<CopyTiles> TilesOf(const CopyPlan& plan);

// Tiles of at most kLeafTileBytes. Those of leaf i are [first[i], first[i + 1]) and cover each of its bytes once.
struct LeafTiles {
  std::vector<CopyTile> tiles;
  std::vector<uint32_t> first;  // LeafCount and one more
  std::vector<TileAxis> axes;
};

// Fails for 2^32 tiles or more: UNIMPLEMENTED. REQUIRES: plan.is_whole().
absl::StatusOr<LeafTiles> LeafTilesOf(const CopyPlan& plan);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_COPY_TILES_H_
