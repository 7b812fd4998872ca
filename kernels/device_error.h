// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Where CUDA's errors become ours, and CUDA's types for headers that don't include CUDA's.
#ifndef STATEPOOL_KERNELS_DEVICE_ERROR_H_
#define STATEPOOL_KERNELS_DEVICE_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

struct CUstream_st;

namespace statepool {

using DeviceStream = CUstream_st*;  // a cudaStream_t, or the driver's CUstream

// Of a cudaError_t that `what` gave. No memory: RESOURCE_EXHAUSTED. No device or no driver for it: UNAVAILABLE. All
// others: INTERNAL; after an error of a kernel's own nothing of the process works on that device any more.
absl::Status DeviceStatus(int cuda_error, absl::string_view what);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_ERROR_H_
