// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The kinds of memory that slots can be in, for tests that run on each: the host's, a device's that the CPU must not
// touch, and such devices with a warm memory below. With STATEPOOL_GPU_TESTS a GPU's, and no other.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
#define STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/memory/host_device.h"
#include "server/memory/state_io.h"
#include "server/tiers/residency.h"
#ifdef STATEPOOL_GPU_TESTS
#include "server/memory/cuda_device.h"
#else
#include "server/memory/far_device.h"
#endif

namespace statepool {

#ifdef STATEPOOL_GPU_TESTS
inline constexpr uint64_t kChunk = 2 << 20;  // the least that a GPU maps
enum class MemoryKind { kCuda, kCudaWarm };
inline auto OneMemory() { return testing::Values(MemoryKind::kCuda); }
inline auto SeveralMemories() { return testing::Values(MemoryKind::kCudaWarm); }
inline auto AllMemories() { return testing::Values(MemoryKind::kCuda, MemoryKind::kCudaWarm); }
inline std::string MemoryKindName(const testing::TestParamInfo<MemoryKind>& info) {
  return info.param == MemoryKind::kCuda ? "Cuda" : "CudaWarm";
}
#else
inline constexpr uint64_t kChunk = 64 << 10;
enum class MemoryKind { kHost, kFar, kFarWarm, kTwoFarWarm, kTwoFarApart };
// Of one device alone: what leaves it is cold.
inline auto OneMemory() { return testing::Values(MemoryKind::kHost, MemoryKind::kFar); }
// The others: far devices with a warm memory below; two that are peers; two that only staging is between.
inline auto SeveralMemories() {
  return testing::Values(MemoryKind::kFarWarm, MemoryKind::kTwoFarWarm, MemoryKind::kTwoFarApart);
}
inline auto AllMemories() {
  return testing::Values(MemoryKind::kHost, MemoryKind::kFar, MemoryKind::kFarWarm, MemoryKind::kTwoFarWarm,
                         MemoryKind::kTwoFarApart);
}
inline std::string MemoryKindName(const testing::TestParamInfo<MemoryKind>& info) {
  switch (info.param) {
    case MemoryKind::kHost: return "Host";
    case MemoryKind::kFar: return "Far";
    case MemoryKind::kFarWarm: return "FarWarm";
    case MemoryKind::kTwoFarWarm: return "TwoFarWarm";
    case MemoryKind::kTwoFarApart: return "TwoFarApart";
  }
  return "";
}
#endif

// Devices, and what they are reached through. Their chunks have kChunk bytes. `budget_bytes` are those of the hot ones
// together; a warm one has half as many.
class TestMemory {
 public:
  TestMemory(MemoryKind kind, uint64_t budget_bytes, const Clock* clock) {
#ifdef STATEPOOL_GPU_TESTS
    auto gpu = *CudaDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = kChunk});
    if (kind == MemoryKind::kCudaWarm) {
      warm_ = *HostDevice::Create(
          {.budget_bytes = budget_bytes / 2, .chunk_bytes = kChunk, .pinning = PinningBy({gpu.get()})});
    }
    devices_.push_back(std::move(gpu));
#else
    if (kind == MemoryKind::kHost) {
      devices_.push_back(*HostDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = kChunk}));
      return;
    }
    const uint64_t count = kind == MemoryKind::kTwoFarWarm || kind == MemoryKind::kTwoFarApart ? 2 : 1;
    for (uint64_t i = 0; i < count; ++i) {
      behind_.push_back(*HostDevice::Create({.budget_bytes = budget_bytes / count, .chunk_bytes = kChunk}));
      auto far = std::make_unique<FarDevice>(behind_.back().get(), count == 1 ? "far" : absl::StrCat("far:", i),
                                             /*has_peers=*/kind != MemoryKind::kTwoFarApart);
      far_.push_back(far.get());
      devices_.push_back(std::move(far));
    }
    if (kind != MemoryKind::kFar)
      warm_ = *HostDevice::Create({.budget_bytes = budget_bytes / 2, .chunk_bytes = kChunk});
#endif
    staging_ = *StagingPool::Create(device(), 0, clock);
  }

  Device* device() const { return devices_.front().get(); }  // the first
  std::vector<Device*> devices() const {                     // the hot ones
    std::vector<Device*> devices;
    for (const auto& device : devices_) devices.push_back(device.get());
    return devices;
  }
  HostDevice* warm() const { return warm_.get(); }         // null: none
  StagingPool* staging() const { return staging_.get(); }  // null: the CPU reaches the devices' memory
  ResidencyMemories memories() const {
    ResidencyMemories memories;
    for (Device* device : devices()) memories.hot.push_back({device, staging()});
    if (warm_ != nullptr) memories.warm = ResidencyMemory{warm_.get()};
    return memories;
  }
#ifndef STATEPOOL_GPU_TESTS
  FarDevice* far(size_t i = 0) const { return i < far_.size() ? far_[i] : nullptr; }  // null: there is none
#endif

  // Bytes at an address of a hot device, past everything that knows of them.
  void Write(char* to, absl::string_view bytes) const {
    StateFiller filler = staging_ == nullptr ? StateFiller(to, bytes.size())
                                             : StateFiller(DeviceOf(to), *staging_->Take({}), to, bytes.size());
    while (filler.left() > 0) {
      const uint64_t done = filler.bytes() - filler.left();
      const absl::Span<char> room = *filler.Room();
      std::memcpy(room.data(), bytes.data() + done, room.size());
      ASSERT_TRUE(filler.Filled().ok());
    }
    ASSERT_TRUE(filler.Finish().ok());
  }
  std::string Read(const char* from, uint64_t bytes) const {
    StateReader reader = staging_ == nullptr ? StateReader({from, bytes})
                                             : StateReader(DeviceOf(from), *staging_->Take({}), from, bytes);
    std::string read;
    while (reader.left() > 0) read += std::string(*reader.Next());
    return read;
  }

 private:
  Device* DeviceOf([[maybe_unused]] const char* address) const {
#ifndef STATEPOOL_GPU_TESTS
    for (FarDevice* far : far_) {
      if (far->Behind(address, 1) != nullptr) return far;
    }
#endif
    return device();
  }

#ifndef STATEPOOL_GPU_TESTS
  std::vector<std::unique_ptr<HostDevice>> behind_;  // of far_
  std::vector<FarDevice*> far_;
#endif
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<HostDevice> warm_;
  std::unique_ptr<StagingPool> staging_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
