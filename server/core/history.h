// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What may be done to the history of a sequence by counting its tokens: how far its head can go back token by token
// (after MLC-LLM's RNNState), and what becomes of its positions when a range of tokens is removed or numbered anew
// (after llama.cpp's llama_memory_recurrent). The rules stand in the .proto, under HISTORY and TOKENS; here they are
// arithmetic, without names and locks.
//
// A state at position P has seen the tokens with the indices 0..P-1.
#ifndef STATEPOOL_SERVER_CORE_HISTORY_H_
#define STATEPOOL_SERVER_CORE_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"

namespace statepool {

// How many tokens the head of a ring can go back by, one version for each: versions behind the head of which each is at
// the position of the one after it, less one. `positions`: of the ring's versions, newest first.
size_t RollbackTokens(absl::Span<const int64_t> positions);

// Indices [begin, end) of tokens.
class TokenRange {
 public:
  // As a request says it: a negative begin is 0, a negative end is after all tokens.
  TokenRange(int64_t begin, int64_t end);

  int64_t begin() const { return begin_; }
  // The last token of a state at `position` is in the range. There is none at position 0.
  bool HasLastOf(int64_t position) const { return begin_ < position && position <= end_; }
  bool empty() const { return end_ <= begin_; }
  // The range is not empty, and no token of a state at `position` is outside it.
  bool HasAllOf(int64_t position) const { return begin_ == 0 && end_ > 0 && position <= end_; }

 private:
  int64_t begin_, end_;
};

// Another index for tokens: index + add, or index / divide rounded down. Only one of the two is ever asked for, so that
// it need not be said which comes first.
struct Renumbering {
  int64_t add = 0;
  int64_t divide = 1;  // >= 1; else `add` is 0

  // The position of a state whose last token is numbered anew; nothing if its index would be negative, or the position
  // above kMaxPosition. REQUIRES: 1 <= position <= kMaxPosition.
  std::optional<int64_t> PositionOf(int64_t position) const;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_HISTORY_H_
