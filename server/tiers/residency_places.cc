// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The memories: which one an image goes to, its copies in them, and what becomes of those in a device that failed.
#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/tiers/residency.h"
#include "server/tiers/resident.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

// The part of the budget that no image, claim or arena has.
double FreePart(const Device& device, uint64_t free_slot_bytes) {
  const uint64_t free_bytes = device.budget_bytes() - device.used_bytes() + free_slot_bytes;
  return static_cast<double>(free_bytes) / static_cast<double>(device.budget_bytes());
}

}  // namespace

// ---- which memory

Residency::Memory* Residency::Of(const Device* device) const {
  for (const auto& memory : memories_) {
    if (memory->device == device && memory->tier == Tier::kHot) return memory.get();
  }
  return nullptr;
}

bool Residency::UsesWarm() const {
  if (warm_ == nullptr || warm_->failed) return false;
  return !warm_is_spare_ || std::none_of(memories_.begin(), memories_.end(), [](const auto& memory) {
    return memory->tier == Tier::kHot && !memory->failed;
  });
}

absl::Status Residency::Usable(const Memory& memory) const {
  if (!memory.failed) return absl::OkStatus();
  return Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED",
               absl::StrCat("the device ", memory.device->name(), " failed (", memory.device->health().message(),
                            "): use another one, or start the daemon anew"))
      .Meta("device", memory.device->name());
}

Residency::Candidates Residency::CandidatesForWrite(const Device* on) {
  Candidates candidates;
  if (on != nullptr) {
    candidates.push_back(Of(on));
    Require(candidates.front() != nullptr, "a slot on a device that is no hot memory's");
    return candidates;
  }
  for (const auto& memory : memories_) {
    if (memory->tier == Tier::kHot && !memory->failed) candidates.push_back(memory.get());
  }
  if (candidates.size() > 1) {
    std::vector<std::pair<double, Memory*>> by_room;
    for (Memory* memory : candidates) {
      uint64_t free_slot_bytes = 0;
      for (const Pool* pool : memory->pools) free_slot_bytes += pool->slots.free_slots() * pool->slots.slot_bytes();
      by_room.emplace_back(FreePart(*memory->device, free_slot_bytes), memory);
    }
    // Of those that are as full as each other the one whose next victim is of the least use.
    const auto first_victim = [](const Memory& memory) {
      return memory.victims.empty() ? VictimKey{VictimClass::kHeadDirty, UINT64_MAX, nullptr} : *memory.victims.begin();
    };
    std::stable_sort(by_room.begin(), by_room.end(), [&](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : first_victim(*a.second) < first_victim(*b.second);
    });
    std::transform(by_room.begin(), by_room.end(), candidates.begin(), [](const auto& entry) { return entry.second; });
  }
  if (candidates.empty()) candidates.push_back(UsesWarm() ? warm_ : memories_.front().get());
  return candidates;
}

Residency::Candidates Residency::CandidatesForRead(const Device* on) {
  Candidates candidates = CandidatesForWrite(on);
  if (on == nullptr && UsesWarm() && candidates.front() != warm_) candidates.insert(candidates.begin(), warm_);
  return candidates;
}

// ---- copies

Residency::Copy* Residency::CopyIn(const Resident& image, const Memory& memory) {
  for (const auto& copy : image.copies) {
    if (copy->pool->memory == &memory) return copy.get();
  }
  return nullptr;
}

Residency::Copy* Residency::CopyFor(const Resident& image, const Memory& memory, bool or_reached) {
  Copy* const own = CopyIn(image, memory);
  if (own != nullptr || !or_reached) return own;
  for (const auto& copy : image.copies) {
    if ((copy->memory().bit & memory.reached) != 0 && !copy->damaged && !copy->memory().failed) return copy.get();
  }
  return nullptr;
}

Residency::Copy* Residency::BestCopy(const Resident& image) const {
  Copy* best = nullptr;
  for (const auto& copy : image.copies) {
    if (copy->damaged || copy->memory().failed) continue;
    if (copy->memory().in_reach) return copy.get();
    if (best == nullptr || copy->memory().index < best->memory().index) best = copy.get();
  }
  return best;
}

void Residency::Hold(Resident* image, Copy* copy) {
  ++copy->holds;
  PlacesChanged(image);
}

void Residency::Release(Resident* image, Copy* copy) {
  --copy->holds;
  if (!copy->is_used() && (copy->damaged || copy->memory().failed)) return DropCopy(image, copy);
  PlacesChanged(image);
  Progress();
}

