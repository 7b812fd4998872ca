// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Room on the device: from free slots, from the budget, and from images that leave. The order stands in residency.h.
#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/error.h"
#include "server/tiers/residency.h"
#include "server/tiers/resident.h"

namespace statepool {
namespace {

// How long whoever has an extent mapped may take to let go of it before another one is drained instead.
constexpr absl::Duration kLingering = absl::Milliseconds(300);

absl::Status HotFull(const Device& device) {
  return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL",
               "the hot budget is full, and nothing in it may leave now")
      .Meta("limit", device.budget_bytes())
      .RetryAfter(absl::Milliseconds(100));
}

absl::Status TooLarge(uint64_t bytes, uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, "STATE_TOO_LARGE",
               absl::StrCat("a state of ", bytes, " bytes is larger than the hot budget"))
      .Meta("limit", limit);
}

absl::Status TooMuchGranted(uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, "TOO_MUCH_GRANTED",
               "direct leases have as much memory of their own as they may have together")
      .Meta("limit", limit)
      .RetryAfter(absl::Milliseconds(100));
}

void Append(std::vector<std::shared_ptr<Extent>> some, std::vector<std::shared_ptr<Extent>>* all) {
  for (std::shared_ptr<Extent>& extent : some) all->push_back(std::move(extent));
}

// What a caller is told whose room could not be made because another image could not be written.
absl::Status SpillError(const absl::Status& error, const Device& device) {
  const std::string reason = ReasonOf(error);
  return reason == "COLD_FULL" || reason == "DISK_FAILED" ? error : HotFull(device);
}

}  // namespace

// ---- the list of victims

void Residency::List(Resident* image) {
  assert(!image->listed);
  if (!image->hot || image->pins > 0 || image->persisting || image->damaged) return;
  const bool behind = image->was_head && !image->is_head();
  const VictimClass victim_class = behind ? (image->cold ? VictimClass::kBehindClean : VictimClass::kBehindDirty)
                                          : (image->cold ? VictimClass::kHeadClean : VictimClass::kHeadDirty);
  const VictimKey key{victim_class, image->used_at, image};
  image->listed = key;
  victims_.insert(key);
  image->pool->victims.insert(key);
  if (!image->attachment.empty()) attached_victims_.insert(key);
  Pool::ExtentVictims& extent = image->pool->extents[image->slot.extent];
  extent.by_slot.resize(image->slot.extent->slots());
  extent.by_slot[image->slot.index] = image;
  ++extent.count;
}

void Residency::Unlist(Resident* image) {
  if (!image->listed) return;
  const VictimKey key = *image->listed;
  image->listed.reset();
  victims_.erase(key);
  image->pool->victims.erase(key);
  attached_victims_.erase(key);
  const auto it = image->pool->extents.find(image->slot.extent);
  it->second.by_slot[image->slot.index] = nullptr;
  if (--it->second.count == 0) image->pool->extents.erase(it);
}

void Residency::DropSlot(Resident* image) {
  Unlist(image);
  image->pool->slots.Free(std::exchange(image->slot, Slot{}));
  image->hot = false;
  if (!image->cold) dirty_bytes_ -= image->bytes();
  --stats_.hot_images;
  stats_.hot_bytes -= image->bytes();
  attachment_bytes_ -= image->attachment.size();
  std::string().swap(image->attachment);
  if (image->pool->slots.empty_extents() > 1 || image->pool->slots.has_empty_closed()) WantTrim();
  Progress();
}

// ----
// extents

Residency::Extents Residency::TakeEmptyExtents(size_t keep_each) {
  Extents all;
  for (auto& [key, pool] : pools_) {
    Append(pool->slots.TakeEmptyOwned(/*closed_only=*/true), &all);
    Append(pool->slots.TakeEmpty(keep_each), &all);
  }
  return all;
}

