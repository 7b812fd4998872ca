// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// One block copies one tile of one item. A grid is all tiles of the first item, then all of the second, and so on: but
// for items that have their state in common, which are side by side, tile by tile, so that a tile is read from memory
// once and then from the cache.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/copy_tiles.h"
#include "kernels/device_copy_plan.h"
#include "kernels/device_leaves.h"
#include "kernels/device_tiles.cuh"

namespace statepool {
namespace {

constexpr uint32_t kThreads = 128;

struct DeviceTiles {
  const CopyTile* tiles;
  const TileAxis* axes;
  uint32_t tile_count;
  uint32_t copy_count;  // tiles from here on clear
};

// Null `from`: zeros.
template <typename Word>
__device__ void CopyWords(char* to, const char* from, uint32_t words) {
  constexpr uint32_t kAtOnce = sizeof(Word) == 16 ? 8 : 4;
  auto* const out = reinterpret_cast<Word*>(to);
  const auto* const in = reinterpret_cast<const Word*>(from);
  for (uint32_t begin = threadIdx.x; begin < words; begin += kAtOnce * kThreads) {
    Word word[kAtOnce] = {};
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (const uint32_t at = begin + i * kThreads; at < words && from != nullptr) word[i] = __ldcs(in + at);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (const uint32_t at = begin + i * kThreads; at < words) out[at] = word[i];
    }
  }
}

__device__ void CopyLinear(char* to, const char* from, uint32_t bytes) {
  const uint64_t apart = from == nullptr ? 0 : AddressOf(to) ^ AddressOf(from);
  WithWord(apart, [&]<typename Word>(Word) {
    const uint32_t head = min(bytes, static_cast<uint32_t>(-AddressOf(to) % sizeof(Word)));
    const uint32_t words = (bytes - head) / sizeof(Word), tail = bytes - head - words * sizeof(Word);
    if (threadIdx.x < head) to[threadIdx.x] = from == nullptr ? 0 : from[threadIdx.x];
    CopyWords<Word>(to + head, from == nullptr ? nullptr : from + head, words);
    if (threadIdx.x < tail) {
      const uint32_t at = bytes - tail + threadIdx.x;
      to[at] = from == nullptr ? 0 : from[at];
    }
  });
}

template <bool kToRow>
__device__ void CopyRuns(const CopyTile& tile, const TileAxis* axes, char* to, const char* from) {
  const uint64_t apart = tile.runs.alignment | AddressOf(to) | AddressOf(from);
  WithWord(apart, [&]<typename Word>(Word) {
    constexpr uint32_t kAtOnce = 4;
    const Divisor run_of(tile.run_bytes);
    for (uint32_t begin = threadIdx.x * sizeof(Word); begin < tile.bytes; begin += kAtOnce * kThreads * sizeof(Word)) {
      Word word[kAtOnce] = {};
      uint64_t place[kAtOnce];
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        const uint32_t at = begin + i * kThreads * sizeof(Word);
        if (at >= tile.bytes) continue;
        const uint32_t run = run_of(at);
        place[i] = PlaceOfRun(tile.runs, axes, run) + (at - run * tile.run_bytes);
        if (from != nullptr) word[i] = *reinterpret_cast<const Word*>(from + (kToRow ? at : place[i]));
      }
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        const uint32_t at = begin + i * kThreads * sizeof(Word);
        if (at < tile.bytes) *reinterpret_cast<Word*>(to + (kToRow ? place[i] : at)) = word[i];
      }
    }
  });
}

template <typename Element>
__device__ Element LoadElement(const char* from, bool aligned) {
  if (aligned) return *reinterpret_cast<const Element*>(from);
  Element element;
  for (uint32_t i = 0; i < sizeof(Element); ++i) reinterpret_cast<char*>(&element)[i] = from[i];
  return element;
}
template <typename Element>
__device__ void StoreElement(char* to, const Element& element, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Element*>(to) = element;
    return;
  }
  for (uint32_t i = 0; i < sizeof(Element); ++i) to[i] = reinterpret_cast<const char*>(&element)[i];
}

