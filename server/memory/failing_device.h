// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FailingDevice: a decorator that refuses allocations on demand, for tests and fault harnesses.
#ifndef STATEPOOL_SERVER_MEMORY_FAILING_DEVICE_H_
#define STATEPOOL_SERVER_MEMORY_FAILING_DEVICE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "server/memory/device.h"

namespace statepool {

// Asks `fault` before each allocation; a status that is not OK is the answer. All else is the inner device's.
// Thread-safe if `fault` is.
class FailingDevice final : public Device {
 public:
  using Fault = std::function<absl::Status(TenantId tenant, uint64_t chunks)>;

  // `inner` must outlive this.
  FailingDevice(Device* inner, Fault fault) : inner_(inner), fault_(std::move(fault)) {}

  const std::string& name() const override { return inner_->name(); }
  uint64_t chunk_bytes() const override { return inner_->chunk_bytes(); }
  uint64_t budget_bytes() const override { return inner_->budget_bytes(); }
  uint64_t used_bytes() const override { return inner_->used_bytes(); }
  bool host_accessible() const override { return inner_->host_accessible(); }
  absl::StatusOr<std::unique_ptr<Extent>> AllocateExtent(TenantId tenant, uint64_t chunks,
                                                         bool sealed = true) override {
    if (absl::Status status = fault_(tenant, chunks); !status.ok()) return status;
    return inner_->AllocateExtent(tenant, chunks, sealed);
  }
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(TenantId tenant, uint64_t chunks) override {
    if (absl::Status status = fault_(tenant, chunks); !status.ok()) return status;
    return inner_->AllocateShared(tenant, chunks);
  }
  absl::StatusOr<std::unique_ptr<Transfer>> CopyIn(char* to, absl::string_view from) override {
    return inner_->CopyIn(to, from);
  }
  absl::StatusOr<std::unique_ptr<Transfer>> CopyOut(char* to, const char* from, uint64_t bytes) override {
    return inner_->CopyOut(to, from, bytes);
  }
  absl::StatusOr<std::unique_ptr<Transfer>> CopyWithin(char* to, const char* from, uint64_t bytes) override {
    return inner_->CopyWithin(to, from, bytes);
  }
  absl::StatusOr<std::unique_ptr<Transfer>> CopyFrom(const Device& other, char* to, const char* from,
                                                     uint64_t bytes) override {
    return inner_->CopyFrom(other, to, from, bytes);
  }
  bool Reaches(const Device& other) const override { return &other == this || inner_->Reaches(other); }
  absl::Status HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) override {
    return inner_->HashStates(states, bytes, leaves);
  }
  absl::StatusOr<std::unique_ptr<Staging>> AllocateStaging(uint64_t bytes) override {
    return inner_->AllocateStaging(bytes);
  }
  absl::StatusOr<std::unique_ptr<RowCopier>> NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                          uint32_t rows) override {
    return inner_->NewRowCopier(plan, advance, rows);
  }
  absl::Status health() const override { return inner_->health(); }

 private:
  Device* const inner_;
  const Fault fault_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_FAILING_DEVICE_H_
