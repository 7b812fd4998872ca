// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The memories that --devices and --warm-bytes name, and what they are reached through.
#ifndef STATEPOOL_SERVER_DEVICES_H_
#define STATEPOOL_SERVER_DEVICES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/clock.h"
#include "server/flags.h"
#include "server/memory/device.h"
#include "server/memory/host_device.h"
#include "server/memory/state_io.h"
#include "server/tiers/residency.h"

namespace statepool {

struct Memories {
  std::vector<std::unique_ptr<Device>> behind;  // what the hot devices are made of; may be empty
  std::vector<std::unique_ptr<Device>> hot;     // in the order of the flag
  // Below devices that the CPU can't reach: --warm-bytes of it, pinned for GPUs; or, where they are 0, spare memory, of
  // which nothing is taken before the last hot device has failed. Null: the hot device is the host's.
  std::unique_ptr<HostDevice> warm;
  bool warm_is_spare = false;
  std::unique_ptr<StagingPool> staging;  // of all hot devices; null: the CPU reaches their memory

  std::vector<Device*> hot_devices() const;
  std::vector<std::string> hot_names() const;
  ResidencyMemories for_residency() const;  // of each three quarters may be dirty
};

// `clock` must outlive it. Errors: a sentence for whoever wrote the flags.
absl::StatusOr<Memories> OpenMemories(const DaemonFlags& flags, const Clock* clock);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_DEVICES_H_
