// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Residency: what lives where, and who moves. Implements core's ImageStore over memories and the cold store.
//
// A memory is a device with slots. The hot ones come first, GPUs or the host's, all of one rank; below them there may
// be a warm one, host memory that GPUs copy from and to by themselves; the cold store is the lowest place. An image may
// have a *copy* in each memory, and be in the cold store. A copy is clean when any other place has the image too.
//
// Who leaves a memory when its budget is short:
//   1. images that nobody refers to (at once, by their destructor)
//   2. images behind all heads, clean before dirty, each least recently used first
//   3. heads that are clean, least recently used first
//   4. heads that are dirty
// A clean copy is dropped. A dirty one goes to the next place below that has room first: from a hot memory to the warm
// one (*demoted*; whose own images make room by the same rules), from there, or where there is none, to the cold store
// (*spilled*). So room is sought downwards only, and never waited for in a circle.
//
// Pinned copies and those being copied never leave. If nothing may leave but something is being moved in that memory by
// another thread, a call waits for it, within its deadline; if nothing may leave at all it gets HOT_FULL at once. A
// slot of another layout helps only when its whole extent is given back: so the extents that drain are those whose
// images all come before this layout's own first, and of several the one used least recently. Extents that other
// processes have mapped come back only when those let go of them: they drain when no other can, and the next one a
// moment later. Those that others write to come back whole as well, for a free slot in them is of use to their owner
// alone.
//
// When more than `dirty_bytes_max` of a memory is in it alone, a thread demotes or spills the next of 4. (and of 2.)
// ahead of time: so whoever needs a slot finds a clean one, and waits for the disk only when all of the budget changes
// faster than the disk takes.
//
// Who reads an image for the CPU gets the copy that the CPU can read, or else any; a cold one is brought to the warm
// memory, if there is one. Who needs it on a device gets a copy there (*promoted*: from the warm memory or another
// device by one copy without staging, where they reach each other, or from the cold store). The place that it came from
// keeps it. Who can read other devices' memory as well (PinPlace::or_reached) gets the copy that there is in one of
// them, and waits for one that is on its way there. New images go to the hot memory with the largest part of its budget
// free.
//
// Copies between memories go several at a time, so that the link is never idle between two: up to 32, of 256 MiB
// together (two, if they are larger), by each call that wants many images on a device (ReadMany), and by the thread
// that demotes ahead. The oldest are compared and published while the others run. Whoever has some under way waits for
// nothing else: room that is not free, or held by clean copies, he waits for when he has none. One that fails, or turns
// out damaged, takes no other with it.
//
// That thread is also called when a call had to demote an image itself: then it goes on with those whose turn is next,
// up to as many bytes, and calls that need their slots wait for it.
//
// Checksums. When an image leaves the device that it was written on it is hashed there, while it is copied, and
// compared with what was computed at its writing: what is damaged has no copy. After every way back up it is hashed
// where it arrived, before anybody reads it: on the device, which hashes faster than the bytes come, or by the CPU as
// they come from the disk. A copy in the warm memory is hashed when the CPU first reads it, not when it is made: a
// demotion that waited for the CPU would run at a fraction of the link's speed.
//
// A device that failed (Device::health) is noticed by the next call, and by CheckDevices. Its copies are lost: images
// that have another place are read from there, others are lost (ImageStore::loss). New images go to the other hot
// memories, and once none is left to the warm one, or to spare host memory that serves for nothing else.
//
// One mutex guards the bookkeeping; copies, hashing, disk and device calls run outside it. It is a leaf: nothing is
// called under it that takes another lock but Device::health, so that images may be dropped and heads moved under
// core's locks.
#ifndef STATEPOOL_SERVER_TIERS_RESIDENCY_H_
#define STATEPOOL_SERVER_TIERS_RESIDENCY_H_

#include <atomic>
#include <compare>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
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
  // Attachments of images in slots lie in host memory beside the devices' budgets, within this one. At least 1 MiB.
  uint64_t attachment_budget_bytes = 64 << 20;
  // Extents that were empty for as long go back to the system, but for one of each pool, and those of the warm memory:
  // mapping and clearing (and pinning) them anew for each burst of writes costs more than the writes. Where memory is
  // short they go at once.
  absl::Duration keep_empty = absl::Seconds(5);
  // Of each device's budget, of extents that other processes write to.
  uint64_t owned_bytes_max = UINT64_MAX;
};

