// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/device_checksum.h"
#include "kernels/device_xxh3.cuh"

namespace statepool {
namespace {

constexpr uint32_t kThreads = 256;
constexpr size_t kImagesMax = 1024;  // of one launch: a kernel's arguments have room for twice as many

template <size_t kMax>
struct Images {
  const uint8_t* at[kMax];
};

// A leaf in the device's memory, wherever it begins; aligned, at a multiple of 16 bytes.
template <bool kAligned>
struct LeafBytes {
  const uint8_t* data;

  __device__ uint32_t Byte(uint32_t at) const { return data[at]; }
  __device__ ulonglong2 Two(uint32_t at) const {
    if constexpr (kAligned) return __ldcs(reinterpret_cast<const ulonglong2*>(data + at));
    return {WordAt(*this, at), WordAt(*this, at + 8)};
  }
};

// One block for each leaf.
template <size_t kMax>
__global__ void __launch_bounds__(kThreads, 4)
    HashKernel(const __grid_constant__ Images<kMax> images, uint32_t leaves, uint64_t bytes, uint64_t* hashes) {
  __shared__ GroupSums sums;
  const uint32_t image = blockIdx.x / leaves, leaf = blockIdx.x - image * leaves;
  const uint8_t* const data = images.at[image] + uint64_t{leaf} * kLeafBytes;
  const uint64_t left = bytes - uint64_t{leaf} * kLeafBytes;
  const uint32_t size = left < kLeafBytes ? static_cast<uint32_t>(left) : static_cast<uint32_t>(kLeafBytes);
  uint64_t* const hash = &hashes[blockIdx.x];
  const auto hash_leaf = [&](const auto& leaf_bytes) {
    const uint64_t last = SumGroups<kThreads / 32>(leaf_bytes, size, sums);
    __syncthreads();
    if (threadIdx.x < 8) FinishHash(leaf_bytes, size, sums, last, hash);
  };
  if (reinterpret_cast<uintptr_t>(data) % 16 == 0) {
    hash_leaf(LeafBytes<true>{data});
  } else {
    hash_leaf(LeafBytes<false>{data});
  }
}

template <size_t kMax>
absl::Status Launch(absl::Span<const void* const> images, uint64_t bytes, LeafHash* hashes, DeviceStream stream) {
  Images<kMax> at;
  for (size_t i = 0; i < images.size(); ++i) at.at[i] = static_cast<const uint8_t*>(images[i]);
  auto leaves = static_cast<uint32_t>(LeafCount(bytes));
  const auto blocks = static_cast<uint32_t>(leaves * images.size());
  void* arguments[] = {&at, &leaves, &bytes, &hashes};
  return DeviceStatus(cudaLaunchKernel(reinterpret_cast<const void*>(HashKernel<kMax>), dim3(blocks), dim3(kThreads),
                                       arguments, 0, stream),
                      "hashing leaves");
}

}  // namespace

absl::Status HashLeavesOnDevice(absl::Span<const void* const> images, uint64_t bytes, LeafHash* hashes,
                                DeviceStream stream) {
  const uint64_t leaves = LeafCount(bytes);
  if (leaves == 0) return absl::OkStatus();
  if (leaves > INT32_MAX) return absl::InvalidArgumentError("an image of 2^31 leaves or more");
  const size_t most = std::min<uint64_t>(kImagesMax, INT32_MAX / leaves);
  while (!images.empty()) {
    const auto some = images.first(std::min(images.size(), most));
    const absl::Status status =
        some.size() <= 64 ? Launch<64>(some, bytes, hashes, stream) : Launch<kImagesMax>(some, bytes, hashes, stream);
    if (!status.ok()) return status;
    hashes += leaves * some.size();
    images.remove_prefix(some.size());
  }
  return absl::OkStatus();
}

}  // namespace statepool
