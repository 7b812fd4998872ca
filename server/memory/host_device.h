// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// HostDevice: extents of host memory, each a memfd of its own.
//
// The memfd is sealed (F_SEAL_FUTURE_WRITE, SHRINK, GROW, SEAL): another process that is handed the descriptor can map
// it for reading only, while our mapping stays writable. Such a seal forbids punching holes too, so an extent's space
// comes back by unmapping and closing it, which is why each extent has its own descriptor. Pages are allocated before
// they are mapped: a machine that is short of memory gives an error here, not SIGBUS later.
//
// An extent that begins unsealed is sealed against shrinking and growing alone: a process that maps it for writing
// before Seal() goes on writing there, and nobody else ever does.
//
// A shared extent's memfd is sealed against shrinking and growing alone. When it is revoked we unmap it and punch its
// pages out, which takes them from every mapping; then F_SEAL_WRITE, which the kernel grants only when no writable
// mapping is left and none can come.
#ifndef STATEPOOL_SERVER_MEMORY_HOST_DEVICE_H_
#define STATEPOOL_SERVER_MEMORY_HOST_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/memory/device.h"

namespace statepool {

class HostDevice;

class HostExtent final : public Extent {
 public:
  ~HostExtent() override;
  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }
  TenantId tenant() const override { return tenant_; }
  const std::string& device() const override;
  int fd() const override { return fd_; }
  absl::StatusOr<std::vector<int>> ExportChunks() override;  // one, a duplicate
  bool can_be_sealed() const override { return true; }
  bool sealed() const override { return sealed_.load(); }
  bool Seal() override;

 private:
  friend class HostDevice;
  HostExtent(HostDevice* device, TenantId tenant, uint64_t bytes) : device_(device), tenant_(tenant), bytes_(bytes) {}

  HostDevice* const device_;  // which counts this extent's bytes while it lives
  const TenantId tenant_;
  const uint64_t bytes_;
  int fd_ = -1;
  char* data_ = nullptr;
  bool pinned_ = false;
  std::atomic<bool> sealed_{false};
};

class HostSharedExtent final : public SharedExtent {
 public:
  ~HostSharedExtent() override;
  char* data() const override { return data_; }  // null after Revoke
  uint64_t bytes() const override { return bytes_; }
  TenantId tenant() const override { return tenant_; }
  const std::string& device() const override;
  int fd() const override { return fd_; }
  absl::StatusOr<std::vector<int>> ExportChunks() override;  // one, a duplicate
  bool can_be_sealed() const override { return false; }
  bool sealed() const override { return false; }
  bool Seal() override { return false; }
  bool Revoke() override;

 private:
  friend class HostDevice;
  HostSharedExtent(HostDevice* device, TenantId tenant, uint64_t bytes)
      : device_(device), tenant_(tenant), bytes_(bytes) {}

  HostDevice* const device_;
  const TenantId tenant_;
  const uint64_t bytes_;
  int fd_ = -1;
  char* data_ = nullptr;
  bool revoked_ = false;
};

// What the device calls for the memory of each extent that is no arena's, so that a GPU copies from and to it by itself
// (PinningBy in cuda_device.h). Thread-safe; both must outlive the device's extents.
//
// Memory that can't be unpinned stays mapped, and counts as used, until the process ends: its addresses would become
// others', which the GPUs' driver still took for the old memory. That happens only where no GPU works any more.
struct HostPinning {
  std::function<absl::Status(char* data, uint64_t bytes)> pin;  // after it was mapped; an error is HOT_FULL
  std::function<absl::Status(char* data)> unpin;                // before it goes, if `pin` was OK
};

struct HostDeviceOptions {
  std::string name = "host";
  uint64_t budget_bytes = 0;  // rounded down to whole chunks
  uint64_t chunk_bytes = 0;   // a power of two and a multiple of the page size; 0: ChunkBytesFor(budget_bytes)
  HostPinning pinning{};      // empty: pages that the system may move
};

// Thread-safe.
class HostDevice final : public Device {
 public:
  // Errors: INVALID_ARGUMENT for a chunk size that is none, or a budget below one chunk.
  static absl::StatusOr<std::unique_ptr<HostDevice>> Create(HostDeviceOptions options);
  ~HostDevice() override;

  // 2 MiB, or less (down to 64 KiB) for budgets that would have fewer than 64 such chunks.
  static uint64_t ChunkBytesFor(uint64_t budget_bytes);

  const std::string& name() const override { return name_; }
  uint64_t chunk_bytes() const override { return chunk_bytes_; }
  uint64_t budget_bytes() const override { return budget_bytes_; }
  uint64_t used_bytes() const override { return used_.load(); }
  bool host_accessible() const override { return true; }
  absl::StatusOr<std::unique_ptr<Extent>> AllocateExtent(TenantId tenant, uint64_t chunks, bool sealed = true) override;
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(TenantId tenant, uint64_t chunks) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyIn(char* to, absl::string_view from) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyOut(char* to, const char* from, uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyWithin(char* to, const char* from, uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyFrom(const Device& other, char* to, const char* from,
                                                     uint64_t bytes) override;  // from the host's memory
  bool Reaches(const Device& other) const override { return other.host_accessible(); }
  absl::Status HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) override;
  absl::StatusOr<std::unique_ptr<Staging>> AllocateStaging(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<RowCopier>> NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                          uint32_t rows) override;
  absl::Status health() const override { return absl::OkStatus(); }

 private:
  friend class HostExtent;
  friend class HostSharedExtent;
  HostDevice(std::string name, uint64_t budget_bytes, uint64_t chunk_bytes, HostPinning pinning)
      : name_(std::move(name)), budget_bytes_(budget_bytes), chunk_bytes_(chunk_bytes), pinning_(std::move(pinning)) {}

  absl::StatusOr<uint64_t> Reserve(uint64_t chunks);  // bytes, counted as used

  const std::string name_;
  const uint64_t budget_bytes_;
  const uint64_t chunk_bytes_;
  const HostPinning pinning_;
  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> stuck_{0};  // of them, of extents that are gone and could not be unpinned
};

// Every extent needs a descriptor. Raises this process's soft limit to its hard limit and returns it. To be called
// once, at start, before other threads run.
uint64_t RaiseOpenFileLimit();

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_HOST_DEVICE_H_