// In shared memory x goes by rows of `pitch`, which is odd: elements that are neighbours along either axis lie in
// different banks.
template <typename Element, bool kToRow>
__device__ void CopyTransposed(const CopyTile& tile, char* to, const char* from, char* memory) {
  constexpr uint32_t kAtOnce = 8;
  auto* const shared = reinterpret_cast<Element*>(memory);
  const uint32_t x_size = tile.size.x, y_size = tile.size.y, pitch = y_size | 1, count = x_size * y_size;
  const CopyTile::Transposed strides = tile.transposed;
  const bool aligned =
      (AddressOf(to) | AddressOf(from) | strides.y_state_stride | strides.x_row_stride | strides.y_row_stride) %
          sizeof(Element) ==
      0;
  const Divisor by_x(x_size), by_y(y_size);
  struct Place {
    uint32_t in_shared;
    uint64_t outside;
  };
  const auto place_of = [&](uint32_t i, bool in_row) -> Place {
    if (in_row) {
      const uint32_t x = by_y(i), y = i - x * y_size;
      return {x * pitch + y, x * strides.x_row_stride + y * strides.y_row_stride};
    }
    const uint32_t y = by_x(i), x = i - y * x_size;
    return {x * pitch + y, x * sizeof(Element) + y * strides.y_state_stride};
  };
  for (uint32_t begin = threadIdx.x; begin < count; begin += kAtOnce * kThreads) {
    Element element[kAtOnce] = {};
    uint32_t in_shared[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads >= count) continue;
      const Place place = place_of(begin + i * kThreads, !kToRow);
      in_shared[i] = place.in_shared;
      if (from != nullptr) element[i] = LoadElement<Element>(from + place.outside, aligned);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads < count) shared[in_shared[i]] = element[i];
    }
  }
  __syncthreads();
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    const Place place = place_of(i, kToRow);
    StoreElement(to + place.outside, shared[place.in_shared], aligned);
  }
}

// kToRow: gather. Null state: zeros.
template <bool kToRow, bool kHasTransposed, size_t kMax>
__global__ void __launch_bounds__(kThreads)
    CopyKernel(const __grid_constant__ Items<kMax> items, DeviceTiles plan, char* arena) {
  uint32_t index = blockIdx.x / plan.tile_count;
  uint32_t tile_index = blockIdx.x - index * plan.tile_count;
  if constexpr (kToRow) {
    const auto same = items.at[index].same;
    if (same.count > 1) {
      const uint32_t at = blockIdx.x - same.first * plan.tile_count;
      tile_index = at / same.count;
      index = same.first + (at - tile_index * same.count);
    }
  }
  const CopyItem item = items.at[index];
  const CopyTile tile = plan.tiles[tile_index];
  char* const row =
      arena + tile.arena_offset + item.row * tile.row_stride + (kToRow ? 0 : (item.accepted - 1) * tile.accept_stride);
  const bool zero = item.state == nullptr || tile_index >= plan.copy_count;
  char* const state = zero ? nullptr : item.state + tile.state_offset;
  char* const to = kToRow ? row : state;
  const char* const from = kToRow ? state : row;
  if (tile.kind == TileKind::kLinear) return CopyLinear(to, from, tile.bytes);
  if (tile.kind == TileKind::kRuns) return CopyRuns<kToRow>(tile, plan.axes, to, from);
  if constexpr (kHasTransposed) {
    __shared__ alignas(16) char shared[kTransposedTileBytes];
    switch (tile.run_bytes) {
      case 1: return CopyTransposed<WordOf<1>::Type, kToRow>(tile, to, from, shared);
      case 2: return CopyTransposed<WordOf<2>::Type, kToRow>(tile, to, from, shared);
      case 4: return CopyTransposed<WordOf<4>::Type, kToRow>(tile, to, from, shared);
      case 8: return CopyTransposed<WordOf<8>::Type, kToRow>(tile, to, from, shared);
      default: return CopyTransposed<WordOf<16>::Type, kToRow>(tile, to, from, shared);
    }
  }
}

