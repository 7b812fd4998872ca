// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What kernels that copy tiles have in common: their items, words of every width, places of runs.
#ifndef STATEPOOL_KERNELS_DEVICE_TILES_CUH_
#define STATEPOOL_KERNELS_DEVICE_TILES_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/copy_tiles.h"
#include "kernels/device_leaves.h"

namespace statepool {

constexpr size_t kFewItems = 64;  // what a small batch takes with it as arguments

template <size_t kMax>
struct Items {
  CopyItem at[kMax];
};

template <uint32_t kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using Type = uint8_t;
};
template <>
struct WordOf<2> {
  using Type = uint16_t;
};
template <>
struct WordOf<4> {
  using Type = uint32_t;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// Calls visit(Word()) with the widest word that `offsets`, addresses among them, are multiples of.
template <typename Visit>
__device__ void WithWord(uint64_t offsets, const Visit& visit) {
  switch (offsets & 15) {
    case 0: return visit(uint4());
    case 8: return visit(uint2());
    case 4:
    case 12: return visit(uint32_t());
    default: return offsets % 2 == 0 ? visit(uint16_t()) : visit(uint8_t());
  }
}

inline __device__ uint64_t AddressOf(const void* p) { return reinterpret_cast<uint64_t>(p); }

// Where a run lies in the row.
inline __device__ uint64_t PlaceOfRun(const CopyTile::Runs& runs, const TileAxis* axes, uint32_t run) {
  uint32_t index = runs.first + run;
  uint64_t place = 0;
  for (uint32_t i = 0; i + 1 < runs.axis_count; ++i) {
    const TileAxis axis = axes[runs.axis + i];
    const uint32_t t = __umulhi(index, axis.magic);
    const uint32_t outer = (t + ((index - t) >> axis.shift_1)) >> axis.shift_2;
    place += (index - outer * axis.size) * axis.row_stride;
    index = outer;
  }
  return runs.axis_count == 0 ? place : place + index * axes[runs.axis + runs.axis_count - 1].row_stride;
}

// Division of numbers below 2^14 by one below 2^14.
class Divisor {
 public:
  __device__ explicit Divisor(uint32_t size) : inverse_(size == 1 ? 0 : ~0u / size + 1) {}
  __device__ uint32_t operator()(uint32_t n) const { return inverse_ == 0 ? n : __umulhi(n, inverse_); }

 private:
  const uint32_t inverse_;
};

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_TILES_CUH_
