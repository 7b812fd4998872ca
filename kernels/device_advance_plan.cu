// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// One block moves one tile of one item; a grid is all tiles of the first item, then all of the second, and so on.
#include "kernels/device_advance_plan.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/advance_tiles.h"
#include "kernels/device_tiles.cuh"

namespace statepool {
namespace {

constexpr uint32_t kThreads = 128;
constexpr size_t kManyItems = DeviceAdvancePlan::kBatchMax;

struct MoveItem {
  uint64_t steps;  // AcceptedSteps::bits
  uint32_t from_row, to_row;
};
static_assert(sizeof(MoveItem) == 16);

template <size_t kMax>
struct MoveItems {
  MoveItem at[kMax];
};

struct DeviceTiles {
  const AdvanceTile* tiles;
  const TileAxis* axes;
  uint32_t tile_count;
};

// The columns that become column 0, 1 and so on of a window, one after the other (advance_plan.h).
class Columns {
 public:
  __device__ Columns(uint64_t steps, uint32_t window) : before_(window - 1), rest_(steps) {
    next_ = __popcll(steps) - 1;
    behind_ = window + (63 - __clzll(steps));
    for (uint32_t i = before_; i < next_; ++i) rest_ &= rest_ - 1;
  }
  __device__ uint32_t Next() {
    const uint32_t i = next_++;
    if (i < before_) return i;
    if (rest_ == 0) return behind_++;
    const uint32_t step = __ffsll(static_cast<long long>(rest_)) - 1;
    rest_ &= rest_ - 1;
    return before_ + step;
  }

 private:
  uint32_t next_;          // index into `in`
  const uint32_t before_;  // the path's columns begin there in `in`
  uint32_t behind_;        // the next column after them
  uint64_t rest_;          // steps of the path that are to come
};

template <typename Word>
__device__ void MoveSteps(const AdvanceTile& tile, const TileAxis* axes, char* to, const char* from) {
  constexpr uint32_t kAtOnce = 4;
  const Divisor run_of(tile.run_bytes);
  for (uint32_t begin = threadIdx.x * sizeof(Word); begin < tile.bytes; begin += kAtOnce * kThreads * sizeof(Word)) {
    Word word[kAtOnce];
    uint64_t place[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      const uint32_t at = begin + i * kThreads * sizeof(Word);
      if (at >= tile.bytes) continue;
      const uint32_t run = run_of(at);
      place[i] = PlaceOfRun(tile.runs, axes, run) + (at - run * tile.run_bytes);
      word[i] = *reinterpret_cast<const Word*>(from + place[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads * sizeof(Word) < tile.bytes) *reinterpret_cast<Word*>(to + place[i]) = word[i];
    }
  }
}

// A thread moves all columns of its words, first things first: what it writes over it has read, and nobody else has to
// do with it.
template <typename Word>
__device__ void MoveColumns(const AdvanceTile& tile, const TileAxis* axes, uint64_t steps, char* to, const char* from) {
  constexpr uint32_t kAtOnce = 4;
  const uint32_t count = tile.steps - (63 - __clzll(steps));
  const Divisor run_of(tile.run_bytes);
  for (uint32_t at = threadIdx.x * sizeof(Word); at < tile.bytes; at += kThreads * sizeof(Word)) {
    const uint32_t run = run_of(at);
    const uint64_t place = PlaceOfRun(tile.runs, axes, run) + (at - run * tile.run_bytes);
    Columns columns(steps, tile.window);
    for (uint32_t first = 0; first < count; first += kAtOnce) {
      Word word[kAtOnce];
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (first + i >= count) continue;
        word[i] = *reinterpret_cast<const Word*>(from + place + columns.Next() * tile.step_stride);
      }
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (first + i < count) *reinterpret_cast<Word*>(to + place + (first + i) * tile.step_stride) = word[i];
      }
    }
  }
}

template <size_t kMax>
__global__ void __launch_bounds__(kThreads)
    MoveKernel(const __grid_constant__ MoveItems<kMax> items, DeviceTiles plan, char* arena) {
  const uint32_t index = blockIdx.x / plan.tile_count;
  const MoveItem item = items.at[index];
  if (item.steps == 1 && item.from_row == item.to_row) return;
  const AdvanceTile tile = plan.tiles[blockIdx.x - index * plan.tile_count];
  char* const to = arena + tile.arena_offset + item.to_row * tile.row_stride;
  const char* from = arena + tile.arena_offset + item.from_row * tile.row_stride;
  if (tile.window == 0) from += (63 - __clzll(item.steps)) * tile.step_stride;
  WithWord(tile.runs.alignment | AddressOf(to) | AddressOf(from), [&]<typename Word>(Word) {
    if (tile.window == 0) MoveSteps<Word>(tile, plan.axes, to, from);
    else MoveColumns<Word>(tile, plan.axes, item.steps, to, from);
  });
}

template <size_t kMax>
absl::Status Launch(absl::Span<const AdvanceMove> items, DeviceTiles tiles, const void* arena,
                    DeviceStream stream) {
  MoveItems<kMax> at;
  for (size_t i = 0; i < items.size(); ++i) at.at[i] = {items[i].steps.bits(), items[i].from_row, items[i].to_row};
  void* arguments[] = {&at, &tiles, &arena};
  return DeviceStatus(cudaLaunchKernel(reinterpret_cast<const void*>(MoveKernel<kMax>),
                                       dim3(static_cast<uint32_t>(tiles.tile_count * items.size())), dim3(kThreads),
                                       arguments, 0, stream),
                      "launching a move of rows");
}

}  // namespace

