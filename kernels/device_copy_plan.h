// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A copy plan on a device: gather and scatter of a batch of rows, all layers and tensors, in one launch on the caller's
// stream. The bytes are those that the host's CopyPlan gives.
//
// The calls return when the launch is in the stream; items are copied into it. They neither allocate nor wait, so a
// stream that is being captured into a graph may be given. A batch of more than kBatchMax items is several launches.
// Immutable, any thread may call it.
//
// REQUIRES, of every call: the device that was current at Create is current, and is the stream's; states and arena are
// in memory that it can reach and live until the stream has passed the launch; states don't overlap with the arena's
// rows; rows are rows of the arena; until then nobody else writes to what is read, or touches what is written. At
// multiples of 16 bytes everything is fastest. Errors: device_error.h; after one of a launch nothing of the batch, or
// its first launches alone, are in the stream.
#ifndef STATEPOOL_KERNELS_DEVICE_COPY_PLAN_H_
#define STATEPOOL_KERNELS_DEVICE_COPY_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"
#include "kernels/device_error.h"

namespace statepool {

class DeviceCopyPlan {
 public:
  static constexpr size_t kBatchMax = 1024;

  struct GatherItem {
    const void* state = nullptr;  // null: zeros
    uint32_t row = 0;
  };
  struct ScatterItem {
    uint32_t row = 0;
    uint32_t accepted = 1;  // at least 1
    void* state = nullptr;
  };

  // Puts the plan into the memory of the current device: 64 bytes for each 16 KiB of a state, and again for each 4 KiB,
  // or segment, or run of 2 KiB or more. Waits for the device. UNIMPLEMENTED: TilesOf cannot cut it. The device needs
  // 72 KiB of shared memory for a block (compute capability 8.0 and later have it).
  static absl::StatusOr<DeviceCopyPlan> Create(const CopyPlan& plan);

  // REQUIRES: no launch of it is under way.
  ~DeviceCopyPlan();
  DeviceCopyPlan(DeviceCopyPlan&& other) noexcept;
  DeviceCopyPlan& operator=(DeviceCopyPlan&&) = delete;
  DeviceCopyPlan(const DeviceCopyPlan&) = delete;

  // Each state into its row, as Clear and then Gather of all its bytes. A state for many rows is read from memory once
  // when its items are neighbours. REQUIRES: no row twice in a batch.
  absl::Status Gather(absl::Span<const GatherItem> items, void* arena, DeviceStream stream) const;

  // As Scatter of all bytes of each row. REQUIRES: no two states overlap; a row may be there twice.
  absl::Status Scatter(absl::Span<const ScatterItem> items, const void* arena, DeviceStream stream) const;

  // The same, and the hash of leaf i of item n's state to hashes[n * LeafCount(state_bytes) + i]: of the bytes that
  // were written, also when somebody writes to the row meanwhile. `hashes` are in memory that the device can reach, and
  // live as states do. REQUIRES: the plan is whole.
  absl::Status ScatterAndHash(absl::Span<const ScatterItem> items, const void* arena, LeafHash* hashes,
                              DeviceStream stream) const;

  // Bytes of device memory that the plan takes.
  uint64_t device_bytes() const { return device_bytes_; }

 private:
  struct Tables;
  DeviceCopyPlan() = default;

  void* memory_ = nullptr;  // tiles that copy, that clear, of leaves; axes; the first tile of each leaf
  uint64_t device_bytes_ = 0;
  uint64_t state_bytes_ = 0;
  uint32_t copy_count_ = 0, clear_count_ = 0, leaf_tile_count_ = 0;
  size_t axis_count_ = 0, leaf_axis_count_ = 0;
  bool has_transposed_ = false;
};

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_COPY_PLAN_H_