// All of it must outlive the Residency.
struct ResidencyMemory {
  Device* device = nullptr;
  StagingPool* staging = nullptr;  // null only where the CPU reads and writes at the device's addresses
  // Of the device's budget, of images that are in no other place: what is more is copied to a lower one before its
  // slots are needed. UINT64_MAX: nothing is copied ahead.
  uint64_t dirty_bytes_max = UINT64_MAX;
};
struct ResidencyMemories {
  static constexpr size_t kMaxHot = 16;
  std::vector<ResidencyMemory> hot;       // at least one
  std::optional<ResidencyMemory> warm{};  // its device is the host's
  bool warm_is_spare = false;             // it is used only when no hot memory is left
};

// A moment of the residency, for metrics and the status page.
struct ResidencyStats {
  struct PoolStats {
    std::string device;
    TenantId tenant = kDefaultTenant;
    std::string layout;  // fingerprint
    uint64_t slots_used = 0, slots_free = 0;
    uint64_t extent_bytes = 0;  // of the device, whether its slots are used or not
  };
  // Copies that left a memory for want of room, since the start. Disjoint.
  struct Evictions {
    uint64_t behind_head = 0;  // no head needed the image, whether it had to be written elsewhere or not
    uint64_t clean = 0;        // a head's; another place had it
    uint64_t demoted = 0;      // a head's, copied to the warm memory first
    uint64_t spilled = 0;      // a head's, written to the cold store first

    Evictions& operator+=(const Evictions& other) {
      behind_head += other.behind_head;
      clean += other.clean;
      demoted += other.demoted;
      spilled += other.spilled;
      return *this;
    }
  };
  struct MemoryStats {
    std::string device;
    Tier tier = Tier::kHot;
    absl::Status health;
    uint64_t budget_bytes = 0, chunk_bytes = 0;
    uint64_t used_bytes = 0;  // of all extents
    uint64_t images = 0;
    uint64_t image_bytes = 0;  // in slots, without padding and free slots
    Evictions evictions;
  };
  std::vector<MemoryStats> memories;  // hot ones in their order, then the warm one
  std::vector<PoolStats> pools;
  uint64_t hot_images = 0, hot_bytes = 0;  // of the hot memories together
  uint64_t attachment_bytes = 0;           // of images in slots, beside their bytes
  uint64_t cold_bytes = 0;                 // in the cold store, whether elsewhere as well or not
  uint64_t pinned_images = 0;              // pinned copies
  uint64_t unreclaimed_images = 0;         // dropped, and not yet deleted from the cold store

  // Counters since the start.
  Evictions evictions;       // of all memories
  uint64_t spills = 0;       // images written to the cold store because their slot was needed, or will be
  uint64_t demotions = 0;    // images copied to the warm memory for that
  uint64_t misses = 0;       // reads that found no copy which would do, and began to make one
  uint64_t promotions = 0;   // those that succeeded
  uint64_t lost_images = 0;  // whose only place was a device that failed
  // Bytes of states and attachments, by the tiers that they went from and to; kUnknown is a client.
  absl::btree_map<std::pair<Tier, Tier>, uint64_t> transferred_bytes;
};

// Thread-safe. Must outlive its images and pins.
class Residency final : public ImageStore {
 public:
  // `cold` and `clock` must outlive this. REQUIRES: 1..kMaxHot hot memories; staging for each that the CPU can't reach;
  // a warm one that it can.
  Residency(ResidencyOptions options, const ResidencyMemories& memories, ColdStore* cold, const Clock* clock);
  ~Residency() override;

  // How often somebody got HOT_FULL or TOO_MUCH_GRANTED, but for slots wanted at once.
  uint64_t refusals() const { return refusals_.load(std::memory_order_relaxed); }

  // Called without locks when a write to the cold store found it full: forgets something of little value
  // (Store::EvictPrefix) and returns true, or false if there is nothing. To be set before images are written.
  void SetMakeRoom(std::function<bool()> make_room);

  absl::StatusOr<ImageRef> Write(const Op& op, LayoutRef layout, const StateBytes& bytes) override;
  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginWrite(const Op& op, LayoutRef layout, uint64_t attachment_bytes,
                                                          const Device* on) override;
  absl::StatusOr<Pin> Read(const Op& op, const ImageRef& image, PinPlace place) override;
  std::vector<absl::StatusOr<Pin>> ReadMany(const Op& op, absl::Span<const ImageRef> images, PinPlace place) override;
  Pin TryRead(const ImageRef& image) override;
  absl::Status Persist(const Op& op, const ImageRef& image) override;
  absl::Status loss(const Image& image) const override;
  bool persisted(const Image& image) const override;
  Tier tier(const Image& image) const override;
  ImageRef Adopt(const ImageInfo& info) override;
  bool Disown(absl::Span<const Image* const> images) override;
  void KeepUnused(ImageId id) override;
  void LayoutDeleted(TenantId tenant, const Layout& layout) override;
  void RecoveryDone() override;
  void Detach() override;