// Of each pool those, but for one, that were empty ever since the last call, and those that nobody can use.
Residency::Extents Residency::TakeLongEmptyExtents() {
  Extents all;
  for (auto& [key, pool] : pools_) {
    Append(pool->slots.TakeEmptyOwned(/*closed_only=*/true), &all);
    const size_t empty = pool->slots.empty_extents();
    const size_t keep = std::max<size_t>(1, empty - std::min(empty, pool->fewest_empty));
    Append(pool->slots.TakeEmpty(keep), &all);
    pool->fewest_empty = pool->slots.empty_extents();
    if (pool->fewest_empty > 1) WantTrim();
  }
  return all;
}

// Erases the pools that nobody will want again.
Residency::Extents Residency::TakeDeletedPools() {
  Extents all;
  absl::erase_if(pools_, [&](const auto& entry) {
    Pool& pool = *entry.second;
    if (pool.users > 0 || !pool.layout_deleted) return false;
    Append(pool.slots.TakeEmpty(/*keep=*/0), &all);
    return true;
  });
  deleted_pools_ = 0;
  return all;
}

void Residency::WantTrim() {
  if (trim_wanted_) return;
  trim_wanted_ = true;
  trim_at_ = After(clock_->Now(), options_.keep_empty);
  wake_.SignalAll();
}

void Residency::GiveBack(Extents extents) {
  const MonoTime now = clock_->Now();
  std::erase_if(lingering_, [](const Lingering& lingering) { return lingering.extent.expired(); });
  for (const std::shared_ptr<Extent>& extent : extents) {
    if (extent.use_count() > 1) lingering_.push_back({extent, now});
  }
  ++moving_;
  {
    MutexUnlock unlock(&mu_);
    extents.clear();
  }
  --moving_;
  Progress();
}

uint64_t Residency::LingeringBytes() const {
  const MonoTime since = clock_->Now() - absl::ToInt64Nanoseconds(kLingering);
  uint64_t bytes = 0;
  for (const Lingering& lingering : lingering_) {
    const std::shared_ptr<const Extent> extent = lingering.extent.lock();
    if (extent != nullptr && lingering.since > since) bytes += extent->bytes();
  }
  return bytes;
}

// A new extent for `pool`, of at most so many bytes: of the size it likes, or one for a single slot. HOT_FULL if there
// is no memory for either.
absl::Status Residency::Grow(Pool* pool, OwnerId owner, uint64_t most_bytes) {
  const uint64_t free_chunks = (device_->budget_bytes() - device_->used_bytes()) / device_->chunk_bytes();
  if (free_chunks < pool->slots.min_chunks()) return HotFull(*device_);
  const uint64_t min_chunks = pool->slots.min_chunks();
  const uint64_t first_try =
      std::max(min_chunks, std::min(pool->slots.preferred_chunks(), most_bytes / device_->chunk_bytes()));
  const uint64_t owned_bytes = owner == 0 ? 0 : first_try * device_->chunk_bytes();
  growing_owned_bytes_ += owned_bytes;
  ++moving_;
  absl::StatusOr<std::unique_ptr<Extent>> extent;
  {
    MutexUnlock unlock(&mu_);
    extent = device_->AllocateExtent(pool->slots.tenant(), first_try, /*sealed=*/owner == 0);
    if (absl::IsResourceExhausted(extent.status()) && min_chunks != first_try) {
      extent = device_->AllocateExtent(pool->slots.tenant(), min_chunks, /*sealed=*/owner == 0);
    }
  }
  --moving_;
  growing_owned_bytes_ -= owned_bytes;
  if (!extent.ok()) {
    changed_.SignalAll();  // to those who waited for us; nothing came free
    return extent.status();
  }
  pool->slots.AddExtent(*std::move(extent), owner);
  Progress();
  return absl::OkStatus();
}

// ----
// making room

