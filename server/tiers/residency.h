// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Residency: what lives where, and who moves. Implements core's ImageStore over a device and the cold store.
//
// An image is hot (in a slot), cold (in the cold store), or both; then its slot is a clean copy. Who leaves the device
// when the budget is short:
//   1. images that nobody refers to (at once, by their destructor)
//   2. images behind all heads, clean before dirty, each least recently used first
//   3. heads that are clean, least recently used first
//   4. heads that are dirty: spilled first
// Pinned images and those being copied never leave. If nothing may leave but something is being moved by another
// thread, a call waits for it, within its deadline; if nothing may leave at all it gets HOT_FULL at once. A slot of
// another layout helps only when its whole extent is given back: so the extents that drain are those whose images all
// come before this layout's own first, and of several the one used least recently. Extents that other processes have
// mapped come back only when those let go of them: they drain when no other can, and the next one a moment later.
// Those that others write to come back whole as well, for a free slot in them is of use to their owner alone.
//
// When more than `dirty_bytes_max` is in slots alone, a thread spills the next of 4. (and of 2.) ahead of time: so
// whoever needs a slot finds a clean one, and waits for the disk only when all of the budget changes faster than the
// disk takes.
//
// One mutex guards the bookkeeping; copies, hashing, disk and device calls run outside it. It is a leaf: nothing is
// called under it that takes another lock, so that images may be dropped and heads moved under core's locks.
#ifndef STATEPOOL_SERVER_TIERS_RESIDENCY_H_
#define STATEPOOL_SERVER_TIERS_RESIDENCY_H_

#include <compare>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/image_store.h"
#include "server/core/mutex.h"
#include "server/memory/device.h"
#include "server/memory/slot_pool.h"
#include "server/memory/state_io.h"
#include "server/tiers/cold_store.h"

namespace statepool {

struct ResidencyOptions {
  // Attachments of hot images lie in host memory beside the device's budget, within this one. At least 1 MiB.
  uint64_t attachment_budget_bytes = 64 << 20;
  // Extents that were empty for as long go back to the system, but for one of each pool: mapping and clearing them
  // anew for each burst of writes costs more than the writes. Where memory is short they go at once.
  absl::Duration keep_empty = absl::Seconds(5);
  // Of the device's budget, of images that are not on disk: what is more is spilled before its slots are needed.
  uint64_t dirty_bytes_max = UINT64_MAX;
  // Of the device's budget, of extents that other processes write to.
  uint64_t owned_bytes_max = UINT64_MAX;
  // Of the device, which it must outlive this. Null only where the CPU can read and write at the device's addresses.
  StagingPool* staging = nullptr;
};

// A moment of the residency, for metrics and the status page.
struct ResidencyStats {
  struct PoolStats {
    TenantId tenant = kDefaultTenant;
    std::string layout;  // fingerprint
    uint64_t slots_used = 0, slots_free = 0;
    uint64_t extent_bytes = 0;  // of the device, whether its slots are used or not
  };
  std::string device;
  uint64_t device_budget_bytes = 0;
  uint64_t device_used_bytes = 0;  // of all extents
  uint64_t hot_images = 0;
  uint64_t hot_bytes = 0;             // of images in slots, without padding and free slots
  uint64_t hot_attachment_bytes = 0;  // beside hot_bytes
  uint64_t cold_bytes = 0;            // in the cold store, whether hot as well or not
  uint64_t pinned_images = 0;
  uint64_t unreclaimed_images = 0;  // dropped, and not yet deleted from the cold store
  std::vector<PoolStats> pools;

  // Counters since the start. Evictions are disjoint.
  uint64_t evictions_behind_head = 0;  // no head needed the image, whether it had to be spilled or not
  uint64_t evictions_clean = 0;        // a head's, already in the cold store
  uint64_t evictions_spilled = 0;      // a head's, written to the cold store first
  uint64_t spills = 0;                 // images written to the cold store because their slot was needed, or will be
  uint64_t misses = 0;                 // reads that found their image cold and began to promote it
  uint64_t promotions = 0;             // those that succeeded
  uint64_t client_to_hot_bytes = 0, hot_to_cold_bytes = 0, cold_to_hot_bytes = 0;
};

// Thread-safe. Must outlive its images and pins.
class Residency final : public ImageStore {
 public:
  // `device`, `cold` and `clock` must outlive this. REQUIRES: device->host_accessible(), or options.staging.
  Residency(ResidencyOptions options, Device* device, ColdStore* cold, const Clock* clock);
  ~Residency() override;

  // Called without locks when a write to the cold store found it full: forgets something of little value
  // (Store::EvictPrefix) and returns true, or false if there is nothing. To be set before images are written.
  void SetMakeRoom(std::function<bool()> make_room);

