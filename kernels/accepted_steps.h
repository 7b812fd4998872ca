// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Which of the tokens that a model's step has verified hold, and so what Advance and Store make of a row, as the .proto
// has it (SPECULATION): for the daemon and for clients that copy themselves. Pure functions, thread-safe.
#ifndef STATEPOOL_KERNELS_ACCEPTED_STEPS_H_
#define STATEPOOL_KERNELS_ACCEPTED_STEPS_H_

#include <bit>
#include <cassert>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"

namespace statepool {

inline constexpr uint32_t kAcceptedStepsMax = 64;

// The steps of a path, of a chain or in a tree: bit i is step i. Paths ascend, so the set has their order as well.
class AcceptedSteps {
 public:
  // REQUIRES: 1 <= length <= kAcceptedStepsMax.
  static AcceptedSteps Chain(uint32_t length) {
    assert(length >= 1 && length <= kAcceptedStepsMax);
    return AcceptedSteps(~uint64_t{0} >> (kAcceptedStepsMax - length));
  }
  // REQUIRES: bits != 0.
  explicit AcceptedSteps(uint64_t bits = 1) : bits_(bits) {}

  uint64_t bits() const { return bits_; }
  uint32_t length() const { return static_cast<uint32_t>(std::popcount(bits_)); }
  uint32_t last() const { return static_cast<uint32_t>(std::bit_width(bits_)) - 1; }
  bool is_chain() const { return length() == last() + 1; }
  // Those of its first `count` tokens. REQUIRES: 1 <= count <= length().
  AcceptedSteps First(uint32_t count) const {
    uint64_t rest = bits_;
    for (uint32_t i = 0; i < count; ++i) rest &= rest - 1;
    return AcceptedSteps(bits_ ^ rest);
  }

  friend bool operator==(const AcceptedSteps&, const AcceptedSteps&) = default;

