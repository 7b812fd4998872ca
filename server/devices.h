// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The device that --devices names, and what it is reached through.
#ifndef STATEPOOL_SERVER_DEVICES_H_
#define STATEPOOL_SERVER_DEVICES_H_

#include <memory>

#include "absl/status/statusor.h"
#include "server/core/clock.h"
#include "server/flags.h"
#include "server/memory/device.h"
#include "server/memory/state_io.h"

namespace statepool {

struct HotMemory {
  std::unique_ptr<Device> behind;  // what `device` is made of; may be null
  std::unique_ptr<Device> device;
  std::unique_ptr<StagingPool> staging;  // null: the CPU reaches the device's memory
};

// `clock` must outlive it. Errors: a sentence for whoever wrote the flags.
absl::StatusOr<HotMemory> OpenHotMemory(const DaemonFlags& flags, const Clock* clock);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_DEVICES_H_
