// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Room in a memory: from free slots, from the budget, and from images that leave. The order stands in residency.h.
#include <algorithm>
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

// ----
// extents

Residency::Extents Residency::TakeEmptyExtents(const Memory& memory, size_t keep_each) {
  Extents all;
  for (Pool* pool : memory.pools) {
    Append(pool->slots.TakeEmptyOwned(/*closed_only=*/true), &all);
    Append(pool->slots.TakeEmpty(keep_each), &all);
  }
  return all;
}

// Of each pool those, but for one, that were empty ever since the last call, and those that nobody can use.
Residency::Extents Residency::TakeLongEmptyExtents(const Memory& memory) {
  Extents all;
  for (Pool* pool : memory.pools) {
    Append(pool->slots.TakeEmptyOwned(/*closed_only=*/true), &all);
    if (memory.tier == Tier::kWarm) continue;
    const size_t empty = pool->slots.empty_extents();
    const size_t keep = std::max<size_t>(1, empty - std::min(empty, pool->fewest_empty));
    Append(pool->slots.TakeEmpty(keep), &all);
    pool->fewest_empty = pool->slots.empty_extents();
    if (pool->fewest_empty > 1) WantTrim();
  }
  return all;
}

// Erases the families that nobody will want again, with their pools.
void Residency::DeleteFamilies() {
  std::vector<Extents> extents(memories_.size());
  absl::erase_if(families_, [&](const auto& entry) {
    Family& family = *entry.second;
    if (family.users > 0 || !family.layout_deleted) return false;
    for (const auto& memory : memories_) {
      Pool* const pool = family.pools[memory->index].get();
      if (pool == nullptr) continue;
      Append(pool->slots.TakeEmpty(/*keep=*/0), &extents[memory->index]);
      std::erase(memory->pools, pool);
    }
    return true;
  });
  deleted_families_ = 0;
  for (const auto& memory : memories_) GiveBack(memory.get(), std::move(extents[memory->index]));
}

void Residency::Trim() {
  const bool now = std::exchange(trim_now_, false);
  for (const auto& memory : memories_)
    GiveBack(memory.get(), now ? TakeEmptyExtents(*memory, /*keep_each=*/1) : TakeLongEmptyExtents(*memory));
}

void Residency::WantTrim() {
  if (trim_wanted_) return;
  trim_wanted_ = true;
  trim_at_ = After(clock_->Now(), options_.keep_empty);
  wake_.SignalAll();
}

void Residency::GiveBack(Memory* memory, Extents extents) {
  const MonoTime now = clock_->Now();
  std::erase_if(memory->lingering, [](const Memory::Lingering& lingering) { return lingering.extent.expired(); });
  for (const std::shared_ptr<Extent>& extent : extents) {
    if (extent.use_count() > 1) memory->lingering.push_back({extent, now});
  }
  ++memory->moving;
  {
    MutexUnlock unlock(&mu_);
    extents.clear();
  }
  --memory->moving;
  Progress();
}

uint64_t Residency::LingeringBytes(const Memory& memory) const {
  const MonoTime since = clock_->Now() - absl::ToInt64Nanoseconds(kLingering);
  uint64_t bytes = 0;
  for (const Memory::Lingering& lingering : memory.lingering) {
    const std::shared_ptr<const Extent> extent = lingering.extent.lock();
    if (extent != nullptr && lingering.since > since) bytes += extent->bytes();
  }
  return bytes;
}