absl::Status Residency::Acquire(const Op& op, uint64_t attachment_bytes, Claim* claim) {
  Pool* const pool = claim->pool;
  Keep keep;
  MutexLock lock(&mu_);
  const uint64_t least_bytes = pool->slots.min_chunks() * device_->chunk_bytes();
  if (least_bytes > device_->budget_bytes()) return TooLarge(pool->slots.state_bytes(), device_->budget_bytes());
  if (attachment_bytes > options_.attachment_budget_bytes)
    return TooLarge(attachment_bytes, options_.attachment_budget_bytes);

  absl::Status spill_error;  // once one failed only clean images are let go
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    const uint64_t progress = progress_;
    Step step;
    absl::Status error;
    if (!claim->has_attachment_room) {
      if (attachment_bytes <= options_.attachment_budget_bytes - attachment_bytes_) {
        attachment_bytes_ += attachment_bytes;
        claim->attachment_bytes = attachment_bytes;
        claim->has_attachment_room = true;
        continue;
      }
      step = DropAttachment(op, !spill_error.ok(), &keep, &error);
    } else {
      if (std::optional<Slot> slot = pool->slots.Allocate()) {
        Claimed(*slot, claim);
        return absl::OkStatus();
      }
      const absl::Status grown = Grow(pool, /*owner=*/0, device_->budget_bytes());
      if (grown.ok()) continue;
      if (!absl::IsResourceExhausted(grown)) return grown;
      if (Extents empty = TakeEmptyExtents(/*keep_each=*/0); !empty.empty()) {
        GiveBack(std::move(empty));
        continue;
      }
      step = MakeRoomFor(op, pool, !spill_error.ok(), &keep, &error);
    }
    switch (step) {
      case Step::kProgress: break;
      case Step::kSpillFailed: spill_error = error; break;
      case Step::kNothingMayLeave:
        if (progress != progress_) break;  // something came free while the lock was given back
        if (moving_ == 0) return spill_error.ok() ? HotFull(*device_) : SpillError(spill_error, *device_);
        WaitForChange(op);
        break;
    }
  }
}

void Residency::Claimed(Slot slot, Claim* claim) {
  claim->slot = slot;
  claim->pool->fewest_empty = std::min(claim->pool->fewest_empty, claim->pool->slots.empty_extents());
  ++claims_;
  ++moving_;
}

absl::Status Residency::AcquireOwned(const Op& op, OwnerId owner, Claim* claim) {
  Pool* const pool = claim->pool;
  Keep keep;
  MutexLock lock(&mu_);
  const uint64_t least_bytes = pool->slots.min_chunks() * device_->chunk_bytes();
  if (least_bytes > device_->budget_bytes()) return TooLarge(pool->slots.state_bytes(), device_->budget_bytes());
  claim->has_attachment_room = true;  // for none
  absl::Status spill_error;
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    const uint64_t progress = progress_;
    if (std::optional<Slot> slot = pool->slots.Allocate(owner)) {
      Claimed(*slot, claim);
      return absl::OkStatus();
    }
    uint64_t owned = growing_owned_bytes_;
    for (const auto& [key, other] : pools_) owned += other->slots.owned_bytes();
    const uint64_t most_bytes = options_.owned_bytes_max - std::min(owned, options_.owned_bytes_max);
    const bool may_grow = least_bytes <= most_bytes;
    Extents empty;
    if (may_grow) {
      const absl::Status grown = Grow(pool, owner, most_bytes);
      if (grown.ok()) continue;
      if (!absl::IsResourceExhausted(grown)) return grown;
      empty = TakeEmptyExtents(/*keep_each=*/0);
    } else {
      for (auto& [key, other] : pools_) Append(other->slots.TakeEmptyOwned(/*closed_only=*/false), &empty);
    }
    if (!empty.empty()) {
      GiveBack(std::move(empty));
      continue;
    }
    Step step = Step::kNothingMayLeave;
    absl::Status error;
    if (may_grow) step = DrainFor(op, /*except=*/nullptr, pool->slots.min_chunks(), !spill_error.ok(), &keep, &error);
    if (step == Step::kNothingMayLeave) step = EvictOwned(op, pool, owner, !spill_error.ok(), &keep, &error);
    if (step == Step::kSpillFailed) spill_error = error;
    if (step != Step::kNothingMayLeave || progress != progress_) continue;
    if (!may_grow && spill_error.ok()) return TooMuchGranted(options_.owned_bytes_max);
    if (moving_ == 0) return spill_error.ok() ? HotFull(*device_) : SpillError(spill_error, *device_);
    WaitForChange(op);
  }
}

