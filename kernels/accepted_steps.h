// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Which of the tokens that a model's step has verified hold, as the .proto has it (SPECULATION): for the daemon and for
// clients that advance rows themselves. Pure functions, thread-safe.
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

// Of an AdvanceItem. REQUIRES: 1 <= steps_max <= kAcceptedStepsMax.
inline Accepted AcceptedOf(std::optional<uint32_t> length, absl::Span<const uint32_t> path, uint32_t steps_max,
                           const AdvanceRules& rules) {
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
    accepted = {steps->bits() == 1 ? AdvanceOutcome::kInPlace : AdvanceOutcome::kMoved, *steps};
  }
  return accepted;
}

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_ACCEPTED_STEPS_H_
