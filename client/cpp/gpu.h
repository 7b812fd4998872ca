// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A GPU as this client needs it: memory of the daemon's at addresses there, and copies in the order of a caller's
// streams. cuda_gpu.cc is CUDA's; tests have one that is made up. For the files of client/cpp alone.
#ifndef STATEPOOL_CLIENT_CPP_GPU_H_
#define STATEPOOL_CLIENT_CPP_GPU_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/cpp/mapping.h"
#include "kernels/advance_plan.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

struct CUstream_st;

namespace statepool::client {

// Copies that a stream was given, all of one call. Thread-safe. Its end does not wait for them: what they read and
// write must live on until they are done.
class Enqueued {
 public:
  virtual ~Enqueued() = default;

  // Nothing reads or writes there any more: they are done, or the GPU failed. Never waits.
  virtual bool IsDone() const = 0;
  // Waits until IsDone. Errors: INTERNAL (GPU_FAILED).
  virtual absl::Status Wait() const = 0;
  // Of a scatter, after Wait was OK: the leaves of each item's state, one item after the other.
  virtual absl::Span<const LeafHash> hashes() const = 0;
};

// The copies between slots and the rows of one arena, and within rows. Thread-safe. It outlives what was enqueued with
// it.
//
// All calls return when the copies are in `stream` (null: CUDA's legacy one), which is not being captured. Errors:
// INTERNAL (GPU_FAILED): some of them may have been done, and none is under way.
class GpuCopies {
 public:
  struct FromSlot {
    const char* state;  // an address of the GPU's, as all here
    uint32_t row;
  };
  struct ToSlot {
    uint32_t row;
    uint32_t accepted;  // at least 1
    char* state;
  };
  virtual ~GpuCopies() = default;

  // Each state into its row, and zeros into what only the row has. REQUIRES: no row twice.
  virtual absl::StatusOr<std::unique_ptr<const Enqueued>> Gather(absl::Span<const FromSlot> items, char* arena,
                                                                 CUstream_st* stream) = 0;
  // What each row holds after so many steps into its slot, with the hashes of what was written.
  virtual absl::StatusOr<std::unique_ptr<const Enqueued>> Scatter(absl::Span<const ToSlot> items, const char* arena,
                                                                  CUstream_st* stream) = 0;
  // Moves rows within the arena: what is enqueued reads and writes nothing else, and is done when the arena is
  // unmapped. REQUIRES: as DeviceAdvancePlan::Move.
  virtual absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena, CUstream_st* stream) = 0;
};

// Thread-safe. In a forked child every call fails, and what was made before is left as it is.
class Gpu {
 public:
  virtual ~Gpu() = default;

  // Addresses for an arena. Its Put, Vacate and end wait for all that this process does on the GPU; after Vacate, and
  // after a Put that failed, using an address there is an error of CUDA's. Errors, of Put and Vacate as well:
  // FAILED_PRECONDITION or, when there is no room, RESOURCE_EXHAUSTED (MAPPING_FAILED); INTERNAL (GPU_FAILED).
  virtual absl::StatusOr<std::unique_ptr<Range>> Reserve(uint64_t bytes) = 0;
  // Addresses for an extent. REQUIRES, of its end: nothing that this process does on the GPU uses it. Errors: the same.
  virtual absl::StatusOr<std::unique_ptr<MappedChunks>> ReserveChunks(uint64_t bytes, uint64_t chunk_bytes,
                                                                      bool writable) = 0;
  // Puts the plans into the GPU's memory. Errors: UNIMPLEMENTED, where the kernels can't run one, and those of the GPU.
  virtual absl::StatusOr<std::unique_ptr<GpuCopies>> NewCopies(const CopyPlan& plan, const AdvancePlan& advance) = 0;
  // Whether this stream is being captured into a graph, or, for the legacy one, any that waits for it. Errors: INTERNAL
  // (GPU_FAILED).
  virtual absl::StatusOr<bool> IsCapturing(CUstream_st* stream) = 0;
};

// Whether memory of this device (Arena.device, DeviceInfo.name) is a GPU's.
bool IsGpu(absl::string_view device);

// The GPU of this name, for as long as the process runs. Errors: FAILED_PRECONDITION (MAPPING_FAILED): this client was
// built without CUDA, there is no driver, or this process does not see the GPU.
absl::StatusOr<std::shared_ptr<Gpu>> FindGpu(const std::string& device);

// For tests: from now on this name is that of `gpu`; null: of none but CUDA's.
void SetGpu(const std::string& device, std::shared_ptr<Gpu> gpu);

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_GPU_H_