// A new extent for `pool`, of at most so many bytes: of the size it likes, or one for a single slot. HOT_FULL if there
// is no memory for either.
absl::Status Residency::Grow(Pool* pool, OwnerId owner, uint64_t most_bytes) {
  Memory* const memory = pool->memory;
  Device* const device = memory->device;
  const uint64_t free_chunks = (device->budget_bytes() - device->used_bytes()) / device->chunk_bytes();
  if (free_chunks < pool->slots.min_chunks()) return HotFull(*device);
  const uint64_t min_chunks = pool->slots.min_chunks();
  const uint64_t first_try =
      std::max(min_chunks, std::min(pool->slots.preferred_chunks(), most_bytes / device->chunk_bytes()));
  const uint64_t owned_bytes = owner == 0 ? 0 : first_try * device->chunk_bytes();
  memory->growing_owned_bytes += owned_bytes;
  ++memory->moving;
  absl::StatusOr<std::unique_ptr<Extent>> extent;
  {
    MutexUnlock unlock(&mu_);
    extent = device->AllocateExtent(pool->slots.tenant(), first_try, /*sealed=*/owner == 0);
    if (absl::IsResourceExhausted(extent.status()) && min_chunks != first_try) {
      extent = device->AllocateExtent(pool->slots.tenant(), min_chunks, /*sealed=*/owner == 0);
    }
  }
  --memory->moving;
  memory->growing_owned_bytes -= owned_bytes;
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

absl::Status Residency::Acquire(const Op& op, uint64_t attachment_bytes, Claim* claim, bool may_wait) {
  Pool* const pool = claim->pool;
  Memory* const memory = pool->memory;
  const Device& device = *memory->device;
  Keep keep;
  MutexLock lock(&mu_);
  const uint64_t least_bytes = pool->slots.min_chunks() * device.chunk_bytes();
  if (least_bytes > device.budget_bytes()) return TooLarge(pool->slots.state_bytes(), device.budget_bytes());
  if (attachment_bytes > options_.attachment_budget_bytes)
    return TooLarge(attachment_bytes, options_.attachment_budget_bytes);

  absl::Status spill_error;  // once one failed only clean images are let go
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    NoticeFailures();
    if (absl::Status status = Usable(*memory); !status.ok()) return status;
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
      step = DropAttachment(op, !may_wait || !spill_error.ok(), &keep, &error);
    } else {
      if (std::optional<Slot> slot = pool->slots.Allocate()) {
        Claimed(*slot, claim);
        return absl::OkStatus();
      }
      const absl::Status grown = Grow(pool, /*owner=*/0, device.budget_bytes());
      if (grown.ok()) continue;
      if (!absl::IsResourceExhausted(grown)) return grown;
      if (Extents empty = TakeEmptyExtents(*memory, /*keep_each=*/0); !empty.empty()) {
        GiveBack(memory, std::move(empty));
        continue;
      }
      step = MakeRoomFor(op, pool, !may_wait || !spill_error.ok(), &keep, &error);
    }
    switch (step) {
      case Step::kProgress: break;
      case Step::kSpillFailed: spill_error = error; break;
      case Step::kComing: WaitForChange(op); break;
      case Step::kNothingMayLeave:
        if (progress != progress_) break;  // something came free while the lock was given back
        if (!may_wait) return absl::AbortedError("room would have to be made, or waited for");
        if (memory->moving == 0) return Refuse(spill_error.ok() ? HotFull(device) : SpillError(spill_error, device));
        WaitForChange(op);
        break;
    }
  }
}

absl::Status Residency::AcquireAttachment(const Op& op, uint64_t bytes, Claim* claim) {
  Keep keep;
  MutexLock lock(&mu_);
  if (bytes > options_.attachment_budget_bytes) return TooLarge(bytes, options_.attachment_budget_bytes);
  absl::Status spill_error;
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    NoticeFailures();
    if (bytes <= options_.attachment_budget_bytes - attachment_bytes_) {
      attachment_bytes_ += bytes;
      claim->attachment_bytes += bytes;
      return absl::OkStatus();
    }
    const uint64_t progress = progress_;
    absl::Status error;
    switch (DropAttachment(op, !spill_error.ok(), &keep, &error)) {
      case Step::kProgress: break;
      case Step::kSpillFailed: spill_error = error; break;
      case Step::kComing: WaitForChange(op); break;
      case Step::kNothingMayLeave: {
        if (progress != progress_) break;
        // It has a slot, so it waits for nobody else's.
        const Device& device = *claim->pool->memory->device;
        return Refuse(spill_error.ok() ? HotFull(device) : SpillError(spill_error, device));
      }
    }
  }
}

absl::Status Residency::Refuse(absl::Status why) {
  refusals_.fetch_add(1, std::memory_order_relaxed);
  return why;
}

void Residency::Claimed(Slot slot, Claim* claim) {
  claim->slot = slot;
  claim->pool->fewest_empty = std::min(claim->pool->fewest_empty, claim->pool->slots.empty_extents());
  ++claims_;
  ++claim->pool->memory->claims;
  ++claim->pool->memory->moving;
}