// REQUIRES: it is held. Whoever releases it last drops it.
void Residency::Damage(Resident* image, Copy* copy) {
  spdlog::error("image {} changed in memory of {}", image->info().id, copy->memory().device->name());
  copy->damaged = true;
  image->why_lost = Loss::kDamaged;
  PlacesChanged(image);
}

void Residency::DropCopy(Resident* image, Copy* copy) {
  Unlist(image);
  Pool* const pool = copy->pool;
  const auto extent = pool->extents.find(copy->slot.extent);
  extent->second.by_slot[copy->slot.index] = nullptr;
  if (--extent->second.images == 0) pool->extents.erase(extent);
  pool->slots.Free(copy->slot);
  --pool->memory->images;
  pool->memory->image_bytes -= image->bytes();
  image->copies.erase(std::find_if(image->copies.begin(), image->copies.end(),
                                   [copy](const auto& entry) { return entry.get() == copy; }));
  if (image->copies.empty()) {
    attachment_bytes_ -= image->attachment.size();
    std::string().swap(image->attachment);
  }
  if (pool->slots.empty_extents() > 1 || pool->slots.has_empty_closed()) WantTrim();
  PlacesChanged(image);
  Progress();
}

void Residency::PlacesChanged(Resident* image) {
  Unlist(image);
  uint32_t places = 0;
  int readable = 0;
  Memory* dirty_in = nullptr;
  for (const auto& copy : image->copies) {
    if (copy->damaged) continue;
    places |= copy->memory().bit;
    if (copy->memory().failed) continue;
    ++readable;
    dirty_in = copy->pool->memory;
  }
  image->places = places;
  if (image->cold || readable > 1) dirty_in = nullptr;
  if (dirty_in != image->dirty_in) {
    if (image->dirty_in != nullptr) image->dirty_in->dirty_bytes -= image->bytes();
    if (dirty_in != nullptr) dirty_in->dirty_bytes += image->bytes();
    image->dirty_in = dirty_in;
  }
  List(image);
  // Also when one that was dirty all the time may leave again.
  if (image->listed && dirty_in != nullptr && dirty_in->dirty_bytes > dirty_in->dirty_bytes_max)
    wake_spiller_.SignalAll();
}

bool Residency::CanBeRead(const Resident& image) const { return image.cold || BestCopy(image) != nullptr; }

// ---- failures

void Residency::NoticeFailures() {
  for (const auto& memory : memories_) {
    if (!memory->failed && !memory->device->health().ok()) GiveUp(memory.get());
  }
}

void Residency::GiveUp(Memory* memory) {
  memory->failed = true;
  healthy_ &= ~memory->bit;
  std::vector<Resident*> images;
  for (const Pool* pool : memory->pools) {
    for (const auto& [extent, of_extent] : pool->extents) {
      std::copy_if(of_extent.by_slot.begin(), of_extent.by_slot.end(), std::back_inserter(images),
                   [](const Resident* image) { return image != nullptr; });
    }
  }
  uint64_t lost = 0;
  for (Resident* image : images) LoseCopy(image, CopyIn(*image, *memory), &lost);
  stats_.lost_images += lost;
  spdlog::critical("the device {} failed, and is not used any more: {}; of {} images that it had {} were nowhere else",
                   memory->device->name(), std::string(memory->device->health().message()), images.size(), lost);
  Progress();
}

// REQUIRES: its memory failed.
void Residency::LoseCopy(Resident* image, Copy* copy, uint64_t* lost) {
  image->lost_with = &copy->memory();  // before why_lost: loss() reads them without the lock
  if (image->why_lost == Loss::kNone) image->why_lost = Loss::kDeviceFailed;
  if (copy->is_used()) {
    PlacesChanged(image);
  } else {
    DropCopy(image, copy);
  }
  *lost += !loss(*image).ok();
}

void Residency::CheckDevices() {
  MutexLock lock(&mu_);
  NoticeFailures();
}

absl::Status Residency::loss(const Image& of) const {
  const Resident& image = *Resident::Of(of);
  // What is on its way may arrive yet: whoever moves it sets its place before he says that he is done.
  if (image.coming != 0 || image.persisting || image.cold || (image.places & healthy_) != 0) return absl::OkStatus();
  const Loss why = image.why_lost;  // before lost_with
  const Memory* const memory = image.lost_with;
  switch (why) {
    case Loss::kNone: return absl::OkStatus();
    case Loss::kDamaged: return Damaged(image.info().id);
    case Loss::kDeviceFailed: break;
  }
  return Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED",
               absl::StrCat("the state was in the memory of ", memory->device->name(), " alone, which failed"))
      .Meta("device", memory->device->name());
}

