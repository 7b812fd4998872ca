// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The part of the C interface that is about GPUs, in a library that was built with nvcc.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/c_api_plan.h"
#include "kernels/device_advance_plan.h"
#include "kernels/device_copy_plan.h"

struct statepool_kernels_device_plan {
  statepool::DeviceCopyPlan plan;
  uint32_t rows, accepted_max;
};

struct statepool_kernels_device_advance {
  statepool::DeviceAdvancePlan plan;
  uint32_t rows, steps_max;
};

namespace statepool {
namespace {

thread_local std::string last_error;

int ResultOf(const absl::Status& status) {
  if (status.ok()) return STATEPOOL_KERNELS_OK;
  last_error = std::string(status.message());
  return STATEPOOL_KERNELS_DEVICE;
}

bool AreRows(const statepool_kernels_device_plan& plan, const uint32_t* rows, size_t count) {
  return std::all_of(rows, rows + count, [&](uint32_t row) { return row < plan.rows; });
}

}  // namespace
}  // namespace statepool

const char* statepool_kernels_device_error(void) { return statepool::last_error.c_str(); }

statepool_kernels_device_plan* statepool_kernels_device_plan_create(const statepool_kernels_plan* plan) {
  statepool_kernels_device_plan* on_device = nullptr;
  const int made = statepool::Guarded([&] {
    absl::StatusOr<statepool::DeviceCopyPlan> created = statepool::DeviceCopyPlan::Create(plan->plan);
    if (statepool::ResultOf(created.status()) == STATEPOOL_KERNELS_OK)
      on_device = new statepool_kernels_device_plan{*std::move(created), plan->rows, plan->accepted_max};
  });
  if (made != STATEPOOL_KERNELS_OK) statepool::last_error = "no memory";
  return on_device;
}

void statepool_kernels_device_plan_destroy(statepool_kernels_device_plan* plan) { delete plan; }

int statepool_kernels_device_gather(const statepool_kernels_device_plan* plan, const void* const* states,
                                    const uint32_t* rows, size_t count, void* arena, void* stream) {
  if (!statepool::AreRows(*plan, rows, count)) return STATEPOOL_KERNELS_INVALID;
  int result = STATEPOOL_KERNELS_OK;
  const int made = statepool::Guarded([&] {
    std::vector<statepool::DeviceCopyPlan::GatherItem> items(count);
    for (size_t i = 0; i < count; ++i) items[i] = {states[i], rows[i]};
    result = statepool::ResultOf(plan->plan.Gather(items, arena, static_cast<statepool::DeviceStream>(stream)));
  });
  return made == STATEPOOL_KERNELS_OK ? result : made;
}

int statepool_kernels_device_scatter(const statepool_kernels_device_plan* plan, const uint32_t* rows,
                                     const uint32_t* accepted, void* const* states, size_t count, const void* arena,
                                     uint64_t* hashes, void* stream) {
  const auto fits = [plan](uint32_t length) { return length >= 1 && length <= plan->accepted_max; };
  if (!statepool::AreRows(*plan, rows, count) || !std::all_of(accepted, accepted + count, fits))
    return STATEPOOL_KERNELS_INVALID;
  int result = STATEPOOL_KERNELS_OK;
  const int made = statepool::Guarded([&] {
    std::vector<statepool::DeviceCopyPlan::ScatterItem> items(count);
    for (size_t i = 0; i < count; ++i) items[i] = {rows[i], accepted[i], states[i]};
    result = statepool::ResultOf(
        plan->plan.ScatterAndHash(items, arena, hashes, static_cast<statepool::DeviceStream>(stream)));
  });
  return made == STATEPOOL_KERNELS_OK ? result : made;
}

statepool_kernels_device_advance* statepool_kernels_device_advance_create(const statepool_kernels_advance* plan) {
  statepool_kernels_device_advance* on_device = nullptr;
  const int made = statepool::Guarded([&] {
    absl::StatusOr<statepool::DeviceAdvancePlan> created = statepool::DeviceAdvancePlan::Create(plan->plan);
    if (statepool::ResultOf(created.status()) == STATEPOOL_KERNELS_OK)
      on_device = new statepool_kernels_device_advance{*std::move(created), plan->rows, plan->plan.steps_max()};
  });
  if (made != STATEPOOL_KERNELS_OK) statepool::last_error = "no memory";
  return on_device;
}

void statepool_kernels_device_advance_destroy(statepool_kernels_device_advance* plan) { delete plan; }

int statepool_kernels_device_advance_rows(const statepool_kernels_device_advance* plan, void* arena,
                                          const statepool_kernels_move* moves, size_t count, void* stream) {
  int result = STATEPOOL_KERNELS_INVALID;
  const int made = statepool::Guarded([&] {
    const auto listed = statepool::MovesOf(moves, count, plan->rows, plan->steps_max);
    if (listed)
      result = statepool::ResultOf(plan->plan.Move(*listed, arena, static_cast<statepool::DeviceStream>(stream)));
  });
  return made == STATEPOOL_KERNELS_OK ? result : made;
}
