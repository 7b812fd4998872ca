// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The kinds of memory that slots can be in, for tests that run on each: the host's, and a device's that the CPU must
// not touch. With STATEPOOL_GPU_TESTS a GPU's, and no other.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
#define STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "server/memory/state_io.h"
#ifdef STATEPOOL_GPU_TESTS
#include "server/memory/cuda_device.h"
#else
#include "server/memory/far_device.h"
#include "server/memory/host_device.h"
#endif

namespace statepool {

#ifdef STATEPOOL_GPU_TESTS
inline constexpr uint64_t kChunk = 2 << 20;  // the least that a GPU maps
enum class MemoryKind { kCuda };
inline auto MemoryKinds() { return testing::Values(MemoryKind::kCuda); }
inline std::string MemoryKindName(const testing::TestParamInfo<MemoryKind>&) { return "Cuda"; }
#else
inline constexpr uint64_t kChunk = 64 << 10;
enum class MemoryKind { kHost, kFar };
inline auto MemoryKinds() { return testing::Values(MemoryKind::kHost, MemoryKind::kFar); }
inline std::string MemoryKindName(const testing::TestParamInfo<MemoryKind>& info) {
  return info.param == MemoryKind::kHost ? "Host" : "Far";
}
#endif

// A device, and what it is reached through. Its chunks have kChunk bytes.
class TestMemory {
 public:
  TestMemory(MemoryKind kind, uint64_t budget_bytes, const Clock* clock) {
#ifdef STATEPOOL_GPU_TESTS
    static_cast<void>(kind);
    device_ = *CudaDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = kChunk});
#else
    auto host = *HostDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = kChunk});
    if (kind == MemoryKind::kHost) {
      device_ = std::move(host);
      return;
    }
    far_ = new FarDevice(host.get());
    behind_ = std::move(host);
    device_.reset(far_);
#endif
    staging_ = *StagingPool::Create(device_.get(), 0, clock);
  }

  Device* device() const { return device_.get(); }
  StagingPool* staging() const { return staging_.get(); }  // null: the CPU reaches the device's memory
#ifndef STATEPOOL_GPU_TESTS
  FarDevice* far() const { return far_; }  // null: it is the host's
#endif

  // Bytes at an address of the device, past everything that knows of them.
  void Write(char* to, absl::string_view bytes) const {
    StateFiller filler = staging_ == nullptr ? StateFiller(to, bytes.size())
                                             : StateFiller(device_.get(), *staging_->Take({}), to, bytes.size());
    while (filler.left() > 0) {
      const uint64_t done = filler.bytes() - filler.left();
      const absl::Span<char> room = *filler.Room();
      std::memcpy(room.data(), bytes.data() + done, room.size());
      ASSERT_TRUE(filler.Filled().ok());
    }
    ASSERT_TRUE(filler.Finish().ok());
  }
  std::string Read(const char* from, uint64_t bytes) const {
    StateReader reader =
        staging_ == nullptr ? StateReader({from, bytes}) : StateReader(device_.get(), *staging_->Take({}), from, bytes);
    std::string read;
    while (reader.left() > 0) read += std::string(*reader.Next());
    return read;
  }

 private:
#ifndef STATEPOOL_GPU_TESTS
  std::unique_ptr<HostDevice> behind_;  // of far_
  FarDevice* far_ = nullptr;
#endif
  std::unique_ptr<Device> device_;
  std::unique_ptr<StagingPool> staging_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_MEMORY_KINDS_H_
