// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What a plan of the C interface is, for the sources that implement it.
#ifndef STATEPOOL_KERNELS_C_API_PLAN_H_
#define STATEPOOL_KERNELS_C_API_PLAN_H_

#include <cstdint>
#include <exception>

#include "kernels/c_api.h"
#include "kernels/copy_plan.h"

struct statepool_kernels_plan {
  statepool::CopyPlan plan;
  uint32_t rows, accepted_max;
};

namespace statepool {

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
