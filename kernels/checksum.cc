// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/checksum.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "kernels/xxh3.h"

namespace statepool {

static_assert(std::endian::native == std::endian::little, "leaf hashes are hashed as little-endian bytes");

LeafHash HashLeaf(absl::string_view leaf) { return Xxh3(leaf.data(), leaf.size()); }

Checksum HashRoot(absl::Span<const LeafHash> leaves) { return Xxh3(leaves.data(), leaves.size() * sizeof(LeafHash)); }

std::vector<LeafHash> HashLeaves(absl::string_view bytes) {
  std::vector<LeafHash> leaves;
  leaves.reserve(LeafCount(bytes.size()));
  for (size_t at = 0; at < bytes.size(); at += kLeafBytes) leaves.push_back(HashLeaf(bytes.substr(at, kLeafBytes)));
  return leaves;
}

Checksum ChecksumOf(absl::string_view bytes) { return HashRoot(HashLeaves(bytes)); }

Checksum ChecksumOfPieces(absl::Span<const absl::string_view> pieces) {
  std::vector<LeafHash> leaves;
  std::string leaf;  // one that lies across pieces
  for (absl::string_view piece : pieces) {
    while (!piece.empty()) {
      const size_t n = std::min(piece.size(), kLeafBytes - leaf.size());
      if (n == kLeafBytes) {
        leaves.push_back(HashLeaf(piece.substr(0, n)));
      } else {
        leaf.append(piece.data(), n);
        if (leaf.size() == kLeafBytes) {
          leaves.push_back(HashLeaf(leaf));
          leaf.clear();
        }
      }
      piece.remove_prefix(n);
    }
  }
  if (!leaf.empty()) leaves.push_back(HashLeaf(leaf));
  return HashRoot(leaves);
}

CopyHasher::CopyHasher(char* destination, size_t size) : destination_(destination), size_(size) {
  leaves_.reserve(LeafCount(size));
}

void CopyHasher::Append(absl::string_view piece) {
  assert(copied_ + piece.size() <= size_);
  while (!piece.empty()) {
    const size_t room = hashed_ + kLeafBytes - copied_;
    const size_t n = std::min(room, piece.size());
    std::memcpy(destination_ + copied_, piece.data(), n);
    copied_ += n;
    piece.remove_prefix(n);
    if (copied_ == hashed_ + kLeafBytes) {
      leaves_.push_back(HashLeaf({destination_ + hashed_, kLeafBytes}));
      hashed_ = copied_;
    }
  }
}

const std::vector<LeafHash>& CopyHasher::Finish() {
  assert(copied_ == size_);
  if (hashed_ < copied_) {
    leaves_.push_back(HashLeaf({destination_ + hashed_, copied_ - hashed_}));
    hashed_ = copied_;
  }
  return leaves_;
}

std::string ChecksumToHex(Checksum checksum) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex(16, '0');
  for (int i = 15; i >= 0; --i, checksum >>= 4) hex[i] = kDigits[checksum & 15];
  return hex;
}

bool ChecksumFromHex(absl::string_view hex, Checksum* checksum) {
  if (hex.size() != 16) return false;
  uint64_t value = 0;
  for (char c : hex) {
    int digit;
    if (c >= '0' && c <= '9') digit = c - '0';
    else if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
    else return false;
    value = value << 4 | static_cast<uint64_t>(digit);
  }
  *checksum = value;
  return true;
}

}  // namespace statepool