absl::Status Residency::AcquireOwned(const Op& op, OwnerId owner, bool at_once, Claim* claim) {
  Pool* const pool = claim->pool;
  Memory* const memory = pool->memory;
  const Device& device = *memory->device;
  Keep keep;
  MutexLock lock(&mu_);
  const uint64_t least_bytes = pool->slots.min_chunks() * device.chunk_bytes();
  if (least_bytes > device.budget_bytes()) return TooLarge(pool->slots.state_bytes(), device.budget_bytes());
  claim->has_attachment_room = true;  // for none
  absl::Status spill_error;
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    NoticeFailures();
    if (absl::Status status = Usable(*memory); !status.ok()) return status;
    const uint64_t progress = progress_;
    if (std::optional<Slot> slot = pool->slots.Allocate(owner)) {
      Claimed(*slot, claim);
      return absl::OkStatus();
    }
    uint64_t owned = memory->growing_owned_bytes;
    for (const Pool* other : memory->pools) owned += other->slots.owned_bytes();
    const uint64_t most_bytes = options_.owned_bytes_max - std::min(owned, options_.owned_bytes_max);
    const bool may_grow = least_bytes <= most_bytes;
    Extents empty;
    if (may_grow) {
      const absl::Status grown = Grow(pool, owner, most_bytes);
      if (grown.ok()) continue;
      if (!absl::IsResourceExhausted(grown)) return grown;
      empty = TakeEmptyExtents(*memory, /*keep_each=*/0);
    } else {
      for (Pool* other : memory->pools) Append(other->slots.TakeEmptyOwned(/*closed_only=*/false), &empty);
    }
    if (!empty.empty()) {
      GiveBack(memory, std::move(empty));
      continue;
    }
    // Nothing is spilled for want of what leases may have: who is refused has the daemon copy into other memory.
    const bool clean_only = at_once || !spill_error.ok() || !may_grow;
    Step step = Step::kNothingMayLeave;
    absl::Status error;
    if (may_grow) step = DrainFor(op, memory, /*except=*/nullptr, pool->slots.min_chunks(), clean_only, &keep, &error);
    if (step == Step::kNothingMayLeave) step = EvictOwned(op, pool, owner, clean_only, &keep, &error);
    if (step == Step::kSpillFailed) spill_error = error;
    if (at_once && step == Step::kComing) return HotFull(device);
    if (step == Step::kComing) WaitForChange(op);
    if (step != Step::kNothingMayLeave || progress != progress_) continue;
    if (at_once) return HotFull(device);
    if (!may_grow && spill_error.ok()) return Refuse(TooMuchGranted(options_.owned_bytes_max));
    if (memory->moving == 0) return Refuse(spill_error.ok() ? HotFull(device) : SpillError(spill_error, device));
    WaitForChange(op);
  }
}

// The image whose turn is first in this owner's extents.
Residency::Step Residency::EvictOwned(const Op& op, Pool* pool, OwnerId owner, bool clean_only, Keep* keep,
                                      absl::Status* error) {
  Resident* first = nullptr;
  for (const auto& [extent, images] : pool->extents) {
    if (extent->owner() != owner || extent->draining()) continue;
    for (Resident* image : images.by_slot) {
      if (image == nullptr || !CopyIn(*image, *pool->memory)->listed) continue;
      if (clean_only && image->listed->dirty()) continue;
      if (first == nullptr || *image->listed < *first->listed) first = image;
    }
  }
  return first == nullptr ? Step::kNothingMayLeave : Evict(op, first, pool->memory, keep, error);
}

void Residency::EndOwner(OwnerId owner, bool gone) {
  MutexLock lock(&mu_);
  for (const auto& memory : memories_) {
    for (Pool* pool : memory->pools) {
      pool->slots.EndOwner(owner, gone);
      if (pool->slots.empty_extents() > 0) WantTrim();
    }
  }
  Progress();
}

