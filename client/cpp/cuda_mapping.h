// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The memory of an arena on a GPU in this process. For the files of client/cpp alone.
//
// The driver (libcuda.so.1) is looked for when it is needed, and nothing else of CUDA's is: a program with this client
// starts on machines without one. Addresses are those of the GPU's primary context, which CUDA's runtime uses; it stays
// retained until the process ends.
#ifndef STATEPOOL_CLIENT_CPP_CUDA_MAPPING_H_
#define STATEPOOL_CLIENT_CPP_CUDA_MAPPING_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/mapping.h"

namespace statepool::client {

// A range of so many bytes on this GPU ("cuda:GPU-<uuid>"). Put, Vacate and its destructor wait for all that this
// process does on the GPU; after Vacate, and after a Put that failed, using an address there is an error of CUDA's.
// Errors, of Put, Vacate and WaitFor as well: FAILED_PRECONDITION (MAPPING_FAILED): this client was built without CUDA,
// there is no driver, or this process does not see the GPU; RESOURCE_EXHAUSTED (MAPPING_FAILED): there is no room.
absl::StatusOr<std::unique_ptr<Range>> ReserveOnGpu(const std::string& device, uint64_t bytes);

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_CUDA_MAPPING_H_
