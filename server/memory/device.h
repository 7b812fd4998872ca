// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Device: where the chunks of hot states come from.
//
// A device has a budget in bytes and hands it out as *extents*: one or more chunks, contiguous in one address range of
// the device, all for one tenant. An extent's bytes begin as zeros, whatever was in its memory before: nothing that one
// tenant wrote is ever seen by the next. When it is destroyed its memory goes back to the system; a device may keep it
// for another extent, if no other process was ever given it.
//
// The host (HostDevice) and a GPU's virtual-memory API (CudaDevice) have the same interface. data() of an extent is an
// address of the device; whether the CPU may follow it says host_accessible(). Where it may not, bytes come and go
// through *staging*: memory of the host that the device copies from and to by itself.
//
// Other processes may map an extent (the .proto's DIRECT). Who keeps one mapped keeps a reference to it: its memory
// counts until the last reference goes.
#ifndef STATEPOOL_SERVER_MEMORY_DEVICE_H_
#define STATEPOOL_SERVER_MEMORY_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/advance_plan.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"
#include "server/core/ids.h"

namespace statepool {

// The granularity of CUDA's virtual-memory API, so that one chunk size serves every device.
inline constexpr uint64_t kDefaultChunkBytes = 2 << 20;

// Chunks in one address range. Destroying it gives them back (a system call: not under a lock that others wait for).
class Extent {
 public:
  Extent() : id_(next_id_.fetch_add(1)) {}
  virtual ~Extent() = default;
  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;

  uint64_t id() const { return id_; }  // no other extent's, as long as this process runs; not 0
  virtual char* data() const = 0;
  virtual uint64_t bytes() const = 0;  // a multiple of the device's chunk_bytes()
  virtual TenantId tenant() const = 0;
  virtual const std::string& device() const = 0;  // the name of its device

  // What another process maps. Ours to close. -1: it is no single file; ExportChunks.
  virtual int fd() const = 0;
  // The same as descriptors for the caller to close and to give away: in the order of their addresses, each of an equal
  // part of the extent. Thread-safe. Errors: NO_DESCRIPTORS, DEVICE_FAILED.
  virtual absl::StatusOr<std::vector<int>> ExportChunks() = 0;
  // A sealed extent can't be mapped for writing by anyone any more; mappings that there are stay as they are. False:
  // the device has no seals (a GPU), and whoever has a descriptor maps it as he likes.
  virtual bool can_be_sealed() const = 0;
  virtual bool sealed() const = 0;
  // False: another process, which had it unsealed, has seen to it that this can't be done; or the device has no seals.
  virtual bool Seal() = 0;

  // Its slots are used no more: whoever still has it mapped should drop it. Thread-safe.
  void Retire() { retired_.store(true); }
  bool retired() const { return retired_.load(); }

 private:
  static inline std::atomic<uint64_t> next_id_{1};
  const uint64_t id_;
  std::atomic<bool> retired_{false};
};

// Chunks that another process writes to (an arena). Its destructor takes them out of the device's account, so it comes
// after Revoke succeeded, or after that process is gone.
class SharedExtent : public Extent {
 public:
  // Gives the contents back to the system: whoever still maps them reads zeros, and data() is no more. True: nobody can
  // ever write to this memory again, so that it stays empty. False: another process may still have it mapped; call
  // again. Where the system can't tell who maps it (a GPU), the answer stays false once a descriptor was made; that the
  // process is gone is then the only proof. REQUIRES: nobody of ours uses data(), or exports it meanwhile.
  virtual bool Revoke() = 0;
};

// A copy under way. Its destructor waits for it.
class Transfer {
 public:
  virtual ~Transfer() = default;
  // Once. After an error anything stands where the bytes should be, and the device is done with both sides all the
  // same.
  virtual absl::Status Wait() = 0;
};

// Memory of the host, freed with it.
class Staging {
 public:
  virtual ~Staging() = default;
  virtual char* data() const = 0;
  virtual uint64_t bytes() const = 0;
};

// Copies between states and the rows of one arena, and within rows, of one plan each (kernels/copy_plan.h,
// kernels/advance_plan.h): for devices whose memory the CPU can't copy. Complete when a call returns; one call at a
// time. A state needs no room beside it. Errors: DEVICE_FAILED.
class RowCopier {
 public:
  struct GatherItem {
    const char* state = nullptr;
    uint32_t row = 0;
  };
  struct ScatterItem {
    uint32_t row = 0;
    uint32_t accepted = 1;  // at least 1
    char* state = nullptr;
  };
  virtual ~RowCopier() = default;

