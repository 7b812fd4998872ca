// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/range_reader.h"

#include <algorithm>

namespace statepool {
namespace {

constexpr uint64_t kHashedAtOnceBytes = 4 << 20;  // whole leaves

}  // namespace

RangeReader::RangeReader(const PinnedImage* pin, absl::Span<const ByteRange> ranges)
    : pin_(pin), ranges_(ranges.begin(), ranges.end()), left_(BytesOf(ranges)) {}

// The next bytes that lie in one piece.
ByteRange RangeReader::Take(uint64_t most) {
  ByteRange& range = ranges_[next_];
  const ByteRange taken{range.offset, std::min(most, range.bytes)};
  range.offset += taken.bytes;
  range.bytes -= taken.bytes;
  left_ -= taken.bytes;
  if (range.bytes == 0) ++next_;
  return taken;
}

void RangeReader::Skip(uint64_t bytes) {
  while (bytes > 0) bytes -= Take(bytes).bytes;
}

absl::StatusOr<RangeReader::Bytes> RangeReader::Next(uint64_t bytes) {
  Bytes out;
  if (pin_->in_host_memory()) {
    for (uint64_t taken = 0; taken < bytes; taken += out.pieces.back().size()) {
      const ByteRange range = Take(bytes - taken);
      out.pieces.push_back(pin_->bytes().substr(range.offset, range.bytes));
    }
    return out;
  }
  const std::shared_ptr<char[]> copy(new char[bytes]);
  for (uint64_t taken = 0; taken < bytes;) {
    const ByteRange range = Take(bytes - taken);
    if (absl::Status status = pin_->CopyOut(range.offset, range.bytes, copy.get() + taken); !status.ok()) return status;
    taken += range.bytes;
  }
  out.pieces.emplace_back(copy.get(), bytes);
  out.copy = copy;
  return out;
}

absl::StatusOr<Checksum> ChecksumOfRanges(const PinnedImage& pin, absl::Span<const ByteRange> ranges) {
  if (pin.in_host_memory()) return ChecksumOfPieces(Cut(pin.bytes(), ranges));
  RangeReader reader(&pin, ranges);
  std::vector<LeafHash> leaves;
  while (reader.left() > 0) {
    const absl::StatusOr<RangeReader::Bytes> bytes = reader.Next(std::min(kHashedAtOnceBytes, reader.left()));
    if (!bytes.ok()) return bytes.status();
    const std::vector<LeafHash> hashes = HashLeaves(bytes->pieces[0]);
    leaves.insert(leaves.end(), hashes.begin(), hashes.end());
  }
  return HashRoot(leaves);
}

}  // namespace statepool
