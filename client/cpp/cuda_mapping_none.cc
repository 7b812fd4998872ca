// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Where the headers of CUDA's driver are not: nothing can be mapped, and it is said why.
#include "absl/strings/str_cat.h"
#include "client/cpp/calls.h"
#include "client/cpp/cuda_mapping.h"

namespace statepool::client {

absl::StatusOr<std::unique_ptr<Range>> ReserveOnGpu(const std::string& device, uint64_t) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "MAPPING_FAILED", "",
                   absl::StrCat("this arena is in the memory of ", device,
                                ", and this client was built without CUDA: build it where nvcc is; Get and Set work"));
}

}  // namespace statepool::client