  // Each state into its row, and zeros into what the row has beside it. REQUIRES: no row twice.
  virtual absl::Status Gather(absl::Span<const GatherItem> items, char* arena) = 0;
  // Each row into its state, and the hash of leaf i of item n's to leaves[n * LeafCount(state_bytes) + i]: of what was
  // written there, whoever writes to the row meanwhile. Without `leaves` nothing is hashed, as must be with a plan that
  // is not whole. REQUIRES: no two states overlap; not more items than the arena has rows; leaves.size() is theirs.
  virtual absl::Status Scatter(absl::Span<const ScatterItem> items, const char* arena, absl::Span<LeafHash> leaves) = 0;
  // REQUIRES: as DeviceAdvancePlan::Move.
  virtual absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena) = 0;
};

// Thread-safe. Must outlive its extents, its staging and its transfers.
class Device {
 public:
  virtual ~Device() = default;

  virtual const std::string& name() const = 0;  // "host", "cuda:<uuid>": the `device` label of metrics
  virtual uint64_t chunk_bytes() const = 0;     // a power of two
  virtual uint64_t budget_bytes() const = 0;    // a multiple of chunk_bytes()
  virtual uint64_t used_bytes() const = 0;      // of living extents; never above the budget
  virtual bool host_accessible() const = 0;     // the CPU may read and write at Extent::data()

  // Zeroed chunks, backed by memory that is really there. REQUIRES: chunks >= 1. May take milliseconds: not under a
  // lock. Errors: HOT_FULL when the budget or the system is short of memory; it succeeds once enough extents are gone.
  // `sealed`: from birth; else when Seal is called. A device without seals does not heed it.
  virtual absl::StatusOr<std::unique_ptr<Extent>> AllocateExtent(TenantId tenant, uint64_t chunks,
                                                                 bool sealed = true) = 0;

  // The same, to be written to by another process. Never memory that was anyone's before.
  virtual absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(TenantId tenant, uint64_t chunks) = 0;

  // Copies between staging of this device, or other memory of the host, and one of its extents. They may have begun
  // only when the call returns: both sides stay as they are until the transfer has been waited for. Errors:
  // DEVICE_FAILED, of Wait as well.
  virtual absl::StatusOr<std::unique_ptr<Transfer>> CopyIn(char* to, absl::string_view from) = 0;
  virtual absl::StatusOr<std::unique_ptr<Transfer>> CopyOut(char* to, const char* from, uint64_t bytes) = 0;

  // Between two extents, or two parts of one that don't overlap. Errors: DEVICE_FAILED.
  virtual absl::StatusOr<std::unique_ptr<Transfer>> CopyWithin(char* to, const char* from, uint64_t bytes) = 0;

  // From an extent of another device into one of this. Errors: UNIMPLEMENTED when this one can't reach that one's
  // memory, for as long as both live: then bytes go through staging (CopyThrough); DEVICE_FAILED of either.
  virtual absl::StatusOr<std::unique_ptr<Transfer>> CopyFrom(const Device& other, char* to, const char* from,
                                                             uint64_t bytes) = 0;

  // The hashes of the leaves of states of one size (kernels/checksum.h), where they lie: that of leaf i of state n goes
  // to leaves[n * LeafCount(bytes) + i]. They are there when it returns. REQUIRES: leaves.size() is theirs. Errors:
  // DEVICE_FAILED.
  virtual absl::Status HashStates(absl::Span<const char* const> states, uint64_t bytes,
                                  absl::Span<LeafHash> leaves) = 0;
  // The same of one.
  absl::Status HashLeaves(const char* state, uint64_t bytes, absl::Span<LeafHash> leaves) {
    return HashStates(absl::MakeConstSpan(&state, 1), bytes, leaves);
  }

  // Host memory, aligned to 4,096 bytes, for the copies above. Errors: HOT_FULL, DEVICE_FAILED.
  virtual absl::StatusOr<std::unique_ptr<Staging>> AllocateStaging(uint64_t bytes) = 0;

  // For an arena of so many rows. REQUIRES: !host_accessible(). Errors: HOT_FULL, DEVICE_FAILED; INVALID_OPTION (view)
  // for a plan that it can't run.
  virtual absl::StatusOr<std::unique_ptr<RowCopier>> NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                                  uint32_t rows) = 0;

  // Not OK once the device has failed: every call gives this error from then on, and what it held is lost.
  // UNAVAILABLE / DEVICE_FAILED.
  virtual absl::Status health() const = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_DEVICE_H_
