// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The checksum of an image: XXH3-64 of each leaf of 64 KiB, and a root over the leaves.
//
// Leaves make ranges verifiable: a chunk that starts at a multiple of kLeafBytes can be checked by itself. The
// definition is that of proto/statepool/v1/statepool.proto (BYTES). All functions are thread-safe and never fail.
#ifndef STATEPOOL_KERNELS_CHECKSUM_H_
#define STATEPOOL_KERNELS_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace statepool {

inline constexpr size_t kLeafBytes = 64 << 10;

using LeafHash = uint64_t;  // XXH3-64 of one leaf, seed 0
using Checksum = uint64_t;  // XXH3-64 over the leaves' hashes as little-endian bytes, seed 0

inline constexpr size_t LeafCount(uint64_t bytes) { return (bytes + kLeafBytes - 1) / kLeafBytes; }

LeafHash HashLeaf(absl::string_view leaf);
Checksum HashRoot(absl::Span<const LeafHash> leaves);

// Leaves of `bytes`, cut from its beginning.
std::vector<LeafHash> HashLeaves(absl::string_view bytes);

// Root of a whole image that lies in one piece.
Checksum ChecksumOf(absl::string_view bytes);

// The same of an image that lies in pieces, of any sizes, one after the other.
Checksum ChecksumOfPieces(absl::Span<const absl::string_view> pieces);

// Copies pieces of an image that arrive in any sizes to `destination` and hashes each leaf while it is in the cache.
// Not thread-safe. REQUIRES: Append's total never exceeds `size`.
class CopyHasher {
 public:
  CopyHasher(char* destination, size_t size);
  void Append(absl::string_view piece);
  size_t copied() const { return copied_; }
  // REQUIRES: copied() == size. Leaves of everything appended.
  const std::vector<LeafHash>& Finish();

 private:
  char* const destination_;
  const size_t size_;
  size_t copied_ = 0;
  size_t hashed_ = 0;  // a multiple of kLeafBytes, until Finish
  std::vector<LeafHash> leaves_;
};

// 16 lower-case hex digits, and back. Parse gives false for anything else.
std::string ChecksumToHex(Checksum checksum);
bool ChecksumFromHex(absl::string_view hex, Checksum* checksum);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_CHECKSUM_H_