// The image whose turn is first in this owner's extents.
Residency::Step Residency::EvictOwned(const Op& op, Pool* pool, OwnerId owner, bool clean_only, Keep* keep,
                                      absl::Status* error) {
  Resident* first = nullptr;
  for (const auto& [extent, victims] : pool->extents) {
    if (extent->owner() != owner || extent->draining()) continue;
    for (Resident* image : victims.by_slot) {
      if (image == nullptr || (clean_only && image->listed->dirty())) continue;
      if (first == nullptr || *image->listed < *first->listed) first = image;
    }
  }
  return first == nullptr ? Step::kNothingMayLeave : Evict(op, first, keep, error);
}

void Residency::EndOwner(OwnerId owner, bool gone) {
  MutexLock lock(&mu_);
  for (const auto& [key, pool] : pools_) {
    pool->slots.EndOwner(owner, gone);
    if (pool->slots.empty_extents() > 0) WantTrim();
  }
  Progress();
}

Residency::Step Residency::MakeRoomFor(const Op& op, Pool* pool, bool clean_only, Keep* keep, absl::Status* error) {
  const auto may_leave = [clean_only](const VictimKey& key) {
    const SlotExtent& extent = *key.image->slot.extent;
    return !(clean_only && key.dirty()) && !extent.draining() && extent.owner() == 0;
  };
  const auto first = std::find_if(victims_.begin(), victims_.end(), may_leave);
  const auto own = std::find_if(pool->victims.begin(), pool->victims.end(), may_leave);
  if (own != pool->victims.end()) {
    // Another layout's extent goes only if all in it should go before any image of this one.
    if (first->image->pool != pool) {
      const VictimKey* newest = NewestIfDrainable(*first->image->pool, first->image->slot.extent, clean_only);
      if (newest != nullptr && *newest < *own && !first->image->slot.extent->is_mapped())
        return Drain(op, first->image->pool, first->image->slot.extent, keep, error);
    }
    return Evict(op, own->image, keep, error);
  }

  // This layout has nothing to let go: whole extents of others must, if that is enough for one of ours.
  return DrainFor(op, pool, pool->slots.min_chunks(), clean_only, keep, error);
}

// Empties the extent whose turn is first, if enough could be emptied for `chunks`. Of `except` only those that have an
// owner.
Residency::Step Residency::DrainFor(const Op& op, const Pool* except, uint64_t chunks, bool clean_only, Keep* keep,
                                    absl::Status* error) {
  uint64_t free_chunks = (device_->budget_bytes() - device_->used_bytes()) / device_->chunk_bytes();
  const VictimKey* best = nullptr;
  const VictimKey* best_mapped = nullptr;
  for (auto& [key, other] : pools_) {
    for (auto& [extent, victims] : other->extents) {
      if (other.get() == except && extent->owner() == 0) continue;
      const VictimKey* newest = NewestIfDrainable(*other, extent, clean_only);
      if (newest == nullptr) continue;
      free_chunks += extent->extent().bytes() / device_->chunk_bytes();
      const VictimKey*& first = extent->is_mapped() ? best_mapped : best;
      if (first == nullptr || *newest < *first) first = newest;
    }
  }
  const uint64_t lingering_chunks = LingeringBytes() / device_->chunk_bytes();
  if (best == nullptr && lingering_chunks < chunks) best = best_mapped;
  if (best == nullptr || free_chunks + lingering_chunks < chunks) return Step::kNothingMayLeave;
  return Drain(op, best->image->pool, best->image->slot.extent, keep, error);
}

