// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/select.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

absl::Status Refused(absl::string_view field, absl::string_view list, size_t index, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_OPTION", message)
      .Field(absl::StrCat(field, ".", list, "[", index, "]"));
}

}  // namespace

absl::StatusOr<std::vector<ByteRange>> RangesOf(const Layout& layout, const Select& select, absl::string_view field) {
  const std::vector<TensorSpec>& tensors = layout.spec().tensors;
  std::vector<bool> selected(tensors.size(), select.tensors.empty());
  for (size_t i = 0; i < select.tensors.size(); ++i) {
    const auto found = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const TensorSpec& tensor) { return tensor.name == select.tensors[i]; });
    if (found == tensors.end()) return Refused(field, "tensors", i, "the layout has no tensor of this name");
    const auto index = static_cast<size_t>(found - tensors.begin());
    if (selected[index]) return Refused(field, "tensors", i, "this tensor is named twice");
    selected[index] = true;
  }
  for (size_t i = 1; i < select.layers.size(); ++i) {
    if (select.layers[i] <= select.layers[i - 1]) return Refused(field, "layers", i, "layers ascend, each named once");
  }

  std::vector<bool> had(select.layers.size(), false);
  std::vector<ByteRange> ranges;
  uint64_t offset = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const uint64_t layer_bytes = tensors[t].LayerBytes();
    for (uint32_t layer : tensors[t].layers) {
      const auto at = std::lower_bound(select.layers.begin(), select.layers.end(), layer);
      const bool named = at != select.layers.end() && *at == layer;
      if (selected[t] && named) had[static_cast<size_t>(at - select.layers.begin())] = true;
      if (selected[t] && (named || select.layers.empty())) {
        if (!ranges.empty() && ranges.back().offset + ranges.back().bytes == offset) {
          ranges.back().bytes += layer_bytes;
        } else {
          ranges.push_back({offset, layer_bytes});
        }
      }
      offset += layer_bytes;
    }
  }
  for (size_t i = 0; i < had.size(); ++i) {
    if (!had[i]) return Refused(field, "layers", i, absl::StrCat("no selected tensor has layer ", select.layers[i]));
  }
  return ranges;
}

uint64_t BytesOf(absl::Span<const ByteRange> ranges) {
  uint64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.bytes;
  return bytes;
}

std::vector<absl::string_view> Cut(absl::string_view image, absl::Span<const ByteRange> ranges) {
  std::vector<absl::string_view> pieces;
  pieces.reserve(ranges.size());
  for (const ByteRange& range : ranges) pieces.push_back(image.substr(range.offset, range.bytes));
  return pieces;
}

}  // namespace statepool