  // Memory of a hot device that another process will write to (an arena), for which colder images leave. Blocks as
  // Write does. Errors: HOT_FULL, COLD_FULL, DISK_FAILED, DEVICE_FAILED, DEADLINE, CANCELLED.
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(const Op& op, TenantId tenant, uint64_t bytes,
                                                               const Device* on);
  // A slot that another process will write to, in an extent of its own, on a hot device. Whole extents drain for it,
  // or, where its kind has as much as it may, images in this owner's extents leave. With `at_once` nothing is written
  // to the disk for it, and nobody waited for. Errors: those of BeginWrite, and TOO_MUCH_GRANTED.
  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginOwned(const Op& op, LayoutRef layout, OwnerId owner,
                                                          const Device* on, bool at_once = false);
  // No slot is given out any more that this owner can write to. `gone`: what it has counts no more for owned_bytes_max.
  void EndOwner(OwnerId owner, bool gone);

  // Such memory, or the last reference to an extent, was destroyed: to whoever waits for room. Empty extents, perhaps
  // of slots that belonged to it, go too.
  void SharedMemoryFreed();

  // Gives empty extents back now, and what was kept for deleted layouts, and waits until what was dropped before the
  // call is deleted from the cold store, and the sweep after recovery has ended. False: a delete failed (it will be
  // tried again), or `op` ended first.
  bool WaitForReclaim(const Op& op = Op());

  // Notices devices that failed, and logs it. To be called now and then, for where no call touches them.
  void CheckDevices();

  ResidencyStats stats() const;

  // Aborts when the residency contradicts itself. For tests; slow.
  void CheckInvariants() const;

 private:
  class Resident;
  class ResidentPin;
  class Writer;
  struct Claim;
  struct Copy;
  struct Family;
  struct Compared;
  struct Memory;
  struct Move;
  class Moves;
  struct Pool;

  // A copy that may leave its memory, by when its turn is. Images that nobody refers to are not here: they left when
  // their last reference did.
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

  // What became of the search for room. kComing: the spiller's copies are under way, after which there will be some.
  enum class Step { kProgress, kNothingMayLeave, kSpillFailed, kComing };
  enum class Loss : uint8_t { kNone, kDamaged, kDeviceFailed };

