// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FarDevice: a device whose memory the CPU must not touch, as a GPU's, on a machine without one. For tests: they are
// the same as for the host, and whoever follows an address of this device dies of it.
//
// A chunk is an extent of a HostDevice's; those of an extent of ours are mapped one after the other, and a second time
// at addresses without any permission: these are the device's. The copies, hashes and rows' kernels find the bytes
// behind them. A copy that has begun is done only when it is waited for, so that who does not wait sees other bytes; if
// the device has failed by then that is the wait's error, and the bytes may be there or not. As a GPU it hands out a
// descriptor for each chunk, and one for a shared extent, and has no seals. FarDevices are each other's peers, unless
// they were told not to be.
#ifndef STATEPOOL_SERVER_MEMORY_FAR_DEVICE_H_
#define STATEPOOL_SERVER_MEMORY_FAR_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "server/core/mutex.h"
#include "server/memory/device.h"
#include "server/memory/host_device.h"

namespace statepool {

// Thread-safe.
class FarDevice final : public Device {
 public:
  // `inner` must outlive this and have no other user.
  explicit FarDevice(HostDevice* inner, std::string name = "far", bool has_peers = true)
      : name_(std::move(name)), has_peers_(has_peers), inner_(inner) {}

  // From now on every call fails, as a GPU's do after an error of a kernel's.
  void Fail() { failed_.store(true); }
  // To be called, by whoever waits for a copy into or out of this device, when its bytes are there, with where they
  // are: what happens then comes too late to be this wait's error. REQUIRES: no copy is under way.
  using Arrival = std::function<void(char* bytes, uint64_t size)>;
  void SetArrival(Arrival arrival) { arrival_ = std::move(arrival); }
  // Since the start.
  uint32_t most_under_way() const { return most_under_way_.load(); }  // copies, begun and not waited for
  uint64_t copied_in_bytes() const { return copied_in_bytes_.load(); }
  uint64_t copied_out_bytes() const { return copied_out_bytes_.load(); }

  const std::string& name() const override { return name_; }
  uint64_t chunk_bytes() const override { return inner_->chunk_bytes(); }
  uint64_t budget_bytes() const override { return inner_->budget_bytes(); }
  uint64_t used_bytes() const override { return inner_->used_bytes(); }
  bool host_accessible() const override { return false; }
  absl::StatusOr<std::unique_ptr<Extent>> AllocateExtent(TenantId tenant, uint64_t chunks, bool sealed = true) override;
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(TenantId tenant, uint64_t chunks) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyIn(char* to, absl::string_view from) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyOut(char* to, const char* from, uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyWithin(char* to, const char* from, uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyFrom(const Device& other, char* to, const char* from,
                                                     uint64_t bytes) override;
  bool Reaches(const Device& other) const override;
  absl::Status HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) override;
  absl::StatusOr<std::unique_ptr<Staging>> AllocateStaging(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<RowCopier>> NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                          uint32_t rows) override;
  absl::Status health() const override;

  // What is behind an address of this device, for tests. Null: not all of it is an extent's.
  char* Behind(const char* address, uint64_t bytes) const;

 private:
  class LateTransfer;
  class Far;
  class Joined;
  class FarExtent;
  class FarSharedExtent;
  class Copier;
  struct Range {
    const FarDevice* device;
    uint64_t bytes;
    char* behind;
  };
  // Of all that live, by their first address: a copier is given addresses of peers too.
  struct Ranges {
    Mutex mu;
    std::map<const char*, Range> by_address ABSL_GUARDED_BY(mu);
  };
  static Ranges& AllRanges();

  // Where the bytes at an address of this device are. Errors: its own; INTERNAL for an address that is none of its.
  absl::StatusOr<char*> Reach(const char* address, uint64_t bytes) const;
  // The same for an address of this device or of one that it reaches.
  absl::StatusOr<char*> ReachAny(const char* address, uint64_t bytes) const;
  static std::optional<Range> Find(const char* address, uint64_t bytes);  // the range's own; `behind` is of the address

  const std::string name_;
  const bool has_peers_;
  HostDevice* const inner_;
  std::atomic<bool> failed_{false};
  std::atomic<uint64_t> copied_in_bytes_{0}, copied_out_bytes_{0};
  std::atomic<uint32_t> under_way_{0}, most_under_way_{0};
  Arrival arrival_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_FAR_DEVICE_H_
