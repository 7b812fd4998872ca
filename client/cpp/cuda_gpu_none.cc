// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Where the headers of CUDA's driver are not: there is no GPU, and it is said why.
#include "absl/strings/str_cat.h"
#include "client/cpp/calls.h"
#include "client/cpp/cuda_gpu.h"

namespace statepool::client {

absl::StatusOr<std::shared_ptr<Gpu>> OpenCudaGpu(const std::string& device) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "MAPPING_FAILED", "",
                   absl::StrCat("this is memory of ", device,
                                ", and this client was built without CUDA: build it where nvcc is; Get and Set work"));
}

}  // namespace statepool::client