Residency::Step Residency::MakeRoomFor(const Op& op, Pool* pool, bool clean_only, Keep* keep, absl::Status* error) {
  Memory* const memory = pool->memory;
  const auto extent_of = [memory](const VictimKey& key) { return CopyIn(*key.image, *memory)->slot.extent; };
  const auto may_leave = [&](const VictimKey& key) {
    if (clean_only && key.dirty()) return false;
    const SlotExtent& extent = *extent_of(key);
    return !extent.draining() && extent.owner() == 0;
  };
  const auto first = std::find_if(memory->victims.begin(), memory->victims.end(), may_leave);
  const auto own = std::find_if(pool->victims.begin(), pool->victims.end(), may_leave);
  if (own != pool->victims.end()) {
    // Another layout's extent goes only if all in it should go before any image of this one.
    if (first->image->family != pool->family) {
      Pool* const other = CopyIn(*first->image, *memory)->pool;
      SlotExtent* const extent = extent_of(*first);
      const VictimKey* newest = NewestIfDrainable(*other, extent, clean_only);
      if (newest != nullptr && *newest < *own && !extent->is_mapped()) return Drain(op, other, extent, keep, error);
    }
    return Evict(op, own->image, memory, keep, error);
  }

  // This layout has nothing to let go: whole extents of others must, if that is enough for one of ours.
  return DrainFor(op, memory, pool, pool->slots.min_chunks(), clean_only, keep, error);
}

// Empties the extent whose turn is first, if enough could be emptied for `chunks`. Of `except` only those that have an
// owner.
Residency::Step Residency::DrainFor(const Op& op, Memory* memory, const Pool* except, uint64_t chunks, bool clean_only,
                                    Keep* keep, absl::Status* error) {
  struct Candidate {
    const VictimKey* newest = nullptr;
    Pool* pool = nullptr;
    SlotExtent* extent = nullptr;
  };
  const Device& device = *memory->device;
  uint64_t free_chunks = (device.budget_bytes() - device.used_bytes()) / device.chunk_bytes();
  Candidate best, best_mapped;
  for (Pool* other : memory->pools) {
    for (auto& [extent, images] : other->extents) {
      if (other == except && extent->owner() == 0) continue;
      const VictimKey* newest = NewestIfDrainable(*other, extent, clean_only);
      if (newest == nullptr) continue;
      free_chunks += extent->extent().bytes() / device.chunk_bytes();
      Candidate& first = extent->is_mapped() ? best_mapped : best;
      if (first.newest == nullptr || *newest < *first.newest) first = {newest, other, extent};
    }
  }
  const uint64_t lingering_chunks = LingeringBytes(*memory) / device.chunk_bytes();
  if (best.newest == nullptr && lingering_chunks < chunks) best = best_mapped;
  if (best.newest == nullptr || free_chunks + lingering_chunks < chunks) return Step::kNothingMayLeave;
  return Drain(op, best.pool, best.extent, keep, error);
}

