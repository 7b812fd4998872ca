// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The part of the C interface that is about GPUs, in the library that has no kernels for them: it says so.
#include "kernels/c_api.h"

const char* statepool_kernels_device_error(void) {
  return "this library has no kernels for a GPU: libstatepool_kernels_cuda.so has, which a build with nvcc makes";
}

statepool_kernels_device_plan* statepool_kernels_device_plan_create(const statepool_kernels_plan*) { return nullptr; }

void statepool_kernels_device_plan_destroy(statepool_kernels_device_plan*) {}

int statepool_kernels_device_gather(const statepool_kernels_device_plan*, const void* const*, const uint32_t*, size_t,
                                    void*, void*) {
  return STATEPOOL_KERNELS_DEVICE;
}

int statepool_kernels_device_scatter(const statepool_kernels_device_plan*, const uint32_t*, const uint32_t*,
                                     void* const*, size_t, const void*, uint64_t*, void*) {
  return STATEPOOL_KERNELS_DEVICE;
}

statepool_kernels_device_advance* statepool_kernels_device_advance_create(const statepool_kernels_advance*) {
  return nullptr;
}

void statepool_kernels_device_advance_destroy(statepool_kernels_device_advance*) {}

int statepool_kernels_device_advance_rows(const statepool_kernels_device_advance*, void*, const statepool_kernels_move*,
                                          size_t, void*) {
  return STATEPOOL_KERNELS_DEVICE;
}