  absl::StatusOr<ImageRef> Write(const Op& op, LayoutRef layout, const StateBytes& bytes) override;
  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginWrite(const Op& op, LayoutRef layout,
                                                          uint64_t attachment_bytes) override;
  absl::StatusOr<Pin> Read(const Op& op, const ImageRef& image) override;
  Pin TryRead(const ImageRef& image) override;
  absl::Status Persist(const Op& op, const ImageRef& image) override;
  bool lost(const Image& image) const override;
  bool persisted(const Image& image) const override;
  Tier tier(const Image& image) const override;
  ImageRef Adopt(const ImageInfo& info) override;
  bool Disown(absl::Span<const Image* const> images) override;
  void KeepUnused(ImageId id) override;
  void LayoutDeleted(TenantId tenant, const Layout& layout) override;
  void RecoveryDone() override;
  void Detach() override;

  // Memory of the device that another process will write to (an arena), for which colder images leave. Blocks as Write
  // does. Errors: HOT_FULL, COLD_FULL, DISK_FAILED, DEADLINE, CANCELLED.
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(const Op& op, TenantId tenant, uint64_t bytes);
  // A slot that another process will write to, in an extent of its own. Whole extents drain for it, or, where its kind
  // has as much as it may, images in this owner's extents leave. Errors: those of BeginWrite, and TOO_MUCH_GRANTED.
  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginOwned(const Op& op, LayoutRef layout, OwnerId owner);
  // No slot is given out any more that this owner can write to. `gone`: what it has counts no more for owned_bytes_max.
  void EndOwner(OwnerId owner, bool gone);

  // Such memory, or the last reference to an extent, was destroyed: to whoever waits for room. Empty extents, perhaps
  // of slots that belonged to it, go too.
  void SharedMemoryFreed();

  // Gives empty extents back now, and what was kept for deleted layouts, and waits until what was dropped before the
  // call is deleted from the cold store, and the sweep after recovery has ended. False: a delete failed (it will be
  // tried again), or `op` ended first.
  bool WaitForReclaim(const Op& op = Op());

  ResidencyStats stats() const;

  // Aborts when the residency contradicts itself. For tests; slow.
  void CheckInvariants() const;

 private:
  class Resident;
  class ResidentPin;
  class Writer;
  struct Claim;
  struct Pool;

  // An image that may leave, by when its turn is. Images that nobody refers to are not here: they left when their last
  // reference did.
  enum class VictimClass : uint8_t { kBehindClean, kBehindDirty, kHeadClean, kHeadDirty };
  struct VictimKey {
    VictimClass victim_class;
    uint64_t used_at;
    Resident* image;

    bool dirty() const { return victim_class == VictimClass::kBehindDirty || victim_class == VictimClass::kHeadDirty; }
    friend auto operator<=>(const VictimKey&, const VictimKey&) = default;
  };
  using Victims = absl::btree_set<VictimKey>;
  // References held across a scope that has the lock: dropping one may run a destructor that takes it, so they are
  // declared before the lock.
  using Keep = absl::InlinedVector<std::shared_ptr<Resident>, 4>;
  using Extents = std::vector<std::shared_ptr<Extent>>;

  enum class Step { kProgress, kNothingMayLeave, kSpillFailed };

