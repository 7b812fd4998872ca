// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What CudaDevice says where there is nothing for it. These run on any machine: a GPU that is there is hidden from
// them. What it does with one is in tests/gpu.
#include "server/memory/cuda_device.h"

#include <gtest/gtest.h>
#include <stdlib.h>

namespace statepool {
namespace {

constexpr uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
constexpr uint64_t operator""_GiB(unsigned long long n) { return n << 30; }

class CudaDeviceWithoutGpu : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("CUDA_VISIBLE_DEVICES", "", /*overwrite=*/1); }
};

TEST_F(CudaDeviceWithoutGpu, ListsNoneAndSaysWhatToDo) {
  const auto gpus = CudaDevice::ListGpus();
  EXPECT_EQ(gpus.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(gpus.status().message().find("NVIDIA driver"), absl::string_view::npos) << gpus.status();
  EXPECT_NE(gpus.status().message().find("do without GPU devices"), absl::string_view::npos) << gpus.status();
}

TEST_F(CudaDeviceWithoutGpu, CanNotBeCreatedForTheSameReason) {
  const auto device = CudaDevice::Create({.budget_bytes = 1_GiB});
  EXPECT_EQ(device.status(), CudaDevice::ListGpus().status());
}

TEST_F(CudaDeviceWithoutGpu, RefusesOptionsThatMakeNoSenseFirst) {
  for (const CudaDeviceOptions& options : {CudaDeviceOptions{}, CudaDeviceOptions{.budget_bytes = 1_MiB},
                                           CudaDeviceOptions{.budget_bytes = 1_GiB, .chunk_bytes = 3_MiB},
                                           CudaDeviceOptions{.budget_bytes = 8_MiB, .chunk_bytes = 16_MiB}}) {
    EXPECT_EQ(CudaDevice::Create(options).status().code(), absl::StatusCode::kInvalidArgument) << options.budget_bytes;
  }
}

TEST(CudaDevice, TakesSmallerChunksForSmallBudgets) {
  EXPECT_EQ(CudaDevice::ChunkBytesFor(64_GiB), 16_MiB);
  EXPECT_EQ(CudaDevice::ChunkBytesFor(1_GiB), 16_MiB);
  EXPECT_EQ(CudaDevice::ChunkBytesFor(512_MiB), 8_MiB);
  EXPECT_EQ(CudaDevice::ChunkBytesFor(1), 2_MiB);
}

}  // namespace
}  // namespace statepool
