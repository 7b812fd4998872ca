// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The kinds of memory that slots can be in, for tests that run on each: the host's, and a device's that the CPU must
// not touch.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
#define STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "server/memory/far_device.h"
#include "server/memory/host_device.h"
#include "server/memory/state_io.h"

namespace statepool {

enum class MemoryKind { kHost, kFar };

inline auto MemoryKinds() { return testing::Values(MemoryKind::kHost, MemoryKind::kFar); }
inline std::string MemoryKindName(const testing::TestParamInfo<MemoryKind>& info) {
  return info.param == MemoryKind::kHost ? "Host" : "Far";
}

// A device, and what it is reached through.
class TestMemory {
 public:
  TestMemory(MemoryKind kind, uint64_t budget_bytes, uint64_t chunk_bytes, const Clock* clock)
      : host_(*HostDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = chunk_bytes})) {
    if (kind == MemoryKind::kHost) return;
    far_ = std::make_unique<FarDevice>(host_.get());
    staging_ = *StagingPool::Create(far_.get(), 0, clock);
  }

  Device* device() const { return far_ == nullptr ? static_cast<Device*>(host_.get()) : far_.get(); }
  StagingPool* staging() const { return staging_.get(); }
  FarDevice* far() const { return far_.get(); }  // null: it is the host's
  // What the CPU finds at an address of the device.
  char* Behind(char* address, uint64_t bytes) const { return far_ == nullptr ? address : far_->Behind(address, bytes); }

 private:
  const std::unique_ptr<HostDevice> host_;
  std::unique_ptr<FarDevice> far_;
  std::unique_ptr<StagingPool> staging_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