  // residency.cc: images
  void Forget(Resident* image);  // from the destructor
  void HeadsChanged(Resident* image);
  Pool* PoolFor(TenantId tenant, const LayoutRef& layout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Enter(Pool* pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // a user more, and one less
  void Leave(Pool* pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<ImageWriter>> NewWriter(const Op& op, LayoutRef layout, uint64_t attachment_bytes,
                                                         OwnerId owner);
  void Abandon(Claim* claim) ABSL_LOCKS_EXCLUDED(mu_);
  // To and from bytes of a slot. REQUIRES: they stand still, and are nobody else's to fill. Errors: DEADLINE,
  // CANCELLED.
  absl::StatusOr<StateReader> ReaderOf(const Op& op, const char* from, uint64_t bytes) const;
  absl::StatusOr<StateFiller> FillerOf(const Op& op, char* to, uint64_t bytes) const;
  // Pieces into a slot; the leaves that it has then.
  absl::StatusOr<std::vector<LeafHash>> Fill(const Op& op, absl::Span<const absl::string_view> pieces, uint64_t bytes,
                                             char* to) const;
  absl::StatusOr<std::vector<LeafHash>> FillInitial(const Op& op, const Layout& layout, char* to) const;
  absl::StatusOr<std::vector<LeafHash>> FillOverBase(const Op& op, const StateBytes& bytes, char* to) const;
  absl::StatusOr<std::vector<LeafHash>> LeavesOf(const char* state, uint64_t bytes) const;
  // The image of a claim whose slot is filled.
  std::shared_ptr<Resident> NewImage(Claim* claim, ImageInfo info, absl::string_view attachment, bool from_client)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Install(Resident* image, Claim* claim, std::string attachment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Pin PinLocked(const ImageRef& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unpin(Resident* image);
  absl::Status PersistLocked(const Op& op, Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PutCold(const Op& op, const Resident& image) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status GetCold(const Op& op, const ImageInfo& info, char* slot, std::string* attachment)
      ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForChange(const Op& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Progress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency.cc: the background threads
  void SpillLoop();
  void StopSpilling() ABSL_LOCKS_EXCLUDED(mu_);
  void ReclaimLoop();
  absl::Status DeleteBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status SweepBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency_eviction.cc: room on the device
  // REQUIRES: the claim has a pool.
  absl::Status Acquire(const Op& op, uint64_t attachment_bytes, Claim* claim) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status AcquireOwned(const Op& op, OwnerId owner, Claim* claim) ABSL_LOCKS_EXCLUDED(mu_);
  Step EvictOwned(const Op& op, Pool* pool, OwnerId owner, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Claimed(Slot slot, Claim* claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Grow(Pool* pool, OwnerId owner, uint64_t most_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveBack(Extents extents) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeEmptyExtents(size_t keep_each) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeLongEmptyExtents() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeDeletedPools() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WantTrim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step MakeRoomFor(const Op& op, Pool* pool, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step DrainFor(const Op& op, const Pool* except, uint64_t chunks, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step DropAttachment(const Op& op, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step Evict(const Op& op, Resident* image, Keep* keep, absl::Status* error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step Drain(const Op& op, Pool* pool, SlotExtent* extent, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The newest image of an extent that could be emptied now; null if it could not.
  const VictimKey* NewestIfDrainable(const Pool& pool, SlotExtent* extent, bool clean_only) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of extents that were given back a moment ago and are still mapped elsewhere.
  uint64_t LingeringBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropSlot(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void List(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // among those that may leave, if it may
  void Unlist(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ResidencyOptions options_;
  Device* const device_;
  ColdStore* const cold_;
  const Clock* const clock_;
  IdSource ids_;
  std::thread reclaimer_, spiller_;

  mutable Mutex mu_;
  CondVar changed_;                             // something that a waiting call may be waiting for
  uint64_t progress_ ABSL_GUARDED_BY(mu_) = 0;  // how often memory came free or an image may leave that could not
  uint64_t moving_ ABSL_GUARDED_BY(mu_) =
      0;  // threads that are copying, spilling, mapping: each ends by itself, without memory
  uint64_t claims_ ABSL_GUARDED_BY(mu_) = 0;  // slots that are no image's yet
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t images_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t attachment_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of hot images and of claims
  absl::flat_hash_map<std::pair<TenantId, std::string>, std::unique_ptr<Pool>> pools_ ABSL_GUARDED_BY(mu_);
  Victims victims_ ABSL_GUARDED_BY(mu_);
  Victims attached_victims_ ABSL_GUARDED_BY(mu_);  // those with an attachment
  std::function<bool()> make_room_ ABSL_GUARDED_BY(mu_);
  ResidencyStats stats_ ABSL_GUARDED_BY(mu_);  // its counters, and hot_* and pinned_images

  // Recovery: every adopted image, until RecoveryDone, which leaves their ids to the sweep.
  absl::flat_hash_map<ImageId, std::shared_ptr<Resident>> adopted_ ABSL_GUARDED_BY(mu_);
  bool recovered_ ABSL_GUARDED_BY(mu_) = false;

  struct Lingering {
    std::weak_ptr<const Extent> extent;
    MonoTime since;
  };
  std::vector<Lingering> lingering_ ABSL_GUARDED_BY(mu_);  // given back and still mapped; some are gone meanwhile
  uint64_t growing_owned_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of extents with an owner that are being allocated

  uint64_t dirty_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of images that are hot and not on disk
  CondVar wake_spiller_;

  CondVar wake_;  // of the background thread
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool spilling_ahead_ ABSL_GUARDED_BY(mu_) = true;
  bool detached_ ABSL_GUARDED_BY(mu_) = false;     // images that go stay in the cold store
  bool trim_wanted_ ABSL_GUARDED_BY(mu_) = false;  // a pool has more empty extents than it should keep
  bool trim_now_ ABSL_GUARDED_BY(mu_) = false;     // and somebody waits for it
  MonoTime trim_at_ ABSL_GUARDED_BY(mu_) = 0;      // when it is due
  bool trimming_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t deleted_pools_ ABSL_GUARDED_BY(mu_) = 0;  // of deleted layouts, without users: to be erased
  std::deque<ImageId> reclaim_
      ABSL_GUARDED_BY(mu_);                    // to be deleted from the cold store; at most every image there ever was
  uint64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;  // images ever put into reclaim_, and those deleted since
  uint64_t deleted_ ABSL_GUARDED_BY(mu_) = 0;
  bool reclaim_failed_ ABSL_GUARDED_BY(mu_) = false;  // the last try; the next comes in a second
  bool sweeping_ ABSL_GUARDED_BY(mu_) = false;
  ImageId swept_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<ImageId> needed_ ABSL_GUARDED_BY(mu_);  // what the sweep leaves alone; sorted when it begins
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_RESIDENCY_H_
