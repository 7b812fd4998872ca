// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The part of DeviceCopyPlan that scatters and hashes: the launches, for device_copy_plan.cu alone.
#ifndef STATEPOOL_KERNELS_DEVICE_LEAVES_H_
#define STATEPOOL_KERNELS_DEVICE_LEAVES_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "kernels/copy_tiles.h"
#include "kernels/device_error.h"

namespace statepool {

// What a kernel's arguments have of an item. `first` and `count`: of a gather's items with this state. `accepted`: of
// the others.
struct CopyItem {
  char* state;
  uint32_t row;
  union {
    struct {
      uint16_t first, count;
    } same;
    uint32_t accepted;
  };
};
static_assert(sizeof(CopyItem) == 16);

// LeafTiles in a device's memory.
struct DeviceLeaves {
  const CopyTile* tiles;
  const uint32_t* first;
  const TileAxis* axes;
  uint32_t count;  // of leaves
  uint64_t state_bytes;
};

// Once for each device, before its first ScatterLeaves: a block may have as much shared memory as a leaf takes.
absl::Status AllowScatterLeaves();

// One launch. REQUIRES: at most DeviceCopyPlan::kBatchMax items, and 2^31 leaves of them together.
absl::Status ScatterLeaves(absl::Span<const CopyItem> items, const DeviceLeaves& leaves, const void* arena,
                           LeafHash* hashes, DeviceStream stream);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_LEAVES_H_