absl::StatusOr<DeviceAdvancePlan> DeviceAdvancePlan::Create(const AdvancePlan& plan) {
  const absl::StatusOr<AdvanceTiles> tiles = AdvanceTilesOf(plan);
  if (!tiles.ok()) return tiles.status();
  if (tiles->tiles.size() > std::numeric_limits<int32_t>::max()) {
    return absl::UnimplementedError("a plan of 2^31 tiles or more");
  }
  DeviceAdvancePlan result;
  if (tiles->tiles.empty()) return result;
  const size_t tile_bytes = tiles->tiles.size() * sizeof(AdvanceTile);
  const size_t axis_bytes = tiles->axes.size() * sizeof(TileAxis);
  result.tile_count_ = static_cast<uint32_t>(tiles->tiles.size());
  result.device_bytes_ = tile_bytes + axis_bytes;
  cudaError_t error = cudaMalloc(&result.memory_, result.device_bytes_);
  if (error == cudaSuccess) error = cudaMemcpy(result.memory_, tiles->tiles.data(), tile_bytes, cudaMemcpyHostToDevice);
  if (error == cudaSuccess && axis_bytes > 0) {
    error = cudaMemcpy(static_cast<char*>(result.memory_) + tile_bytes, tiles->axes.data(), axis_bytes,
                       cudaMemcpyHostToDevice);
  }
  if (error != cudaSuccess) return DeviceStatus(error, "putting an advance plan into the device's memory");
  return result;
}

DeviceAdvancePlan::~DeviceAdvancePlan() {
  if (memory_ != nullptr) (void)cudaFree(memory_);
}

DeviceAdvancePlan::DeviceAdvancePlan(DeviceAdvancePlan&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      device_bytes_(other.device_bytes_),
      tile_count_(other.tile_count_) {}

absl::Status DeviceAdvancePlan::Move(absl::Span<const AdvanceMove> items, void* arena,
                                     DeviceStream stream) const {
  if (tile_count_ == 0) return absl::OkStatus();
  const auto* const tiles = static_cast<const AdvanceTile*>(memory_);
  const DeviceTiles table{tiles, reinterpret_cast<const TileAxis*>(tiles + tile_count_), tile_count_};
  const size_t most = std::min<size_t>(kManyItems, std::numeric_limits<int32_t>::max() / tile_count_);
  while (!items.empty()) {
    const absl::Span<const AdvanceMove> some = items.first(std::min(most, items.size()));
    items.remove_prefix(some.size());
    absl::Status status = some.size() <= kFewItems ? Launch<kFewItems>(some, table, arena, stream)
                                                   : Launch<kManyItems>(some, table, arena, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace statepool
