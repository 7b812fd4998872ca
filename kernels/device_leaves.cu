// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A block for each leaf of each item: its warps bring the leaf's tiles into shared memory and sum it up for its hash
// from there; then one finishes the hash while the others write the leaf to the state. So the bytes are read once, and
// a block's memory is as much as keeps three of them on an H100's multiprocessor: while one waits, others read.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/device_copy_plan.h"
#include "kernels/device_leaves.h"
#include "kernels/device_tiles.cuh"
#include "kernels/device_xxh3.cuh"

namespace statepool {
namespace {

constexpr uint32_t kLeafThreads = 256, kLeafWarps = kLeafThreads / 32;

// A leaf in shared memory, 16 bytes further for each 512: so that elements which are a power of two apart in the state,
// as those of a matrix's column, lie in different banks.
class SharedLeaf {
 public:
  static constexpr uint32_t BytesFor(uint64_t size) { return static_cast<uint32_t>(PlaceOf(size + 15)); }

  __device__ explicit SharedLeaf(char* memory) : memory_(memory) {}
  __device__ char* At(uint32_t at) const { return memory_ + PlaceOf(at); }
  // As SumGroups wants them.
  __device__ uint32_t Byte(uint32_t at) const { return *reinterpret_cast<const uint8_t*>(At(at)); }
  __device__ ulonglong2 Two(uint32_t at) const { return *reinterpret_cast<const ulonglong2*>(At(at)); }

 private:
  static constexpr __host__ __device__ uint64_t PlaceOf(uint64_t at) { return at + at / 512 * 16; }

  char* const memory_;
};

struct Move {
  const char* from;  // null: there is nothing to move
  uint32_t to;       // place in the leaf
};

// A warp copies `count` words to shared memory, each as where(i) says. They are there for the warp after
// __pipeline_wait_prior.
template <typename Word, typename Where>
__device__ void BringWords(const SharedLeaf& leaf, uint32_t count, const Where& where) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (sizeof(Word) >= 4) {
#pragma unroll 4
    for (uint32_t i = lane; i < count; i += 32) {
      const Move move = where(i);
      if (move.from != nullptr) __pipeline_memcpy_async(leaf.At(move.to), move.from, sizeof(Word));
    }
  } else {  // too small for that
    constexpr uint32_t kAtOnce = 8;
    for (uint32_t begin = lane; begin < count; begin += 32 * kAtOnce) {
      Word word[kAtOnce];
      Move move[kAtOnce];
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        move[i] = begin + 32 * i < count ? where(begin + 32 * i) : Move{nullptr, 0};
        if (move[i].from != nullptr) word[i] = *reinterpret_cast<const Word*>(move[i].from);
      }
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (move[i].from != nullptr) *reinterpret_cast<Word*>(leaf.At(move[i].to)) = word[i];
      }
    }
  }
}

__device__ void BringLinear(const SharedLeaf& leaf, uint32_t to, const char* from, uint32_t bytes) {
  WithWord(AddressOf(from) ^ to, [&]<typename Word>(Word) {
    const uint32_t head = min(bytes, static_cast<uint32_t>(-to % sizeof(Word)));
    const uint32_t words = (bytes - head) / sizeof(Word), tail = bytes - head - words * sizeof(Word);
    BringWords<Word>(leaf, words, [&](uint32_t i) -> Move {
      const uint32_t at = head + i * sizeof(Word);
      return {from + at, to + at};
    });
    const uint32_t lane = threadIdx.x % 32;
    if (lane < head) *leaf.At(to + lane) = from[lane];
    if (lane < tail) *leaf.At(to + bytes - tail + lane) = from[bytes - tail + lane];
  });
}

__device__ void BringRuns(const SharedLeaf& leaf, uint32_t to, const char* from, const CopyTile& tile,
                          const TileAxis* axes) {
  WithWord(tile.runs.alignment | AddressOf(from) | to, [&]<typename Word>(Word) {
    const Divisor run_of(tile.run_bytes);
    BringWords<Word>(leaf, tile.bytes / sizeof(Word), [&](uint32_t i) -> Move {
      const uint32_t at = i * sizeof(Word), run = run_of(at);
      return {from + PlaceOfRun(tile.runs, axes, run) + (at - run * tile.run_bytes), to + at};
    });
  });
}

// By pieces of the row that are one sector of its memory, side by side along x.
template <typename Element>
__device__ void BringTransposed(const SharedLeaf& leaf, uint32_t to, const char* from, const CopyTile& tile) {
  constexpr uint32_t kAlongY = 32 / sizeof(Element), kAlongX = 32 / kAlongY;
  const CopyTile::Transposed strides = tile.transposed;
  const uint32_t pieces_y = (tile.size.y + kAlongY - 1) / kAlongY, pieces_x = (tile.size.x + kAlongX - 1) / kAlongX;
  const Divisor by_y(pieces_y);
  const auto bring = [&]<typename Word>(Word, uint32_t words_each) {
    BringWords<Word>(leaf, pieces_y * pieces_x * 32 * words_each, [&](uint32_t i) -> Move {
      const uint32_t piece = i / (32 * words_each), piece_x = by_y(piece), piece_y = piece - piece_x * pieces_y;
      const uint32_t in = i / words_each % 32, byte = i % words_each * sizeof(Word);
      const uint32_t y = piece_y * kAlongY + in % kAlongY, x = piece_x * kAlongX + in / kAlongY;
      if (y >= tile.size.y || x >= tile.size.x) return {nullptr, 0};
      return {
          from + x * strides.x_row_stride + y * strides.y_row_stride + byte,
          to + x * static_cast<uint32_t>(sizeof(Element)) + y * static_cast<uint32_t>(strides.y_state_stride) + byte};
    });
  };
  const uint64_t offsets = AddressOf(from) | to | strides.y_state_stride | strides.x_row_stride | strides.y_row_stride;
  if (offsets % sizeof(Element) == 0) return bring(Element(), 1);
  bring(uint8_t(), sizeof(Element));
}