 private:
  uint64_t bits_;
};

// What Advance is asked to skip (AdvanceRequest).
struct AdvanceRules {
  bool skip_none = false, skip_out_of_range = false;
  uint32_t verified_length = 0;
};

// What is to become of a row. Those before kNoLength are AdvancedRow.Outcome, with its numbers; the others are errors.
enum class AdvanceOutcome : uint8_t {
  kMoved = 1,
  kInPlace = 2,
  kSkippedNone = 3,
  kSkippedOutOfRange = 4,
  kSkippedAll = 5,
  kNoLength,       // neither length nor path
  kLengthAndPath,  // both
  kBadLength,
  kBadPath,
};

struct Accepted {
  AdvanceOutcome outcome = AdvanceOutcome::kBadLength;
  AcceptedSteps steps{};  // of kMoved and kInPlace
};

// A path as a set; nothing: it is empty, does not ascend, or has a step from steps_max on. REQUIRES: steps_max <=
// kAcceptedStepsMax.
inline std::optional<AcceptedSteps> PathOf(absl::Span<const uint32_t> path, uint32_t steps_max) {
  uint64_t bits = 0;
  for (const uint32_t step : path) {
    if (step >= steps_max || bits >> step != 0) return std::nullopt;
    bits |= uint64_t{1} << step;
  }
  if (bits == 0) return std::nullopt;
  return AcceptedSteps(bits);
}

// Of an AdvanceItem; `is_to_another`: the state is for another row. REQUIRES: 1 <= steps_max <= kAcceptedStepsMax.
inline Accepted AcceptedOf(std::optional<uint32_t> length, absl::Span<const uint32_t> path, bool is_to_another,
                           uint32_t steps_max, const AdvanceRules& rules) {
  Accepted accepted;
  if (length.has_value() && !path.empty()) {
    accepted.outcome = AdvanceOutcome::kLengthAndPath;
    return accepted;
  }
  if (!length.has_value() && path.empty()) {
    accepted.outcome = AdvanceOutcome::kNoLength;
    return accepted;
  }
  std::optional<AcceptedSteps> steps;
  if (!path.empty()) {
    steps = PathOf(path, steps_max);
    accepted.outcome = AdvanceOutcome::kBadPath;
  } else if (*length == 0) {
    if (rules.skip_none) accepted.outcome = AdvanceOutcome::kSkippedNone;
  } else if (*length <= steps_max) {
    steps = AcceptedSteps::Chain(*length);
  } else if (rules.skip_out_of_range) {
    accepted.outcome = AdvanceOutcome::kSkippedOutOfRange;
  }
  const uint32_t tokens = steps ? steps->length() : length.value_or(0);
  if (rules.verified_length > 0 && tokens >= rules.verified_length) {
    accepted.outcome = AdvanceOutcome::kSkippedAll;
  } else if (steps) {
    const bool is_there = steps->bits() == 1 && !is_to_another;
    accepted = {is_there ? AdvanceOutcome::kInPlace : AdvanceOutcome::kMoved, *steps};
  }
  return accepted;
}

// What a StoreItem asks for beside its tokens, and of which arena.
struct StoreRules {
  uint32_t steps_max = 1;    // 1..kAcceptedStepsMax
  bool has_windows = false;  // AdvancePlan::has_windows
  bool skip_none = false;
  uint64_t align = 0;  // 0: none
};

inline constexpr int64_t kAlignedPositionMax = int64_t{1} << 53;  // what is above is no position

// What is to be stored of a row. Those from kLengthAndPath on are errors.
enum class StoreOutcome : uint8_t {
  kStored,
  kSkipped,
  kLengthAndPath,
  kBadLength,
  kBadPath,
  kTreeOfWindows,  // a path that is no chain, of tensors with windows
};

struct ToStore {
  StoreOutcome outcome = StoreOutcome::kBadLength;
  std::optional<AcceptedSteps> steps{};  // that hold: to where the row is advanced. None of what is refused, or empty
  uint32_t length = 0;                   // of what is stored: the accepted length that names its state; else 0
  int64_t position = 0;                  // of that state
};

// Of a StoreItem with this position, which counts for nothing if it is none: whoever looks at it refuses it.
inline ToStore ToStoreOf(std::optional<uint32_t> length, absl::Span<const uint32_t> path, int64_t position,
                         const StoreRules& rules) {
  ToStore to_store;
  to_store.position = position;
  if (!path.empty()) {
    to_store.outcome = StoreOutcome::kLengthAndPath;
    if (length.has_value()) return to_store;
    to_store.outcome = StoreOutcome::kBadPath;
    const std::optional<AcceptedSteps> steps = PathOf(path, rules.steps_max);
    if (!steps) return to_store;
    to_store.outcome = StoreOutcome::kTreeOfWindows;
    if (rules.has_windows && !steps->is_chain()) return to_store;
    to_store.steps = steps;
  } else if (length.value_or(1) == 0 && rules.skip_none) {
    to_store.outcome = StoreOutcome::kSkipped;
    return to_store;
  } else if (length.value_or(1) == 0 || length.value_or(1) > rules.steps_max) {
    return to_store;
  } else {
    to_store.steps = AcceptedSteps::Chain(length.value_or(1));
  }
  uint32_t tokens = to_store.steps->length();
  if (rules.align > 0 && position >= 0 && position <= kAlignedPositionMax) {
    const uint64_t behind = static_cast<uint64_t>(position) % rules.align;  // N - A
    to_store.position -= static_cast<int64_t>(behind);
    if (to_store.position == 0 || behind >= tokens) {
      to_store.outcome = StoreOutcome::kSkipped;
      return to_store;
    }
    tokens -= static_cast<uint32_t>(behind);
  }
  to_store.outcome = StoreOutcome::kStored;
  to_store.length = to_store.steps->First(tokens).last() + 1;
  return to_store;
}

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_ACCEPTED_STEPS_H_
