// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/history.h"

#include <algorithm>
#include <limits>

#include "server/core/name.h"

namespace statepool {

size_t RollbackTokens(absl::Span<const int64_t> positions) {
  size_t tokens = 0;
  while (tokens + 1 < positions.size() && positions[tokens + 1] == positions[tokens] - 1) ++tokens;
  return tokens;
}

TokenRange::TokenRange(int64_t begin, int64_t end)
    : begin_(std::max<int64_t>(begin, 0)), end_(end < 0 ? std::numeric_limits<int64_t>::max() : end) {}

std::optional<int64_t> Renumbering::PositionOf(int64_t position) const {
  if (add < -kMaxPosition || add > kMaxPosition) return std::nullopt;  // whatever is added to
  const int64_t index = (position - 1) / divide + add;
  if (index < 0 || index >= kMaxPosition) return std::nullopt;
  return index + 1;
}

}  // namespace statepool
