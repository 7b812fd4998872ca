// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// XXH3-64 of one leaf by one block of threads, for kernels that have a leaf at hand. As its specification has it:
// leaves of more than 240 bytes are summed up in stripes of 64, sixteen stripes then go through a scramble. Only the
// scrambles depend on one another, so the sums of all sixteens are made at once, by all warps of a block, and eight
// threads then go through the scrambles, while other blocks' reads keep the memory busy.
#ifndef STATEPOOL_KERNELS_DEVICE_XXH3_CUH_
#define STATEPOOL_KERNELS_DEVICE_XXH3_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/checksum.h"

namespace statepool {
namespace {

constexpr uint32_t kStripeBytes = 64;
constexpr uint32_t kStripes = 16;  // to a scramble
constexpr uint32_t kGroupBytes = kStripes * kStripeBytes;
constexpr uint32_t kGroups = kLeafBytes / kGroupBytes;
constexpr uint32_t kShortBytes = 240;

constexpr uint32_t kPrime32_1 = 0x9E3779B1, kPrime32_2 = 0x85EBCA77, kPrime32_3 = 0xC2B2AE3D;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87, kPrime64_2 = 0xC2B2AE3D27D4EB4F, kPrime64_3 = 0x165667B19E3779F9,
                   kPrime64_4 = 0x85EBCA77C2B2AE63, kPrime64_5 = 0x27D4EB2F165667C5;

constexpr uint8_t kSecret[] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,  //
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,  //
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,  //
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,  //
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,  //
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,  //
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,  //
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,  //
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,  //
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,  //
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,  //
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

// The secret's words from some byte on, every eighth byte, as far as they go.
struct Words {
  uint64_t at[24];
};
constexpr Words SecretFrom(uint32_t begin) {
  Words words = {};
  for (uint32_t i = 0; begin + i + 8 <= sizeof(kSecret); i += 8) {
    for (uint32_t byte = 0; byte < 8; ++byte) words.at[i / 8] |= uint64_t{kSecret[begin + i + byte]} << (8 * byte);
  }
  return words;
}
__constant__ const Words kKeys = SecretFrom(0);         // of stripes; from the 16th on of scrambles
__constant__ const Words kLastKeys = SecretFrom(121);   // of the last stripe
__constant__ const Words kMergeKeys = SecretFrom(11);   // of the end
__constant__ const Words kMiddleKeys = SecretFrom(3);   // of leaves of 129 to 240 bytes
__constant__ const Words kMiddleEnd = SecretFrom(119);  // of their last bytes
__constant__ const uint64_t kStart[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                         kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};

template <typename Bytes>
__device__ uint32_t HalfAt(const Bytes& bytes, uint32_t at) {
  return bytes.Byte(at) | bytes.Byte(at + 1) << 8 | bytes.Byte(at + 2) << 16 | bytes.Byte(at + 3) << 24;
}
template <typename Bytes>
__device__ uint64_t WordAt(const Bytes& bytes, uint32_t at) {
  return HalfAt(bytes, at) | uint64_t{HalfAt(bytes, at + 4)} << 32;
}

__device__ uint64_t MultiplyFold(uint64_t a, uint64_t b) { return (a * b) ^ __umul64hi(a, b); }

__device__ uint64_t Avalanche(uint64_t h) {
  h ^= h >> 37;
  h *= 0x165667919E3779F9;
  return h ^ h >> 32;
}

__device__ uint64_t RotatedLeft(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

__device__ uint64_t SwappedBytes(uint64_t x) {
  return uint64_t{__byte_perm(static_cast<uint32_t>(x), 0, 0x0123)} << 32 |
         __byte_perm(static_cast<uint32_t>(x >> 32), 0, 0x0123);
}

template <typename Bytes>
__device__ uint64_t Mix16(const Bytes& bytes, uint32_t at, const uint64_t* keys) {
  return MultiplyFold(WordAt(bytes, at) ^ keys[0], WordAt(bytes, at + 8) ^ keys[1]);
}

// 1 to 240 bytes: by one thread, for there is at most one such leaf to an image.
template <typename Bytes>
__device__ uint64_t HashShort(const Bytes& bytes, uint32_t size) {
  if (size <= 3) {
    const uint32_t all = bytes.Byte(0) << 16 | bytes.Byte(size >> 1) << 24 | bytes.Byte(size - 1) | size << 8;
    uint64_t h = all ^ uint64_t { static_cast<uint32_t>(kKeys.at[0]) ^ static_cast<uint32_t>(kKeys.at[0] >> 32) };
    h = (h ^ h >> 33) * kPrime64_2;
    h = (h ^ h >> 29) * kPrime64_3;
    return h ^ h >> 32;
  }
  if (size <= 8) {
    const uint64_t all = HalfAt(bytes, size - 4) + (uint64_t{HalfAt(bytes, 0)} << 32);
    uint64_t h = all ^ kKeys.at[1] ^ kKeys.at[2];
    h ^= RotatedLeft(h, 49) ^ RotatedLeft(h, 24);
    h *= 0x9FB21C651E98DF25;
    h ^= (h >> 35) + size;
    h *= 0x9FB21C651E98DF25;
    return h ^ h >> 28;
  }
  if (size <= 16) {
    const uint64_t low = WordAt(bytes, 0) ^ kKeys.at[3] ^ kKeys.at[4];
    const uint64_t high = WordAt(bytes, size - 8) ^ kKeys.at[5] ^ kKeys.at[6];
    return Avalanche(size + SwappedBytes(low) + high + MultiplyFold(low, high));
  }
  uint64_t sum = size * kPrime64_1;
  if (size <= 128) {
    for (uint32_t i = 0; i <= (size - 1) / 32; ++i) {
      sum += Mix16(bytes, 16 * i, &kKeys.at[4 * i]);
      sum += Mix16(bytes, size - 16 * (i + 1), &kKeys.at[4 * i + 2]);
    }
    return Avalanche(sum);
  }
  for (uint32_t i = 0; i < 8; ++i) sum += Mix16(bytes, 16 * i, &kKeys.at[2 * i]);
  sum = Avalanche(sum);
  for (uint32_t i = 8; i < size / 16; ++i) sum += Mix16(bytes, 16 * i, &kMiddleKeys.at[2 * (i - 8)]);
  return Avalanche(sum + Mix16(bytes, size - 16, kMiddleEnd.at));
}

// What one word of a stripe adds to its own sum.
__device__ uint64_t Product(uint64_t word, uint64_t key) {
  const uint64_t keyed = word ^ key;
  return uint64_t{static_cast<uint32_t>(keyed)} * static_cast<uint32_t>(keyed >> 32);
}

// What the warps of a block leave for the scrambles.
struct GroupSums {
  uint64_t of[kGroups][8];
};

// Of a leaf of `size` bytes.
struct LeafParts {
  uint32_t scrambles, stripes;  // whole stripes after the last scramble

  __device__ explicit LeafParts(uint32_t size)
      : scrambles((size - 1) / kGroupBytes), stripes((size - 1 - scrambles * kGroupBytes) / kStripeBytes) {}
};

// The first half of hashing a leaf: all threads of a block of kWarps warps, each of which gives to FinishHash what it
// gets. `bytes` reads the leaf: Two(at) the words at `at`, a multiple of 16, and at + 8; Byte(at) one byte, as a
// uint32_t.
template <uint32_t kWarps, typename Bytes>
__device__ uint64_t SumGroups(const Bytes& bytes, uint32_t size, GroupSums& sums) {
  constexpr uint32_t kGroupsAtOnce = 4;  // a warp's
  if (size <= kShortBytes) return 0;
  const LeafParts parts(size);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // The last stripe, wherever it begins: read with the others, not when they are done.
  const uint64_t last = threadIdx.x < 8 ? WordAt(bytes, size - kStripeBytes + 8 * threadIdx.x) : 0;

  // A lane has two vectors of 16 bytes of each group: words 2p and 2p + 1 of stripes `stripe` and `stripe` + 8.
  const uint32_t stripe = lane / 4, p = lane % 4;
  uint64_t keys[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) keys[i] = kKeys.at[stripe + 2 * p + i / 2 * 8 + i % 2];
  for (uint32_t group = warp * kGroupsAtOnce; group * kGroupBytes + kStripeBytes < size;
       group += kWarps * kGroupsAtOnce) {
    uint64_t words[kGroupsAtOnce][4];
    uint32_t valid = 0;  // of the vectors
#pragma unroll
    for (uint32_t i = 0; i < kGroupsAtOnce * 2; ++i) {
      const uint32_t of = group + i / 2;
      const uint32_t whole = of < parts.scrambles ? kStripes : of == parts.scrambles ? parts.stripes : 0;
      uint64_t* const two = &words[i / 2][i % 2 * 2];
      two[0] = two[1] = 0;
      if (stripe + i % 2 * 8 >= whole) continue;
      valid |= 1u << i;
      const ulonglong2 vector = bytes.Two(of * kGroupBytes + (lane + i % 2 * 32) * 16);
      two[0] = vector.x, two[1] = vector.y;
    }
    uint64_t sum[kGroupsAtOnce * 2];  // of words 2p and 2p + 1, group by group
#pragma unroll
    for (uint32_t i = 0; i < kGroupsAtOnce; ++i) {
      uint64_t even = words[i][1] + words[i][3], odd = words[i][0] + words[i][2];
      if (valid >> (2 * i) & 1) even += Product(words[i][0], keys[0]), odd += Product(words[i][1], keys[1]);
      if (valid >> (2 * i + 1) & 1) even += Product(words[i][2], keys[2]), odd += Product(words[i][3], keys[3]);
      sum[2 * i] = even, sum[2 * i + 1] = odd;
    }
    // Of the eight lanes with the same p each ends up with one of the eight sums.
#pragma unroll
    for (uint32_t half = 4, mask = 16; half > 0; half /= 2, mask /= 2) {
      const bool upper = (lane & mask) != 0;
#pragma unroll
      for (uint32_t i = 0; i < half; ++i) {
        const uint64_t given = upper ? sum[i] : sum[i + half];
        const uint64_t kept = upper ? sum[i + half] : sum[i];
        sum[i] = kept + __shfl_xor_sync(~0u, given, mask);
      }
    }
    const uint32_t mine = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    sums.of[group + mine / 2][2 * p + mine % 2] = sum[0];
  }
  return last;
}

// The second, after a barrier: threads 0 to 7 put the leaf's hash to *hash.
template <typename Bytes>
__device__ void FinishHash(const Bytes& bytes, uint32_t size, const GroupSums& sums, uint64_t last, uint64_t* hash) {
  const uint32_t lane = threadIdx.x;
  if (size <= kShortBytes) {
    if (lane == 0) *hash = HashShort(bytes, size);
    return;
  }
  const LeafParts parts(size);
  constexpr uint32_t kEight = 0xff;
  uint64_t sum = kStart[lane];
  const uint64_t key = kKeys.at[16 + lane];
#pragma unroll 8
  for (uint32_t i = 0; i < parts.scrambles; ++i) {
    sum += sums.of[i][lane];
    sum = (sum ^ sum >> 47 ^ key) * kPrime32_1;
  }
  if (parts.stripes > 0) sum += sums.of[parts.scrambles][lane];
  sum += Product(last, kLastKeys.at[lane]) + __shfl_xor_sync(kEight, last, 1);
  const uint64_t keyed = sum ^ kMergeKeys.at[lane];
  uint64_t merged = MultiplyFold(keyed, __shfl_xor_sync(kEight, keyed, 1));
  merged += __shfl_xor_sync(kEight, merged, 2);
  merged += __shfl_xor_sync(kEight, merged, 4);
  if (lane == 0) *hash = Avalanche(merged + size * kPrime64_1);
}

}  // namespace
}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_XXH3_CUH_
