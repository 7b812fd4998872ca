// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// An advance plan on a device: the moves of a batch of rows, all layers and tensors, in one launch on the caller's
// stream. The bytes are those that the host's AdvancePlan gives.
//
// Move returns when the launch is in the stream; items are copied into it. It neither allocates nor waits, so a stream
// that is being captured into a graph may be given. A batch of more than kBatchMax items is several launches.
// Immutable, any thread may call it. What device_copy_plan.h requires of calls is required here too.
#ifndef STATEPOOL_KERNELS_DEVICE_ADVANCE_PLAN_H_
#define STATEPOOL_KERNELS_DEVICE_ADVANCE_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/advance_plan.h"
#include "kernels/device_error.h"

namespace statepool {

class DeviceAdvancePlan {
 public:
  static constexpr size_t kBatchMax = 1024;

  // Puts the plan into the memory of the current device: 64 bytes for each 16 KiB of a row's first step and of its
  // windows, or each of their tensors. Waits for the device. UNIMPLEMENTED: AdvanceTilesOf cannot cut it.
  static absl::StatusOr<DeviceAdvancePlan> Create(const AdvancePlan& plan);

  // REQUIRES: no launch of it is under way.
  ~DeviceAdvancePlan();
  DeviceAdvancePlan(DeviceAdvancePlan&& other) noexcept;
  DeviceAdvancePlan& operator=(DeviceAdvancePlan&&) = delete;
  DeviceAdvancePlan(const DeviceAdvancePlan&) = delete;

  // As AdvancePlan::Move of all parts of each item. REQUIRES: no row is written by two items, or written by one and
  // read by another; last steps are below the plan's steps_max().
  absl::Status Move(absl::Span<const AdvanceMove> items, void* arena, DeviceStream stream) const;

  // Bytes of device memory that the plan takes.
  uint64_t device_bytes() const { return device_bytes_; }

 private:
  DeviceAdvancePlan() = default;

  void* memory_ = nullptr;  // tiles, then axes; null: there are no tiles
  uint64_t device_bytes_ = 0;
  uint32_t tile_count_ = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_ADVANCE_PLAN_H_
