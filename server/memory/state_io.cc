// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/state_io.h"

#include <algorithm>
#include <cassert>
#include <chrono>

namespace statepool {
namespace {

constexpr std::chrono::milliseconds kPoll{10};  // how late a cancelled or expired call may notice while it waits

absl::Status WaitFor(std::unique_ptr<Transfer>* transfer) {
  if (*transfer == nullptr) return absl::OkStatus();
  const absl::Status status = (*transfer)->Wait();
  transfer->reset();
  return status;
}

}  // namespace

// ---- the pool

StagingPool::StagingPool(Device* device, std::unique_ptr<Staging> memory, const Clock* clock)
    : device_(device), memory_(std::move(memory)), clock_(clock) {
  MutexLock lock(&mu_);
  for (uint64_t at = 0; at < memory_->bytes(); at += 2 * kBlockBytes) free_.push_back(memory_->data() + at);
}

absl::StatusOr<std::unique_ptr<StagingPool>> StagingPool::Create(Device* device, uint64_t bytes, const Clock* clock) {
  const uint64_t pairs = std::max<uint64_t>(1, bytes / (2 * kBlockBytes));
  absl::StatusOr<std::unique_ptr<Staging>> memory = device->AllocateStaging(pairs * 2 * kBlockBytes);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<StagingPool>(new StagingPool(device, *std::move(memory), clock));
}

StagingPool::~StagingPool() {
  MutexLock lock(&mu_);
  assert(free_.size() * 2 * kBlockBytes == memory_->bytes());
}

absl::StatusOr<std::unique_ptr<StagingPool::Pair>> StagingPool::Take(const Op& op) {
  MutexLock lock(&mu_);
  while (free_.empty()) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    changed_.WaitFor(&mu_, kPoll);
  }
  char* const pair = free_.back();
  free_.pop_back();
  return std::unique_ptr<Pair>(new Pair(this, pair));
}

void StagingPool::GiveBack(char* pair) {
  MutexLock lock(&mu_);
  free_.push_back(pair);
  changed_.Signal();
}

// ---- out

// The next copy into the block whose turn it is.
absl::Status StateReader::Begin() {
  const uint64_t bytes = std::min(StagingPool::kBlockBytes, bytes_ - begun_);
  if (bytes == 0) return absl::OkStatus();
  const int turn = static_cast<int>(begun_ / StagingPool::kBlockBytes % 2);
  absl::StatusOr<std::unique_ptr<Transfer>> transfer = device_->CopyOut(pair_->block(turn), from_ + begun_, bytes);
  if (!transfer.ok()) return transfer.status();
  transfer_[turn] = *std::move(transfer);
  begun_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<absl::string_view> StateReader::Next() {
  assert(left() > 0);
  if (pair_ == nullptr) {
    done_ = bytes_;
    return absl::string_view(from_, bytes_);
  }
  if (begun_ == 0) {
    if (absl::Status status = Begin(); !status.ok()) return status;
  }
  if (absl::Status status = WaitFor(&transfer_[turn_]); !status.ok()) return status;
  const absl::string_view piece(pair_->block(turn_), begun_ - done_);
  done_ = begun_;
  turn_ ^= 1;
  // While the caller works on this block the other one is filled.
  if (absl::Status status = Begin(); !status.ok()) return status;
  return piece;
}

// ---- in

absl::StatusOr<absl::Span<char>> StateFiller::Room() {
  assert(left() > 0);
  if (pair_ == nullptr) return absl::Span<char>(to_, bytes_);
  if (absl::Status status = WaitFor(&transfer_[turn_]); !status.ok()) return status;
  return absl::Span<char>(pair_->block(turn_), std::min(StagingPool::kBlockBytes, left()));
}

absl::Status StateFiller::Filled() {
  if (pair_ == nullptr) {
    done_ = bytes_;
    return absl::OkStatus();
  }
  const uint64_t bytes = std::min(StagingPool::kBlockBytes, left());
  absl::StatusOr<std::unique_ptr<Transfer>> transfer = device_->CopyIn(to_ + done_, {pair_->block(turn_), bytes});
  if (!transfer.ok()) return transfer.status();
  transfer_[turn_] = *std::move(transfer);
  done_ += bytes;
  turn_ ^= 1;
  return absl::OkStatus();
}

absl::Status StateFiller::Finish() {
  assert(left() == 0);
  absl::Status status = WaitFor(&transfer_[0]);
  status.Update(WaitFor(&transfer_[1]));
  return status;
}

// ---- from one device to another

absl::StatusOr<std::unique_ptr<Transfer>> BeginCopyBetween(Device* from_device, const char* from, Device* to_device,
                                                           char* to, uint64_t bytes) {
  return from_device == to_device         ? to_device->CopyWithin(to, from, bytes)
         : from_device->host_accessible() ? to_device->CopyIn(to, {from, bytes})
         : to_device->host_accessible()   ? from_device->CopyOut(to, from, bytes)
                                          : to_device->CopyFrom(*from_device, to, from, bytes);
}

absl::Status CopyBetween(const Op& op, StagingPool* staging, Device* from_device, const char* from, Device* to_device,
                         char* to, uint64_t bytes) {
  absl::StatusOr<std::unique_ptr<Transfer>> whole = BeginCopyBetween(from_device, from, to_device, to, bytes);
  if (whole.ok()) return (*whole)->Wait();
  if (!absl::IsUnimplemented(whole.status())) return whole.status();
  absl::StatusOr<std::unique_ptr<StagingPool::Pair>> pair = staging->Take(op);
  if (!pair.ok()) return pair.status();
  std::unique_ptr<Transfer> in[2];  // out of each block
  absl::Status status;
  int turn = 0;
  for (uint64_t done = 0; status.ok() && done < bytes; turn ^= 1) {
    const uint64_t block = std::min(StagingPool::kBlockBytes, bytes - done);
    char* const between = (*pair)->block(turn);
    status = WaitFor(&in[turn]);
    if (!status.ok()) break;
    // While this block is filled the other one is emptied.
    absl::StatusOr<std::unique_ptr<Transfer>> out = from_device->CopyOut(between, from + done, block);
    status = out.ok() ? (*out)->Wait() : out.status();
    if (!status.ok()) break;
    absl::StatusOr<std::unique_ptr<Transfer>> next = to_device->CopyIn(to + done, {between, block});
    status = next.status();
    if (next.ok()) in[turn] = *std::move(next);
    done += block;
  }
  status.Update(WaitFor(&in[0]));
  status.Update(WaitFor(&in[1]));
  return status;
}

}  // namespace statepool
