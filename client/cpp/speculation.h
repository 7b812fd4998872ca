// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Speculative decoding (SPECULATION in proto/statepool/v1/statepool.proto): which of the tokens that a step has
// verified hold, and when an engine with blocks caches a state. Pure functions, thread-safe; those of the Python
// package (statepool.speculation) give the same.
//
// Errors: INVALID_ARGUMENT with the reason INVALID_PATH (trees) or INVALID_OPTION (blocks), and the field.
#ifndef STATEPOOL_CLIENT_CPP_SPECULATION_H_
#define STATEPOOL_CLIENT_CPP_SPECULATION_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

inline constexpr size_t kStepsMax = 64;  // most steps that a row can hold (Capabilities.max_arena_steps)

// The path to the accepted token of a tree, for AdvanceItem.path and StoreItem.path. `parents` are those of each token
// in the order of their steps: a smaller step, or -1 where it follows the tokens of earlier steps of the model; a chain
// is -1, 0, 1 and so on. `accepted` is the step of the last token that holds. Errors: a parent that is not before its
// token, an accepted step that is none, no token or more than kStepsMax.
absl::StatusOr<std::vector<uint32_t>> PathOf(absl::Span<const int32_t> parents, uint32_t accepted);

// The number of tokens of a tree that must be a chain, where an engine (MLC-LLM's RNNState) takes no other. Errors: the
// same, and a tree that is none.
absl::StatusOr<uint32_t> ChainOf(absl::Span<const int32_t> parents);

// An item that moves the row along that path.
absl::StatusOr<v1::AdvanceItem> AdvanceAlong(uint32_t row, absl::Span<const int32_t> parents, uint32_t accepted);

// ---- vLLM's align mode, for blocks of `block` tokens, at least 1. Statepool keeps any position, and needs none of
// this: it tells an engine that finds states by blocks alone which ones to store. With StoreItem.align a Store goes by
// AlignAfter itself. No argument is above 2^53.

// What such an engine does before a step.
struct BlockCopy {
  bool copies = false;  // the state of block `source` is to be copied to block `target`
  int64_t source = -1;  // -1: there is none
  int64_t target = 0;
};
// prev = stored or (computed - 1) / block, cur = ceil((computed + scheduled) / block) - 1, and a copy where prev is
// neither -1 nor cur. `computed` tokens have their state, `scheduled` are those of this step, drafts included, at least
// 1; `stored`, if not 0, is the block that is known to have the state.
absl::StatusOr<BlockCopy> AlignBefore(uint64_t block, uint64_t computed, uint64_t scheduled, uint64_t stored = 0);

// And after it.
struct BlockCache {
  bool caches = false;    // the state at `position` is to be kept
  int64_t position = 0;   // a multiple of the block
  uint64_t accepted = 0;  // the accepted length that names this state; 0: nothing is cached
  int64_t block = -1;     // index of the block that it ends
};
// With R = computed + scheduled - draft and N = R + accepted - 1 tokens, the state at A = floor(N / block) * block is
// cached if A >= R: it is that of accepted length 1 + A - R. `draft` tokens of the step, fewer than scheduled, were
// drafts; `accepted` hold, 1..draft + 1.
absl::StatusOr<BlockCache> AlignAfter(uint64_t block, uint64_t computed, uint64_t scheduled, uint64_t draft,
                                      uint64_t accepted);

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_SPECULATION_H_