absl::StatusOr<std::unique_ptr<SharedExtent>> Residency::AllocateShared(const Op& op, TenantId tenant, uint64_t bytes,
                                                                        const Device* on) {
  Memory* const memory = Of(on);
  Require(memory != nullptr, "an arena of no hot device");
  Device* const device = memory->device;
  const uint64_t chunks = (bytes + device->chunk_bytes() - 1) / device->chunk_bytes();
  const auto free_chunks = [&] { return (device->budget_bytes() - device->used_bytes()) / device->chunk_bytes(); };
  Keep keep;
  MutexLock lock(&mu_);
  absl::Status spill_error;
  for (;;) {
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    NoticeFailures();
    if (absl::Status status = Usable(*memory); !status.ok()) return status;
    const uint64_t progress = progress_;
    absl::Status refused;
    if (chunks <= free_chunks()) {
      ++memory->moving;
      absl::StatusOr<std::unique_ptr<SharedExtent>> extent;
      {
        MutexUnlock unlock(&mu_);
        extent = device->AllocateShared(tenant, chunks);
      }
      --memory->moving;
      changed_.SignalAll();  // to those who waited for us
      if (extent.ok() || !absl::IsResourceExhausted(extent.status())) return extent;
      refused = extent.status();
    }
    if (Extents empty = TakeEmptyExtents(*memory, /*keep_each=*/0); !empty.empty()) {
      GiveBack(memory, std::move(empty));
      continue;
    }
    // The budget has room: it is the machine that is short of something, and images that leave would not help.
    if (!refused.ok() && chunks <= free_chunks()) return refused;
    absl::Status error;
    const Step step = DrainFor(op, memory, /*except=*/nullptr, chunks, !spill_error.ok(), &keep, &error);
    if (step == Step::kSpillFailed) spill_error = error;
    if (step == Step::kComing) WaitForChange(op);
    if (step != Step::kNothingMayLeave || progress != progress_) continue;
    if (memory->moving == 0) return Refuse(spill_error.ok() ? HotFull(*device) : SpillError(spill_error, *device));
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
  if (it == pool.extents.end() || extent->draining() || it->second.victims != extent->used()) return nullptr;
  const VictimKey* newest = nullptr;
  for (const Resident* image : it->second.by_slot) {
    if (image == nullptr) continue;
    if (clean_only && image->listed->dirty()) return nullptr;
    if (newest == nullptr || *newest < *image->listed) newest = &*image->listed;
  }
  return newest;
}

// The attachment is one for all copies: they go together, to the cold store.
Residency::Step Residency::DropAttachment(const Op& op, bool clean_only, Keep* keep, absl::Status* error) {
  for (const VictimKey& key : attached_victims_) {
    Resident* const image = key.image;
    if (clean_only && !image->cold) continue;
    const auto higher = [](const auto& a, const auto& b) { return a->memory().index < b->memory().index; };
    while (image->copies.size() > 1)
      DropCopy(image, std::min_element(image->copies.begin(), image->copies.end(), higher)->get());
    return Evict(op, image, &image->copies.front()->memory(), keep, error);
  }
  return Step::kNothingMayLeave;
}

// REQUIRES: its copy in `memory` is listed.
Residency::Step Residency::Evict(const Op& op, Resident* image, Memory* memory, Keep* keep, absl::Status* error) {
  const bool behind = image->listed->victim_class <= VictimClass::kBehindDirty;
  Copy* copy = CopyIn(*image, *memory);
  bool demoted = false, spilled = false;
  if (image->listed->dirty()) {
    if (memory->dirty_bytes_max != UINT64_MAX && MayDemote(*image, *memory)) {
      memory->ahead_bytes = kMoveBytesMost;
      wake_spiller_.SignalAll();
      if (copy->pool->going_down > 0) return Step::kComing;
    }
    // No reference left means that its destructor waits for our lock: the slot is free already.
    std::shared_ptr<Resident> reference = image->weak_from_this().lock();
    if (reference != nullptr) {
      keep->push_back(std::move(reference));
      ++memory->moving;
      *error = MoveDown(op, image, *memory, &demoted);
      --memory->moving;
      changed_.SignalAll();
      if (absl::IsDataLoss(*error)) return Step::kProgress;  // nobody keeps what is damaged
      if (!error->ok()) return Step::kSpillFailed;
      spilled = !demoted;
      copy = CopyIn(*image, *memory);
      if (copy == nullptr || !copy->listed) return Step::kProgress;  // someone reads it now; it is clean, at least
    }
  }
  DropCopy(image, copy);
  redirtied_ += memory == warm_ && image->dirty_in != nullptr;
  ResidencyStats::Evictions& evictions = memory->evictions;
  ++(behind ? evictions.behind_head : demoted ? evictions.demoted : spilled ? evictions.spilled : evictions.clean);
  return Step::kProgress;
}

// Empties an extent and gives it back. REQUIRES: NewestIfDrainable.
Residency::Step Residency::Drain(const Op& op, Pool* pool, SlotExtent* extent, Keep* keep, absl::Status* error) {
  Memory* const memory = pool->memory;
  const uint64_t used = extent->used();
  pool->slots.SetDraining(extent, true);
  ++memory->moving;
  Step step = Step::kProgress;
  while (step == Step::kProgress && extent->used() > 0) {
    const auto it = pool->extents.find(extent);
    if (it == pool->extents.end() || it->second.victims != extent->used()) break;  // one is in use again
    const auto& images = it->second.by_slot;
    step = Evict(op, *std::find_if(images.begin(), images.end(), [](Resident* image) { return image != nullptr; }),
                 memory, keep, error);
  }
  --memory->moving;
  const bool emptied = extent->used() == 0;
  pool->slots.SetDraining(extent, false);
  // Who waits for what is coming is told when it has come: told now as well, two would keep each other awake.
  if (step != Step::kComing || extent->used() < used) Progress();
  if (emptied) GiveBack(memory, pool->slots.TakeEmpty(/*keep=*/0));
  return emptied ? Step::kProgress : step;
}

}  // namespace statepool