template <size_t kMax>
absl::Status Launch(void (*kernel)(Items<kMax>, DeviceTiles, char*), absl::Span<const CopyItem> items,
                    DeviceTiles tiles, const void* arena, DeviceStream stream) {
  Items<kMax> at;
  std::copy(items.begin(), items.end(), at.at);
  void* arguments[] = {&at, &tiles, &arena};
  return DeviceStatus(cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                                       dim3(static_cast<uint32_t>(tiles.tile_count * items.size())), dim3(kThreads),
                                       arguments, 0, stream),
                      "launching a copy");
}

template <bool kToRow>
absl::Status LaunchCopy(absl::Span<const CopyItem> items, const DeviceTiles& tiles, bool has_transposed,
                        const void* arena, DeviceStream stream) {
  if (items.size() <= kFewItems) {
    return Launch(has_transposed ? CopyKernel<kToRow, true, kFewItems> : CopyKernel<kToRow, false, kFewItems>, items,
                  tiles, arena, stream);
  }
  return Launch(has_transposed ? CopyKernel<kToRow, true, DeviceCopyPlan::kBatchMax>
                               : CopyKernel<kToRow, false, DeviceCopyPlan::kBatchMax>,
                items, tiles, arena, stream);
}

// Calls launch(some) for as many items at a time as one launch has room for, each made by item_of.
template <typename Given, typename ItemOf, typename LaunchSome>
absl::Status InBatches(absl::Span<const Given> given, uint32_t tile_count, const ItemOf& item_of,
                       const LaunchSome& launch) {
  if (tile_count == 0) return absl::OkStatus();
  const size_t most = std::min<size_t>(DeviceCopyPlan::kBatchMax, std::numeric_limits<int32_t>::max() / tile_count);
  CopyItem items[DeviceCopyPlan::kBatchMax];
  for (size_t begin = 0, count; begin < given.size(); begin += count) {
    count = std::min(most, given.size() - begin);
    for (size_t i = 0; i < count; ++i) items[i] = item_of(given[begin + i]);
    if (absl::Status status = launch(absl::MakeSpan(items, count)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

CopyItem ItemOf(const DeviceCopyPlan::ScatterItem& item) {
  return {static_cast<char*>(item.state), item.row, {.accepted = item.accepted}};
}

uint64_t BytesOf(const auto& vector) { return vector.size() * sizeof(vector[0]); }

}  // namespace

absl::StatusOr<DeviceCopyPlan> DeviceCopyPlan::Create(const CopyPlan& plan) {
  const absl::StatusOr<CopyTiles> tiles = TilesOf(plan);
  if (!tiles.ok()) return tiles.status();
  const absl::StatusOr<LeafTiles> leaves = plan.is_whole() ? LeafTilesOf(plan) : LeafTiles();
  if (!leaves.ok()) return leaves.status();
  constexpr size_t kMost = std::numeric_limits<int32_t>::max();
  if (tiles->tiles.size() > kMost || leaves->tiles.size() > kMost) {
    return absl::UnimplementedError("a plan of 2^31 tiles or more");
  }
  if (absl::Status status = AllowScatterLeaves(); !status.ok()) return status;
  DeviceCopyPlan result;
  result.copy_count_ = static_cast<uint32_t>(tiles->copy_count);
  result.clear_count_ = static_cast<uint32_t>(tiles->tiles.size() - tiles->copy_count);
  result.leaf_tile_count_ = static_cast<uint32_t>(leaves->tiles.size());
  result.axis_count_ = tiles->axes.size();
  result.leaf_axis_count_ = leaves->axes.size();
  result.has_transposed_ = tiles->has_transposed;
  result.state_bytes_ = plan.state_bytes();
  std::vector<char> together;
  const auto put = [&together](const auto& vector) {
    const char* const begin = reinterpret_cast<const char*>(vector.data());
    together.insert(together.end(), begin, begin + BytesOf(vector));
  };
  put(tiles->tiles), put(leaves->tiles), put(tiles->axes), put(leaves->axes), put(leaves->first);
  result.device_bytes_ = together.size();
  cudaError_t error = cudaMalloc(&result.memory_, result.device_bytes_);
  if (error == cudaSuccess) {
    error = cudaMemcpy(result.memory_, together.data(), together.size(), cudaMemcpyHostToDevice);
  }
  if (error != cudaSuccess) return DeviceStatus(error, "putting a copy plan into the device's memory");
  return result;
}

DeviceCopyPlan::~DeviceCopyPlan() {
  if (memory_ != nullptr) (void)cudaFree(memory_);
}

DeviceCopyPlan::DeviceCopyPlan(DeviceCopyPlan&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      device_bytes_(other.device_bytes_),
      state_bytes_(other.state_bytes_),
      copy_count_(other.copy_count_),
      clear_count_(other.clear_count_),
      leaf_tile_count_(other.leaf_tile_count_),
      axis_count_(other.axis_count_),
      leaf_axis_count_(other.leaf_axis_count_),
      has_transposed_(other.has_transposed_) {}

// Where the parts of a plan lie in its memory.
struct DeviceCopyPlan::Tables {
  static DeviceTiles Tiles(const DeviceCopyPlan& plan) {
    return {static_cast<const CopyTile*>(plan.memory_), Axes(plan), plan.copy_count_ + plan.clear_count_,
            plan.copy_count_};
  }
  static DeviceLeaves Leaves(const DeviceCopyPlan& plan) {
    const TileAxis* const axes = Axes(plan) + plan.axis_count_;
    return {LeafBegin(plan), reinterpret_cast<const uint32_t*>(axes + plan.leaf_axis_count_), axes,
            static_cast<uint32_t>(LeafCount(plan.state_bytes_)), plan.state_bytes_};
  }
  static const CopyTile* LeafBegin(const DeviceCopyPlan& plan) {
    return static_cast<const CopyTile*>(plan.memory_) + plan.copy_count_ + plan.clear_count_;
  }
  static const TileAxis* Axes(const DeviceCopyPlan& plan) {
    return reinterpret_cast<const TileAxis*>(LeafBegin(plan) + plan.leaf_tile_count_);
  }
};

absl::Status DeviceCopyPlan::Gather(absl::Span<const GatherItem> items, void* arena, DeviceStream stream) const {
  const DeviceTiles tiles = Tables::Tiles(*this);
  return InBatches(
      items, tiles.tile_count,
      [](const GatherItem& item) {
        return CopyItem{const_cast<char*>(static_cast<const char*>(item.state)), item.row, {.same = {0, 1}}};
      },
      [&](absl::Span<CopyItem> some) {
        for (size_t begin = 0, end; begin < some.size(); begin = end) {
          for (end = begin + 1; end < some.size() && some[end].state == some[begin].state;) ++end;
          for (size_t i = begin; i < end; ++i) {
            some[i].same = {static_cast<uint16_t>(begin), static_cast<uint16_t>(end - begin)};
          }
        }
        return LaunchCopy<true>(some, tiles, has_transposed_, arena, stream);
      });
}

absl::Status DeviceCopyPlan::Scatter(absl::Span<const ScatterItem> items, const void* arena,
                                     DeviceStream stream) const {
  DeviceTiles tiles = Tables::Tiles(*this);
  tiles.tile_count = copy_count_;
  return InBatches(items, tiles.tile_count, ItemOf, [&](absl::Span<CopyItem> some) {
    return LaunchCopy<false>(some, tiles, has_transposed_, arena, stream);
  });
}

absl::Status DeviceCopyPlan::ScatterAndHash(absl::Span<const ScatterItem> items, const void* arena, LeafHash* hashes,
                                            DeviceStream stream) const {
  const DeviceLeaves leaves = Tables::Leaves(*this);
  return InBatches(items, leaves.count, ItemOf, [&](absl::Span<CopyItem> some) {
    LeafHash* const to = hashes;
    hashes += some.size() * leaves.count;
    return ScatterLeaves(some, leaves, arena, to, stream);
  });
}

}  // namespace statepool
