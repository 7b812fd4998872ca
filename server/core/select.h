// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Select: some of a layout's tensors and layers, and where their bytes lie in an image.
#ifndef STATEPOOL_SERVER_CORE_SELECT_H_
#define STATEPOOL_SERVER_CORE_SELECT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/layout.h"

namespace statepool {

// Every tensor that is named, in every layer that is named and that it has. An empty list names all.
struct Select {
  std::vector<std::string> tensors;
  std::vector<uint32_t> layers;  // ascending
};

// Bytes [offset, offset + bytes) of an image.
struct ByteRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

// Ascending, none empty, none touching the next: the whole image is one range.
// Errors: INVALID_OPTION with the field (below `field`) for a tensor or layer that is unknown, named twice or had by no
// selected tensor.
absl::StatusOr<std::vector<ByteRange>> RangesOf(const Layout& layout, const Select& select,
                                                absl::string_view field = "select");

uint64_t BytesOf(absl::Span<const ByteRange> ranges);

// `image` cut to `ranges`. REQUIRES: they lie inside it.
std::vector<absl::string_view> Cut(absl::string_view image, absl::Span<const ByteRange> ranges);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_SELECT_H_
