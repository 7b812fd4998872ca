// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/slot_pool.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace statepool {
namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "SlotPool: %s\n", what);
  std::abort();
}

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

}  // namespace

uint64_t ExtentChunks(uint64_t slot_bytes, uint64_t chunk_bytes) {
  for (uint64_t chunks = 1; chunks <= kMaxSharedChunks; ++chunks) {
    const uint64_t bytes = chunks * chunk_bytes;
    if (bytes >= slot_bytes && bytes % slot_bytes <= bytes / 8) return chunks;
  }
  return RoundUp(slot_bytes, chunk_bytes) / chunk_bytes;
}

SlotExtent::SlotExtent(uint64_t number, std::shared_ptr<Extent> extent, OwnerId owner, uint64_t slot_bytes)
    : number_(number),
      extent_(std::move(extent)),
      owner_(owner),
      slots_(static_cast<uint32_t>(extent_->bytes() / slot_bytes)) {
  is_used_.resize(slots_);
  free_.reserve(slots_);
  for (uint32_t i = slots_; i > 0; --i) free_.push_back(i - 1);
}

SlotPool::SlotPool(TenantId tenant, uint64_t state_bytes, uint64_t chunk_bytes)
    : tenant_(tenant),
      state_bytes_(state_bytes),
      slot_bytes_(SlotBytes(state_bytes)),
      min_chunks_(RoundUp(slot_bytes_, chunk_bytes) / chunk_bytes),
      preferred_chunks_(ExtentChunks(slot_bytes_, chunk_bytes)) {}

SlotPool::~SlotPool() { Require(used_slots_ == 0, "destroyed while slots are in use"); }

void SlotPool::NoteRoom(const SlotExtent& extent) {
  const std::pair<OwnerId, uint64_t> entry(extent.owner_, extent.number_);
  if (!extent.free_.empty() && !extent.draining_ && !extent.closed_) {
    with_room_.insert(entry);
  } else {
    with_room_.erase(entry);
  }
}

std::optional<Slot> SlotPool::Allocate(OwnerId owner) {
  const auto first = with_room_.lower_bound({owner, 0});
  if (first == with_room_.end() || first->first != owner) return std::nullopt;
  SlotExtent* extent = extents_.at(first->second).get();
  if (extent->used() == 0) empty_.erase(extent->number_);
  const uint32_t index = extent->free_.back();
  extent->free_.pop_back();
  extent->is_used_[index] = true;
  NoteRoom(*extent);
  ++used_slots_;
  return Slot{extent->extent_->data() + index * slot_bytes_, extent, index};
}

void SlotPool::Free(Slot slot) {
  SlotExtent* extent = slot.extent;
  Require(extent != nullptr && slot.index < extent->slots_ && extent->is_used_[slot.index],
          "a slot was freed that is not in use");
  extent->is_used_[slot.index] = false;
  extent->free_.push_back(slot.index);
  --used_slots_;
  NoteRoom(*extent);
  if (extent->used() == 0 && !extent->draining_) empty_.insert(extent->number_);
}

void SlotPool::AddExtent(std::shared_ptr<Extent> extent, OwnerId owner) {
  Require(extent->tenant() == tenant_, "an extent of another tenant");
  Require(extent->bytes() >= slot_bytes_, "an extent without room for a slot");
  const uint64_t number = next_number_++;
  extent_bytes_ += extent->bytes();
  if (owner != 0) owned_bytes_ += extent->bytes();
  auto cut = std::make_unique<SlotExtent>(number, std::move(extent), owner, slot_bytes_);
  total_slots_ += cut->slots_;
  NoteRoom(*cut);
  extents_.emplace(number, std::move(cut));
  empty_.insert(number);
}

std::vector<std::shared_ptr<Extent>> SlotPool::TakeEmpty(size_t keep) {
  std::vector<std::shared_ptr<Extent>> taken;
  while (empty_.size() > keep) taken.push_back(Take(*empty_.rbegin()));
  return taken;
}