__device__ void BringTile(const SharedLeaf& leaf, uint32_t to, const char* from, const CopyTile& tile,
                          const TileAxis* axes) {
  if (tile.kind == TileKind::kLinear) return BringLinear(leaf, to, from, tile.bytes);
  if (tile.kind == TileKind::kRuns) return BringRuns(leaf, to, from, tile, axes);
  switch (tile.run_bytes) {
    case 1: return BringTransposed<WordOf<1>::Type>(leaf, to, from, tile);
    case 2: return BringTransposed<WordOf<2>::Type>(leaf, to, from, tile);
    case 4: return BringTransposed<WordOf<4>::Type>(leaf, to, from, tile);
    case 8: return BringTransposed<WordOf<8>::Type>(leaf, to, from, tile);
    default: return BringTransposed<WordOf<16>::Type>(leaf, to, from, tile);
  }
}

// By all threads but the first warp's.
__device__ void WriteLeaf(char* to, const SharedLeaf& leaf, uint32_t size) {
  constexpr uint32_t kWriters = kLeafThreads - 32;
  const uint32_t writer = threadIdx.x - 32;
  WithWord(AddressOf(to), [&]<typename Word>(Word) {
    const uint32_t words = size / sizeof(Word), tail = size - words * sizeof(Word);
#pragma unroll 4
    for (uint32_t i = writer; i < words; i += kWriters) {
      reinterpret_cast<Word*>(to)[i] = *reinterpret_cast<const Word*>(leaf.At(i * sizeof(Word)));
    }
    if (writer < tail) to[size - tail + writer] = *leaf.At(size - tail + writer);
  });
}

template <size_t kMax>
__global__ void __launch_bounds__(kLeafThreads, 3)
    ScatterLeavesKernel(const __grid_constant__ Items<kMax> items, DeviceLeaves plan, const char* arena,
                        LeafHash* hashes) {
  extern __shared__ uint4 memory[];
  __shared__ GroupSums sums;
  const uint32_t index = blockIdx.x / plan.count, leaf_index = blockIdx.x - index * plan.count;
  const uint64_t begin = uint64_t{leaf_index} * kLeafBytes;
  const auto size = static_cast<uint32_t>(min(plan.state_bytes - begin, uint64_t{kLeafBytes}));
  const CopyItem item = items.at[index];
  const SharedLeaf leaf(reinterpret_cast<char*>(memory));
  const uint32_t end = plan.first[leaf_index + 1];
  for (uint32_t i = plan.first[leaf_index] + threadIdx.x / 32; i < end; i += kLeafWarps) {
    const CopyTile tile = plan.tiles[i];
    const char* const from =
        arena + tile.arena_offset + item.row * tile.row_stride + (item.accepted - 1) * tile.accept_stride;
    BringTile(leaf, static_cast<uint32_t>(tile.state_offset - begin), from, tile, plan.axes);
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  const uint64_t last = SumGroups<kLeafWarps>(leaf, size, sums);
  __syncthreads();
  if (threadIdx.x >= 32) {
    WriteLeaf(item.state + begin, leaf, size);
  } else if (threadIdx.x < 8) {
    FinishHash(leaf, size, sums, last, &hashes[blockIdx.x]);
  }
}

template <size_t kMax>
absl::Status LaunchLeaves(absl::Span<const CopyItem> items, DeviceLeaves leaves, const void* arena, LeafHash* hashes,
                          DeviceStream stream) {
  Items<kMax> at;
  std::copy(items.begin(), items.end(), at.at);
  void* arguments[] = {&at, &leaves, &arena, &hashes};
  return DeviceStatus(
      cudaLaunchKernel(reinterpret_cast<const void*>(ScatterLeavesKernel<kMax>),
                       dim3(static_cast<uint32_t>(leaves.count * items.size())), dim3(kLeafThreads), arguments,
                       SharedLeaf::BytesFor(std::min<uint64_t>(leaves.state_bytes, kLeafBytes)), stream),
      "launching a copy with hashes");
}

}  // namespace

absl::Status AllowScatterLeaves() {
  constexpr int kBytes = static_cast<int>(SharedLeaf::BytesFor(kLeafBytes));
  for (const void* kernel : {reinterpret_cast<const void*>(ScatterLeavesKernel<kFewItems>),
                             reinterpret_cast<const void*>(ScatterLeavesKernel<DeviceCopyPlan::kBatchMax>)}) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return DeviceStatus(error, "taking shared memory for copies with hashes");
  }
  return absl::OkStatus();
}

absl::Status ScatterLeaves(absl::Span<const CopyItem> items, const DeviceLeaves& leaves, const void* arena,
                           LeafHash* hashes, DeviceStream stream) {
  return items.size() <= kFewItems ? LaunchLeaves<kFewItems>(items, leaves, arena, hashes, stream)
                                   : LaunchLeaves<DeviceCopyPlan::kBatchMax>(items, leaves, arena, hashes, stream);
}

}  // namespace statepool