  // residency.cc: images
  void Forget(Resident* image);  // from the destructor
  void HeadsChanged(Resident* image);
  Family* FamilyFor(TenantId tenant, const LayoutRef& layout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Pool* PoolFor(Family* family, Memory* memory) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Enter(Family* family) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // a user more, and one less
  void Leave(Family* family) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<ImageWriter>> NewWriter(const Op& op, LayoutRef layout, uint64_t attachment_bytes,
                                                         OwnerId owner, const Device* on, bool at_once);
  void Abandon(Claim* claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // To and from bytes of a slot. REQUIRES: they stand still, and are nobody else's to fill. Errors: DEADLINE,
  // CANCELLED.
  absl::StatusOr<StateReader> ReaderOf(const Op& op, const Memory& memory, const char* from, uint64_t bytes) const;
  absl::StatusOr<StateFiller> FillerOf(const Op& op, const Memory& memory, char* to, uint64_t bytes) const;
  // Pieces into a slot; the leaves that it has then.
  absl::StatusOr<std::vector<LeafHash>> Fill(const Op& op, absl::Span<const absl::string_view> pieces, uint64_t bytes,
                                             const Memory& memory, char* to) const;
  absl::StatusOr<std::vector<LeafHash>> FillInitial(const Op& op, const Layout& layout, const Memory& memory,
                                                    char* to) const;
  absl::StatusOr<std::vector<LeafHash>> FillOverBase(const Op& op, const StateBytes& bytes, const Memory& memory,
                                                     char* to) const;
  absl::StatusOr<std::vector<LeafHash>> LeavesOf(const Memory& memory, const char* state, uint64_t bytes) const;
  // `shareable`: one image serves every Create.
  absl::StatusOr<ImageRef> WriteOn(const Op& op, const LayoutRef& layout, const StateBytes& bytes, bool shareable,
                                   Memory* memory);
  // The image of a claim whose slot is filled.
  std::shared_ptr<Resident> NewImage(Claim* claim, ImageInfo info, absl::string_view attachment, bool from_client)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Install(Resident* image, Claim* claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Pin PinLocked(const ImageRef& image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unpin(Resident* image, Copy* copy);
  absl::Status PersistAny(const Op& op, Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PersistLocked(const Op& op, Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PutCold(const Op& op, const Resident& image, const Copy& copy) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status GetCold(const Op& op, const ImageInfo& info, const Memory& memory, char* slot, std::string* attachment)
      ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForChange(const Op& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Progress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency.cc: the background threads
  void SpillLoop();
  // What shall be moved down next, and from where; null: nothing.
  std::shared_ptr<Resident> NextToMoveDown(Memory** from) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StopSpilling() ABSL_LOCKS_EXCLUDED(mu_);
  void ReclaimLoop();
  absl::Status DeleteBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status SweepBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency_places.cc: the memories
  Memory* Of(const Device* device) const;                    // null: it is no hot memory's
  bool UsesWarm() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // for what comes down, and what was cold
  // Those that an image may be made in which any will do for, the best first; at least one.
  using Candidates = std::vector<Memory*>;
  Candidates CandidatesForWrite(const Device* on) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Candidates CandidatesForRead(const Device* on) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Usable(const Memory& memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static Copy* CopyIn(const Resident& image, const Memory& memory);  // null: there is none
  // The same, or, `or_reached`, one that can be read in another hot memory whose device this one's reaches.
  static Copy* CopyFor(const Resident& image, const Memory& memory, bool or_reached);
  // The copy that the CPU reads best, and that devices read best: the warm one takes no other device's time. Null: none
  // can be read.
  Copy* BestCopy(const Resident& image) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CanBeRead(const Resident& image) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // now; else it is lost, or may be
  void Hold(Resident* image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);       // it stays while it is copied
  void Release(Resident* image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Damage(Resident* image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropCopy(Resident* image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Brings all that follows from an image's places up to date: after each change of them, or of who uses them.
  void PlacesChanged(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void NoticeFailures() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveUp(Memory* memory) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LoseCopy(Resident* image, Copy* copy, uint64_t* lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static VictimClass VictimClassOf(const Resident& image);        // under the lock
  void List(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // its copies among those that may leave, if they may
  void Unlist(Resident* image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CheckMemory(const Memory& memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency_moves.cc: copies between them
  static constexpr size_t kMovesMin = 2, kMovesMost = 32;
  static constexpr uint64_t kMoveBytesMost = 256 << 20;
  static constexpr size_t kMoveGroups = 4;  // of those under way
  // Takes room and begins a copy from the place that is nearest. Without `may_wait` ABORTED when that room would take
  // more than dropping clean copies. An error is the move's status, and EndMoves undoes it. REQUIRES: none is there,
  // nor coming; the image is not lost.
  void BeginMove(const Op& op, bool may_wait, Move* move) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Waits for them, and makes copies of their images of those that came whole.
  void EndMoves(absl::Span<const std::unique_ptr<Move>> moves) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndMove(Move* move) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Arrive(absl::Span<const std::unique_ptr<Move>> moves) const ABSL_LOCKS_EXCLUDED(mu_);
  // Those beside each other of one memory and size together.
  static void Compare(absl::Span<Compared> states);
  // Makes a copy in `target`. REQUIRES: none is there, nor coming; the caller has a reference. Errors: those of Read;
  // ABORTED when it can't be read now.
  absl::Status Bring(const Op& op, Resident* image, Memory* target) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void BringMany(const Op& op, absl::Span<const ImageRef> images, PinPlace place,
                 std::vector<absl::StatusOr<Pin>>* pins) ABSL_LOCKS_EXCLUDED(mu_);
  // Compares a copy that came down with the checksum. An error is the device's; a damaged copy is given up.
  absl::Status Verify(Resident* image, Copy* copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayDemote(const Resident& image, const Memory& from) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Makes an image clean in a memory that it shall leave. REQUIRES: it is dirty there, and listed; the caller has a
  // reference. *demoted: whether it went to the warm memory.
  absl::Status MoveDown(const Op& op, Resident* image, const Memory& from, bool* demoted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The spiller's. False: it was not begun; it is among the moves all the same. REQUIRES: MayDemote, and dirty there.
  bool BeginDemotion(std::shared_ptr<Resident> image, Memory* from, Moves* moves) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndDemotions(absl::Span<const std::unique_ptr<Move>> moves) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // residency_eviction.cc: room in a memory
  // Without `may_wait` ABORTED instead of a wait, or of a copy or a write that would make room. REQUIRES: the claim has
  // a pool.
  absl::Status Acquire(const Op& op, uint64_t attachment_bytes, Claim* claim, bool may_wait = true)
      ABSL_LOCKS_EXCLUDED(mu_);
  // More room for an attachment, for a claim that has its slot.
  absl::Status AcquireAttachment(const Op& op, uint64_t bytes, Claim* claim) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status AcquireOwned(const Op& op, OwnerId owner, bool at_once, Claim* claim) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Refuse(absl::Status why);  // counts it
  Step EvictOwned(const Op& op, Pool* pool, OwnerId owner, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Claimed(Slot slot, Claim* claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Grow(Pool* pool, OwnerId owner, uint64_t most_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveBack(Memory* memory, Extents extents) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeEmptyExtents(const Memory& memory, size_t keep_each) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Extents TakeLongEmptyExtents(const Memory& memory) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WantTrim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Trim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DeleteFamilies() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step MakeRoomFor(const Op& op, Pool* pool, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step DrainFor(const Op& op, Memory* memory, const Pool* except, uint64_t chunks, bool clean_only, Keep* keep,
                absl::Status* error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step DropAttachment(const Op& op, bool clean_only, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step Evict(const Op& op, Resident* image, Memory* memory, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Step Drain(const Op& op, Pool* pool, SlotExtent* extent, Keep* keep, absl::Status* error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The newest image of an extent that could be emptied now; null if it could not.
  const VictimKey* NewestIfDrainable(const Pool& pool, SlotExtent* extent, bool clean_only) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of extents that were given back a moment ago and are still mapped elsewhere.
  uint64_t LingeringBytes(const Memory& memory) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ResidencyOptions options_;
  std::vector<std::unique_ptr<Memory>> memories_;  // hot ones, then the warm one; never changed
  Memory* warm_ = nullptr;                         // of them
  const bool warm_is_spare_;
  ColdStore* const cold_;
  const Clock* const clock_;
  IdSource ids_;
  std::thread reclaimer_, spiller_;

  mutable Mutex mu_;
  CondVar changed_;                              // something that a waiting call may be waiting for
  uint64_t progress_ ABSL_GUARDED_BY(mu_) = 0;   // how often memory came free or an image may leave that could not
  uint64_t redirtied_ ABSL_GUARDED_BY(mu_) = 0;  // how often the warm memory let go of what made a hot copy clean
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t images_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t claims_ ABSL_GUARDED_BY(mu_) = 0;            // that have room
  uint64_t attachment_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of images in slots and of claims
  absl::flat_hash_map<std::pair<TenantId, std::string>, std::unique_ptr<Family>> families_ ABSL_GUARDED_BY(mu_);
  Victims attached_victims_ ABSL_GUARDED_BY(mu_);  // with an attachment, whose copies all may leave
  std::function<bool()> make_room_ ABSL_GUARDED_BY(mu_);
  ResidencyStats stats_ ABSL_GUARDED_BY(mu_);  // its counters, and pinned_images
  std::atomic<uint64_t> refusals_{0};
  // Memories that have not failed, as bits of Resident::places.
  std::atomic<uint32_t> healthy_{0};
  uint32_t in_reach_ = 0;  // memories that the CPU reads; never changed

  // Recovery: every adopted image, until RecoveryDone, which leaves their ids to the sweep.
  absl::flat_hash_map<ImageId, std::shared_ptr<Resident>> adopted_ ABSL_GUARDED_BY(mu_);
  bool recovered_ ABSL_GUARDED_BY(mu_) = false;

  CondVar wake_spiller_;

  CondVar wake_;  // of the background thread
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool spilling_ahead_ ABSL_GUARDED_BY(mu_) = true;
  bool detached_ ABSL_GUARDED_BY(mu_) = false;     // images that go stay in the cold store
  bool trim_wanted_ ABSL_GUARDED_BY(mu_) = false;  // a pool has more empty extents than it should keep
  bool trim_now_ ABSL_GUARDED_BY(mu_) = false;     // and somebody waits for it
  MonoTime trim_at_ ABSL_GUARDED_BY(mu_) = 0;      // when it is due
  bool trimming_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t deleted_families_ ABSL_GUARDED_BY(mu_) = 0;  // of deleted layouts, without users: to be erased
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