bool SlotPool::has_empty_closed() const {
  return std::any_of(empty_.begin(), empty_.end(), [this](uint64_t number) { return extents_.at(number)->closed_; });
}

std::vector<std::shared_ptr<Extent>> SlotPool::TakeEmptyOwned(bool closed_only) {
  std::vector<uint64_t> numbers;
  for (const uint64_t number : empty_) {
    const SlotExtent& extent = *extents_.at(number);
    if (extent.owner_ != 0 && (extent.closed_ || !closed_only)) numbers.push_back(number);
  }
  std::vector<std::shared_ptr<Extent>> taken;
  for (const uint64_t number : numbers) taken.push_back(Take(number));
  return taken;
}

// REQUIRES: it is empty.
std::shared_ptr<Extent> SlotPool::Take(uint64_t number) {
  const auto it = extents_.find(number);
  std::shared_ptr<Extent> extent = std::move(it->second->extent_);
  extent_bytes_ -= extent->bytes();
  if (it->second->owner_ != 0 && !it->second->owner_gone_) owned_bytes_ -= extent->bytes();
  total_slots_ -= it->second->slots_;
  with_room_.erase({it->second->owner_, number});
  empty_.erase(number);
  extents_.erase(it);
  extent->Retire();
  return extent;
}

void SlotPool::SetDraining(SlotExtent* extent, bool draining) {
  extent->draining_ = draining;
  NoteRoom(*extent);
  empty_.erase(extent->number_);
  if (!draining && extent->used() == 0) empty_.insert(extent->number_);
}

void SlotPool::EndOwner(OwnerId owner, bool gone) {
  Require(owner != 0, "nobody's end");
  for (const auto& [number, extent] : extents_) {
    if (extent->owner_ != owner) continue;
    extent->closed_ = true;
    NoteRoom(*extent);
    if (!gone || extent->owner_gone_) continue;
    extent->owner_gone_ = true;
    owned_bytes_ -= extent->extent_->bytes();
  }
}

void SlotPool::CheckInvariants(bool host_accessible) const {
  uint64_t used = 0, total = 0, bytes = 0, owned = 0;
  for (const auto& [number, extent] : extents_) {
    Require(extent->number_ == number, "an extent under another's number");
    Require(extent->extent_->tenant() == tenant_, "an extent of another tenant");
    Require(extent->slots_ == extent->extent_->bytes() / slot_bytes_ && extent->slots_ >= 1,
            "slots do not fit their extent");
    const auto marked = static_cast<uint32_t>(std::count(extent->is_used_.begin(), extent->is_used_.end(), true));
    Require(marked == extent->used(), "the free list and the marks disagree");
    for (uint32_t index : extent->free_) Require(!extent->is_used_[index], "a used slot is on the free list");
    const bool has_room = !extent->free_.empty() && !extent->draining_ && !extent->closed_;
    Require(with_room_.contains({extent->owner_, number}) == has_room, "with_room_ is wrong");
    Require(empty_.contains(number) == (extent->used() == 0 && !extent->draining_), "empty_ is wrong");
    used += extent->used();
    total += extent->slots_;
    bytes += extent->extent_->bytes();
    if (extent->owner_ != 0 && !extent->owner_gone_) owned += extent->extent_->bytes();
    if (!host_accessible || extent->owner_ != 0) continue;
    for (uint32_t i = 0; i < extent->slots_; ++i) {
      const char* slot = extent->extent_->data() + i * slot_bytes_;
      Require(std::all_of(slot + state_bytes_, slot + slot_bytes_, [](char c) { return c == 0; }),
              "padding is not zero");
    }
  }
  Require(used == used_slots_ && total == total_slots_ && bytes == extent_bytes_ && owned == owned_bytes_,
          "the totals are wrong");
  Require(with_room_.size() <= extents_.size() && empty_.size() <= extents_.size(), "an extent is listed that is gone");
}

}  // namespace statepool