// ---- the lists of victims

Residency::VictimClass Residency::VictimClassOf(const Resident& image) {
  const bool clean = image.dirty_in == nullptr;
  if (image.was_head && !image.is_head()) return clean ? VictimClass::kBehindClean : VictimClass::kBehindDirty;
  return clean ? VictimClass::kHeadClean : VictimClass::kHeadDirty;
}

void Residency::List(Resident* image) {
  assert(!image->listed);
  if (image->copies.empty()) return;
  const VictimKey key{VictimClassOf(*image), image->used_at, image};
  bool all = true;
  for (const auto& copy : image->copies) {
    Pool* const pool = copy->pool;
    copy->listed = !copy->is_used() && !copy->damaged && !pool->memory->failed;
    all = all && copy->listed;
    if (!copy->listed) continue;
    image->listed = key;
    pool->memory->victims.insert(key);
    pool->victims.insert(key);
    ++pool->extents[copy->slot.extent].victims;
  }
  if (all && !image->attachment.empty()) attached_victims_.insert(key);
}

void Residency::Unlist(Resident* image) {
  if (!image->listed) return;
  const VictimKey key = *image->listed;
  image->listed.reset();
  attached_victims_.erase(key);
  for (const auto& copy : image->copies) {
    if (!std::exchange(copy->listed, false)) continue;
    copy->pool->memory->victims.erase(key);
    copy->pool->victims.erase(key);
    --copy->pool->extents[copy->slot.extent].victims;
  }
}

// ---- looking

void Residency::CheckMemory(const Memory& memory) const {
  uint64_t used_slots = 0, extent_bytes = 0, pool_victims = 0, extent_victims = 0, images = 0, image_bytes = 0;
  for (const Pool* pool : memory.pools) {
    Require(pool->memory == &memory && pool->family->pools[memory.index].get() == pool, "a pool is another memory's");
    pool->slots.CheckInvariants(memory.in_reach);
    used_slots += pool->slots.used_slots();
    extent_bytes += pool->slots.extent_bytes();
    pool_victims += pool->victims.size();
    for (const auto& [extent, of_extent] : pool->extents) {
      uint32_t count = 0, victims = 0;
      for (size_t slot = 0; slot < of_extent.by_slot.size(); ++slot) {
        const Resident* image = of_extent.by_slot[slot];
        if (image == nullptr) continue;
        const Copy* copy = CopyIn(*image, memory);
        Require(copy != nullptr && copy->slot.extent == extent && copy->slot.index == slot,
                "a slot is listed as another image's");
        ++count;
        victims += copy->listed;
        image_bytes += image->bytes();
      }
      Require(count > 0 && count == of_extent.images && victims == of_extent.victims,
              "an extent's images are miscounted");
      Require(count <= extent->used(), "an extent has more images than used slots");
      images += count;
      extent_victims += victims;
    }
  }
  Require(used_slots == memory.images + memory.claims, "a slot is neither an image's nor claimed");
  Require(images == memory.images && image_bytes == memory.image_bytes, "a memory's images are miscounted");
  Require(extent_bytes <= memory.device->used_bytes(), "the pools have more than the device gave");
  Require(memory.device->used_bytes() <= memory.device->budget_bytes(), "the device is over its budget");
  Require(memory.victims.size() == pool_victims && pool_victims == extent_victims, "the lists of victims disagree");
  Require(memory.dirty_bytes <= memory.image_bytes, "dirty bytes are miscounted");
  uint64_t dirty_bytes = 0;
  for (const VictimKey& key : memory.victims) {
    const Resident& image = *key.image;
    const Copy* copy = CopyIn(image, memory);
    Require(image.listed == key && key.used_at == image.used_at, "a victim is listed under another key");
    Require(copy != nullptr && copy->listed && copy->pool->victims.contains(key), "a victim is not in its pool's list");
    Require(!copy->is_used() && !copy->damaged && !memory.failed, "a copy is listed that may not leave");
    const auto places = std::count_if(image.copies.begin(), image.copies.end(),
                                      [](const auto& one) { return !one->damaged && !one->memory().failed; });
    Require(key.dirty() == (places == 1 && !image.cold), "a victim is in the wrong class");
    Require(key.dirty() == (image.dirty_in == &memory), "a dirty image counts elsewhere");
    if (key.dirty()) dirty_bytes += image.bytes();
  }
  Require(dirty_bytes <= memory.dirty_bytes, "dirty bytes are miscounted");
}

}  // namespace statepool
