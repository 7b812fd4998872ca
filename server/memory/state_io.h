// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States on their way out of slots and into them, wherever the slots are.
//
// Memory that the CPU can read and write is one piece, where it is. To and from any other device a state goes block by
// block through staging, two blocks by turns: while the caller works on one (hashes it, writes it to the disk, fills it
// from a message), the device copies the other.
#ifndef STATEPOOL_SERVER_MEMORY_STATE_IO_H_
#define STATEPOOL_SERVER_MEMORY_STATE_IO_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"
#include "server/core/op.h"
#include "server/memory/device.h"

namespace statepool {

// The staging of one device: pairs of blocks, allocated once. Thread-safe. Must outlive what took pairs of it.
class StagingPool {
 public:
  // What one read or write of a disk moves at a time; whole leaves.
  static constexpr uint64_t kBlockBytes = 8 << 20;

  class Pair;

  // As many pairs as fit, at least one. `device` and `clock` must outlive it. Errors: the device's.
  static absl::StatusOr<std::unique_ptr<StagingPool>> Create(Device* device, uint64_t bytes, const Clock* clock);
  ~StagingPool();  // REQUIRES: every pair is back

  // Waits for a pair: whoever has one gives it back without waiting for another, or for anything that needs one.
  // Errors: DEADLINE, CANCELLED.
  absl::StatusOr<std::unique_ptr<Pair>> Take(const Op& op) ABSL_LOCKS_EXCLUDED(mu_);

  Device* device() const { return device_; }
  uint64_t bytes() const { return memory_->bytes(); }

 private:
  StagingPool(Device* device, std::unique_ptr<Staging> memory, const Clock* clock);
  void GiveBack(char* pair) ABSL_LOCKS_EXCLUDED(mu_);

  Device* const device_;
  const std::unique_ptr<Staging> memory_;
  const Clock* const clock_;
  Mutex mu_;
  CondVar changed_;
  std::vector<char*> free_ ABSL_GUARDED_BY(mu_);  // the first of each pair's two blocks
};

class StagingPool::Pair {
 public:
  ~Pair() { pool_->GiveBack(data_); }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  char* block(int i) const { return data_ + static_cast<uint64_t>(i) * kBlockBytes; }  // 0 or 1

 private:
  friend class StagingPool;
  Pair(StagingPool* pool, char* data) : pool_(pool), data_(data) {}

  StagingPool* const pool_;
  char* const data_;
};

// Reads a state, or a part of one, once and in order. Not thread-safe. The bytes must stand still meanwhile.
class StateReader {
 public:
  // Of bytes that the CPU can read.
  explicit StateReader(absl::string_view bytes) : from_(bytes.data()), bytes_(bytes.size()) {}
  // Of the device's, through a pair; or in place, where the device is the CPU's and `pair` is null.
  StateReader(Device* device, std::unique_ptr<StagingPool::Pair> pair, const char* from, uint64_t bytes)
      : device_(device), pair_(std::move(pair)), from_(from), bytes_(bytes) {}

  uint64_t bytes() const { return bytes_; }
  uint64_t left() const { return bytes_ - done_; }

  // The next bytes, good until the next call; whole leaves, but for the last. REQUIRES: left() > 0. Errors: the
  // device's.
  absl::StatusOr<absl::string_view> Next();

 private:
  absl::Status Begin();

  Device* const device_ = nullptr;
  std::unique_ptr<StagingPool::Pair> pair_;  // null: in place
  const char* const from_;
  const uint64_t bytes_;
  uint64_t begun_ = 0, done_ = 0;
  int turn_ = 0;
  std::unique_ptr<Transfer> transfer_[2];  // into each block
};

// Writes a state, or a part of one, once and in order. Not thread-safe. What was not finished leaves anything there.
class StateFiller {
 public:
  StateFiller(char* to, uint64_t bytes) : to_(to), bytes_(bytes) {}
  StateFiller(Device* device, std::unique_ptr<StagingPool::Pair> pair, char* to, uint64_t bytes)
      : device_(device), pair_(std::move(pair)), to_(to), bytes_(bytes) {}

  uint64_t bytes() const { return bytes_; }
  uint64_t left() const { return bytes_ - done_; }

  // Room for the next bytes: whole leaves, but for the last. Twice without Filled it is the same. REQUIRES: left() > 0.
  absl::StatusOr<absl::Span<char>> Room();
  // All of it was written; it is not touched any more.
  absl::Status Filled();
  // After the last: it is there when this returns.
  absl::Status Finish();

 private:
  Device* const device_ = nullptr;
  std::unique_ptr<StagingPool::Pair> pair_;
  char* const to_;
  const uint64_t bytes_;
  uint64_t done_ = 0;
  int turn_ = 0;
  std::unique_ptr<Transfer> transfer_[2];  // out of each block
};

// Begins a copy of a state, or a part of one, from an extent of one device into one of another, by the devices alone.
// Errors: UNIMPLEMENTED where they don't reach each other's memory; the devices'.
absl::StatusOr<std::unique_ptr<Transfer>> BeginCopyBetween(Device* from_device, const char* from, Device* to_device,
                                                           char* to, uint64_t bytes);

// Copies a state, or a part of one, from an extent of one device into one of another: by the devices alone where they
// reach each other's memory, else block by block through a pair of `staging`, which may be null where the CPU reaches
// one of them. Waits for it. Errors: the devices'; DEADLINE, CANCELLED.
absl::Status CopyBetween(const Op& op, StagingPool* staging, Device* from_device, const char* from, Device* to_device,
                         char* to, uint64_t bytes);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_STATE_IO_H_
