// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// RangeReader: parts of a pinned image, one after the other, for whoever wants them in host memory.
#ifndef STATEPOOL_SERVER_CORE_RANGE_READER_H_
#define STATEPOOL_SERVER_CORE_RANGE_READER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "server/core/image_store.h"
#include "server/core/select.h"

namespace statepool {

// Not thread-safe. The pin must outlive it, and the pieces that lie in the image.
class RangeReader {
 public:
  // REQUIRES: the ranges lie inside the image.
  RangeReader(const PinnedImage* pin, absl::Span<const ByteRange> ranges);

  struct Bytes {
    std::vector<absl::string_view> pieces;  // of the image, or of `copy`
    std::shared_ptr<const char[]> copy;     // null: the pieces lie in the image
  };

  uint64_t left() const { return left_; }
  void Skip(uint64_t bytes);  // REQUIRES: bytes <= left()
  // The next bytes; in place where the CPU can read the image, else copied. REQUIRES: bytes <= left(). Errors:
  // CopyOut's.
  absl::StatusOr<Bytes> Next(uint64_t bytes);

 private:
  ByteRange Take(uint64_t most);

  const PinnedImage* const pin_;
  std::vector<ByteRange> ranges_;  // what is left, from next_ on
  size_t next_ = 0;
  uint64_t left_;
};

// As the checksum of the ranges' bytes in one piece.
absl::StatusOr<Checksum> ChecksumOfRanges(const PinnedImage& pin, absl::Span<const ByteRange> ranges);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_RANGE_READER_H_
