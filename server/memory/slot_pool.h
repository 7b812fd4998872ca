// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// SlotPool: the slots of one (tenant, layout) on one device, cut out of the extents that it was given.
//
// Bookkeeping alone: it never calls the device, never blocks, and moves no bytes. Its owner allocates extents of the
// sizes that the pool asks for and hands them in (AddExtent), and takes empty ones out and destroys them (TakeEmpty),
// both outside its lock. An extent is one tenant's, so a chunk is too.
//
// An extent may have an *owner*, another process that can write to it: then its slots are allocated for this owner
// alone, and for nobody once it has ended, for who knows whom it gave the memory to. Such a *closed* extent runs empty.
// What an owner writes beside the state is nobody's business.
//
// A slot is state_bytes() rounded up to SlotAlignment. The padding is zero from the extent's birth and none of us
// writes it. A slot that was freed keeps its old bytes until it is allocated again; its next owner writes all
// state_bytes() before anyone may read them.
//
// Not thread-safe: the owner's lock guards it.
#ifndef STATEPOOL_SERVER_MEMORY_SLOT_POOL_H_
#define STATEPOOL_SERVER_MEMORY_SLOT_POOL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "server/core/ids.h"
#include "server/memory/device.h"

namespace statepool {

// Of small slots what vector loads of every kind like; of others what direct I/O needs, at most a sixteenth of padding.
inline constexpr uint64_t SlotAlignment(uint64_t state_bytes) { return state_bytes < (64 << 10) ? 256 : 4096; }
inline constexpr uint64_t SlotBytes(uint64_t state_bytes) {
  return (state_bytes + SlotAlignment(state_bytes) - 1) / SlotAlignment(state_bytes) * SlotAlignment(state_bytes);
}
inline constexpr uint64_t kMaxSharedChunks = 16;  // of an extent with more than one slot

// How many chunks an extent for slots of this size has: the fewest, up to kMaxSharedChunks, that leave at most an
// eighth unused; if there are none, just enough for one slot. REQUIRES: both sizes > 0.
uint64_t ExtentChunks(uint64_t slot_bytes, uint64_t chunk_bytes);

// Who may write to an extent besides us. 0: nobody.
using OwnerId = uint64_t;

// An extent cut into slots. Its address is its identity for as long as the pool has it.
class SlotExtent {
 public:
  SlotExtent(uint64_t number, std::shared_ptr<Extent> extent, OwnerId owner, uint64_t slot_bytes);

  const Extent& extent() const { return *extent_; }
  const std::shared_ptr<Extent>& shared() const { return extent_; }
  bool is_mapped() const { return extent_.use_count() > 1; }  // perhaps: somebody else has a reference
  OwnerId owner() const { return owner_; }
  uint32_t slots() const { return slots_; }
  uint32_t used() const { return slots_ - static_cast<uint32_t>(free_.size()); }
  bool draining() const { return draining_; }

 private:
  friend class SlotPool;
  const uint64_t number_;  // age: the older, the sooner its slots are used
  std::shared_ptr<Extent> extent_;
  const OwnerId owner_;
  const uint32_t slots_;
  std::vector<uint32_t> free_;
  std::vector<bool> is_used_;
  bool draining_ = false;
  bool closed_ = false;
  bool owner_gone_ = false;
};

// Where a state's bytes are. A plain value: whoever allocated it frees it, once.
struct Slot {
  char* data = nullptr;
  SlotExtent* extent = nullptr;
  uint32_t index = 0;

  explicit operator bool() const { return data != nullptr; }
};

class SlotPool {
 public:
  // REQUIRES: state_bytes >= 1.
  SlotPool(TenantId tenant, uint64_t state_bytes, uint64_t chunk_bytes);
  ~SlotPool();  // REQUIRES: no slot is allocated

  TenantId tenant() const { return tenant_; }
  uint64_t state_bytes() const { return state_bytes_; }
  uint64_t slot_bytes() const { return slot_bytes_; }
  uint64_t preferred_chunks() const { return preferred_chunks_; }  // of the next extent
  uint64_t min_chunks() const { return min_chunks_; }              // when the device is short: room for one slot

  // A free slot of this owner's extents, or nothing: then the pool needs an extent. Older extents are filled first, so
  // that younger ones run empty.
  std::optional<Slot> Allocate(OwnerId owner = 0);
  // REQUIRES: `slot` came from Allocate and was not freed since.
  void Free(Slot slot);

  // Takes a new extent in. REQUIRES: of this pool's tenant, all zero, at least min_chunks() long.
  void AddExtent(std::shared_ptr<Extent> extent, OwnerId owner = 0);
  // Gives out empty extents, all but the oldest `keep`, and retires them.
  std::vector<std::shared_ptr<Extent>> TakeEmpty(size_t keep);
  // While an extent drains, none of its slots is allocated, and TakeEmpty leaves it alone.
  void SetDraining(SlotExtent* extent, bool draining);
  // No slot of this owner's extents is allocated any more. `gone`: its process is, and they don't count as owned any
  // more. REQUIRES: owner is not 0.
  void EndOwner(OwnerId owner, bool gone);
  // Gives out empty extents that have an owner, and retires them: all, or those that are closed.
  std::vector<std::shared_ptr<Extent>> TakeEmptyOwned(bool closed_only);

  size_t extents() const { return extents_.size(); }
  size_t empty_extents() const { return empty_.size(); }
  bool has_empty_closed() const;
  uint64_t used_slots() const { return used_slots_; }
  uint64_t free_slots() const { return total_slots_ - used_slots_; }
  uint64_t extent_bytes() const { return extent_bytes_; }
  uint64_t owned_bytes() const { return owned_bytes_; }  // of them, of extents whose owner lives

  // Aborts when the pool contradicts itself, or when padding is not zero in memory that the CPU can read.
  void CheckInvariants(bool host_accessible) const;

 private:
  using ByNumber = absl::btree_set<uint64_t>;

  void NoteRoom(const SlotExtent& extent);  // whether it has any
  std::shared_ptr<Extent> Take(uint64_t number);

  const TenantId tenant_;
  const uint64_t state_bytes_;
  const uint64_t slot_bytes_;
  const uint64_t min_chunks_;
  const uint64_t preferred_chunks_;
  uint64_t next_number_ = 0;
  uint64_t used_slots_ = 0;
  uint64_t total_slots_ = 0;
  uint64_t extent_bytes_ = 0;
  uint64_t owned_bytes_ = 0;
  absl::btree_map<uint64_t, std::unique_ptr<SlotExtent>> extents_;
  absl::btree_set<std::pair<OwnerId, uint64_t>> with_room_;  // a free slot, not draining, not closed
  ByNumber empty_;                                           // no slot used, and not draining
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_SLOT_POOL_H_
