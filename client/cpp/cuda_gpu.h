// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// GPUs of CUDA's. For the files of client/cpp alone.
//
// The driver (libcuda.so.1) is looked for when it is needed, and CUDA's runtime is within the kernels that are linked:
// a program with this client starts on machines without either. Addresses are those of the GPU's primary context,
// which CUDA's runtime uses; it stays retained until the process ends.
#ifndef STATEPOOL_CLIENT_CPP_CUDA_GPU_H_
#define STATEPOOL_CLIENT_CPP_CUDA_GPU_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/gpu.h"

namespace statepool::client {

// The GPU with this name ("cuda:GPU-<uuid>"). Errors: those of FindGpu.
absl::StatusOr<std::shared_ptr<Gpu>> OpenCudaGpu(const std::string& device);

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_CUDA_GPU_H_
