// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Numbers that are never issued twice over the life of a data directory: revisions, version ids and image ids.
//
// An id is (epoch, counter). Each start of the daemon takes a new epoch, recorded durably before the first id of it is
// used, so an id that was lost in a crash is not issued again. 2^40 ids an epoch, 2^23 epochs; below 2^53 for the first
// 8,191 starts.
#ifndef STATEPOOL_SERVER_CORE_IDS_H_
#define STATEPOOL_SERVER_CORE_IDS_H_

#include <atomic>
#include <cstdint>

namespace statepool {

using Revision = uint64_t;   // 0: none
using VersionId = uint64_t;  // 0: none
using ImageId = uint64_t;    // 0: none
using TenantId = uint32_t;   // 0: the tenant "default", the only one so far

inline constexpr TenantId kDefaultTenant = 0;
inline constexpr int kCounterBits = 40;

inline constexpr uint64_t EpochOf(uint64_t id) { return id >> kCounterBits; }

// Thread-safe.
class IdSource {
 public:
  explicit IdSource(uint64_t epoch) : next_(epoch << kCounterBits | 1) {}
  uint64_t Next() { return next_.fetch_add(1, std::memory_order_relaxed); }
  uint64_t epoch() const { return EpochOf(next_.load(std::memory_order_relaxed)); }

 private:
  std::atomic<uint64_t> next_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_IDS_H_