absl::StatusOr<std::unique_ptr<SharedExtent>> Residency::AllocateShared(const Op& op, TenantId tenant, uint64_t bytes) {
  const uint64_t chunks = (bytes + device_->chunk_bytes() - 1) / device_->chunk_bytes();
  Keep keep;
  MutexLock lock(&mu_);
  absl::Status spill_error;
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    const uint64_t progress = progress_;
    absl::Status refused;
    if (chunks <= (device_->budget_bytes() - device_->used_bytes()) / device_->chunk_bytes()) {
      ++moving_;
      absl::StatusOr<std::unique_ptr<SharedExtent>> extent;
      {
        MutexUnlock unlock(&mu_);
        extent = device_->AllocateShared(tenant, chunks);
      }
      --moving_;
      changed_.SignalAll();  // to those who waited for us
      if (extent.ok() || !absl::IsResourceExhausted(extent.status())) return extent;
      refused = extent.status();
    }
    if (Extents empty = TakeEmptyExtents(/*keep_each=*/0); !empty.empty()) {
      GiveBack(std::move(empty));
      continue;
    }
    // The budget had room: it is the machine that is short of something, and images that leave would not help.
    if (!refused.ok()) return refused;
    absl::Status error;
    const Step step = DrainFor(op, /*except=*/nullptr, chunks, !spill_error.ok(), &keep, &error);
    if (step == Step::kSpillFailed) spill_error = error;
    if (step != Step::kNothingMayLeave || progress != progress_) continue;
    if (moving_ == 0) return spill_error.ok() ? HotFull(*device_) : SpillError(spill_error, *device_);
    WaitForChange(op);
  }
}

void Residency::SharedMemoryFreed() {
  MutexLock lock(&mu_);
  trim_now_ = trim_wanted_;
  wake_.SignalAll();
  Progress();
}

const Residency::VictimKey* Residency::NewestIfDrainable(const Pool& pool, SlotExtent* extent, bool clean_only) const {
  const auto it = pool.extents.find(extent);
  if (it == pool.extents.end() || extent->draining() || it->second.count != extent->used()) return nullptr;
  const VictimKey* newest = nullptr;
  for (const Resident* image : it->second.by_slot) {
    if (image == nullptr) continue;
    if (clean_only && image->listed->dirty()) return nullptr;
    if (newest == nullptr || *newest < *image->listed) newest = &*image->listed;
  }
  return newest;
}

Residency::Step Residency::DropAttachment(const Op& op, bool clean_only, Keep* keep, absl::Status* error) {
  for (const VictimKey& key : attached_victims_) {
    if (!(clean_only && key.dirty())) return Evict(op, key.image, keep, error);
  }
  return Step::kNothingMayLeave;
}

// REQUIRES: `image` is listed.
Residency::Step Residency::Evict(const Op& op, Resident* image, Keep* keep, absl::Status* error) {
  const bool behind = image->listed->victim_class <= VictimClass::kBehindDirty;
  const bool dirty = image->listed->dirty();
  if (dirty) {
    // No reference left means that its destructor waits for our lock: the slot is free already.
    std::shared_ptr<Resident> reference = image->weak_from_this().lock();
    if (reference != nullptr) {
      keep->push_back(std::move(reference));
      *error = PersistLocked(op, image);
      if (absl::IsDataLoss(*error)) return Step::kProgress;  // nobody keeps what is damaged
      if (!error->ok()) return Step::kSpillFailed;
      ++stats_.spills;
      if (!image->listed) return Step::kProgress;  // someone reads it now; it is clean, at least
    }
  }
  DropSlot(image);
  ++(behind ? stats_.evictions_behind_head : dirty ? stats_.evictions_spilled : stats_.evictions_clean);
  return Step::kProgress;
}

// Empties an extent and gives it back. REQUIRES: NewestIfDrainable.
Residency::Step Residency::Drain(const Op& op, Pool* pool, SlotExtent* extent, Keep* keep, absl::Status* error) {
  pool->slots.SetDraining(extent, true);
  ++moving_;
  Step step = Step::kProgress;
  while (step == Step::kProgress && extent->used() > 0) {
    const auto it = pool->extents.find(extent);
    if (it == pool->extents.end() || it->second.count != extent->used()) break;  // one is in use again
    const auto& images = it->second.by_slot;
    step = Evict(op, *std::find_if(images.begin(), images.end(), [](Resident* image) { return image != nullptr; }),
                 keep, error);
  }
  --moving_;
  const bool emptied = extent->used() == 0;
  pool->slots.SetDraining(extent, false);
  Progress();
  if (emptied) GiveBack(pool->slots.TakeEmpty(/*keep=*/0));
  return emptied ? Step::kProgress : step;
}

}  // namespace statepool
