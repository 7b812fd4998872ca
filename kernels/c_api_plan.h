// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What a plan of the C interface is, for the sources that implement it.
#ifndef STATEPOOL_KERNELS_C_API_PLAN_H_
#define STATEPOOL_KERNELS_C_API_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "kernels/advance_plan.h"
#include "kernels/c_api.h"
#include "kernels/copy_plan.h"

struct statepool_kernels_plan {
  statepool::CopyPlan plan;
  uint32_t rows, accepted_max;
};

struct statepool_kernels_advance {
  statepool::AdvancePlan plan;
  uint32_t rows;
};

namespace statepool {

// Nothing: one is no move of rows with so many steps.
inline std::optional<std::vector<AdvanceMove>> MovesOf(const statepool_kernels_move* moves, size_t count, uint32_t rows,
                                                       uint32_t steps_max) {
  std::vector<AdvanceMove> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const statepool_kernels_move& move = moves[i];
    if (move.from_row >= rows || move.to_row >= rows || move.steps == 0) return std::nullopt;
    result.push_back({move.from_row, move.to_row, AcceptedSteps(move.steps)});
    if (result.back().steps.last() >= steps_max) return std::nullopt;
  }
  return result;
}

// Calls write(), which may run out of memory.
template <typename Write>
int Guarded(Write write) {
  try {
    write();
    return STATEPOOL_KERNELS_OK;
  } catch (const std::exception&) {
    return STATEPOOL_KERNELS_NO_MEMORY;
  }
}

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_C_API_PLAN_H_
