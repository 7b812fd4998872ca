// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Resident: an image as Residency keeps it: where it has copies, whether it is on disk, who uses it now. And what goes
// with it: memories, pools and claims. For residency*.cc alone.
#ifndef STATEPOOL_SERVER_TIERS_RESIDENT_H_
#define STATEPOOL_SERVER_TIERS_RESIDENT_H_

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "server/core/error.h"
#include "server/core/image.h"
#include "server/memory/slot_pool.h"
#include "server/tiers/residency.h"

namespace statepool {

// A device and what of it is used. Guarded by Residency::mu_, but for what is const.
struct Residency::Memory {
  struct Lingering {
    std::weak_ptr<const Extent> extent;
    MonoTime since;
  };

  Memory(const ResidencyMemory& memory, Tier its_tier, size_t its_index)
      : device(memory.device),
        staging(memory.staging),
        dirty_bytes_max(memory.dirty_bytes_max),
        tier(its_tier),
        index(its_index),
        bit(uint32_t{1} << its_index),
        in_reach(memory.device->host_accessible()) {}

  Device* const device;
  StagingPool* const staging;
  const uint64_t dirty_bytes_max;
  const Tier tier;
  const size_t index;    // in memories_, and of its pool in each Family
  const uint32_t bit;    // of Resident::places
  const bool in_reach;   // of the CPU
  uint32_t reached = 0;  // bits of the other hot memories that its device reaches; set once

  bool failed = false;
  std::vector<Pool*> pools;
  Victims victims;
  // Threads that are copying into it, spilling, mapping, or bringing an image down from it: each ends by itself, and
  // waits for no room but in lower places.
  uint64_t moving = 0;
  uint64_t claims = 0;  // slots that are no image's yet
  uint64_t images = 0, image_bytes = 0;
  uint64_t dirty_bytes = 0;          // of images that are nowhere else
  std::vector<Lingering> lingering;  // given back and still mapped; some are gone meanwhile
  // Of images that the spiller copies to the warm memory now; and what it shall copy there ahead, since somebody had to
  // do that himself.
  uint64_t going_down_bytes = 0, ahead_bytes = 0;
  uint64_t growing_owned_bytes = 0;  // of extents with an owner that are being allocated
  ResidencyStats::Evictions evictions;
};

// What the images of one tenant and layout have in common.
struct Residency::Family {
  Family(TenantId its_tenant, const Layout& its_layout, size_t memories)
      : tenant(its_tenant), layout(its_layout.fingerprint()), state_bytes(its_layout.state_bytes()), pools(memories) {}

  const TenantId tenant;
  const std::string layout;  // fingerprint
  const uint64_t state_bytes;
  std::vector<std::unique_ptr<Pool>> pools;  // by the memory's index; null where there never was an image
  uint64_t users = 0;                        // images of it, in slots or not, and claims
  bool layout_deleted = false;               // it goes with its last user
  std::weak_ptr<const Resident> initial;     // one image serves every Create
};

// The slots of a family in one memory, and whose they are.
struct Residency::Pool {
  struct ExtentImages {
    std::vector<Resident*> by_slot;  // null where the slot is free, or claimed
    uint32_t images = 0;
    uint32_t victims = 0;  // those that may leave
  };

  Pool(Family* its_family, Memory* its_memory)
      : family(its_family),
        memory(its_memory),
        slots(its_family->tenant, its_family->state_bytes, its_memory->device->chunk_bytes()) {}

  Family* const family;
  Memory* const memory;
  SlotPool slots;
  Victims victims;
  absl::flat_hash_map<SlotExtent*, ExtentImages> extents;  // those with at least one image
  uint32_t going_down = 0;                                 // images of it that the spiller copies to the warm memory
  size_t fewest_empty = 0;                                 // empty extents, since the last trim
};

// An image's slot in one memory.
struct Residency::Copy {
  Memory& memory() const { return *pool->memory; }
  bool is_used() const { return pins > 0 || holds > 0; }

  Pool* pool = nullptr;
  Slot slot;
  int pins = 0;
  int holds = 0;         // by those who copy or hash it
  bool verified = true;  // not since it came down from a device
  bool damaged = false;  // its bytes changed: it goes when nobody uses it
  bool listed = false;   // among those that may leave
};

// All but `info` and what is atomic is guarded by Residency::mu_ (while a copy is held or pinned, its slot
// and the attachment stand still and may be read without it). An image has a place, or is lost.
class Residency::Resident final : public Image, public std::enable_shared_from_this<Residency::Resident> {
 public:
  Resident(Residency* residency, Family* its_family, ImageInfo info)
      : Image(std::move(info)), family(its_family), residency_(residency) {}
  ~Resident() override { residency_->Forget(this); }

  // What may change of an image is its places, which are no part of what it is: hence the cast.
  static Resident* Of(const Image& image) { return const_cast<Resident*>(static_cast<const Resident*>(&image)); }

  Family* const family;
  std::atomic<uint32_t> places{0};  // bits of memories with a copy that is not damaged, whether they failed or not
  std::atomic<bool> cold{false};    // it is whole in the cold store; never false again
  std::atomic<uint32_t> coming{0};  // the bit of the memory that a copy is made in
  std::atomic<bool> persisting{false};
  // What became of a copy that was lost, and where; read when there is no place left.
  std::atomic<Loss> why_lost{Loss::kNone};
  std::atomic<const Memory*> lost_with{nullptr};

  absl::InlinedVector<std::unique_ptr<Copy>, 1> copies;
  std::string attachment;           // while there is a copy
  Memory* dirty_in = nullptr;       // it counts in dirty_bytes there
  bool maybe_on_disk = false;       // a put was begun: the cold store has something to forget
  bool disowned = false;            // its bytes are another's business: they stay when it goes
  bool was_head = false;            // not yet a head is not yet behind one
  uint64_t used_at = 0;             // a count of uses, not a time
  std::optional<VictimKey> listed;  // the key of those of its copies that are

 private:
  void HeadsChanged() const override { residency_->HeadsChanged(Of(*this)); }

  Residency* const residency_;
};

// Room for one image that is none yet, or for one more copy: a slot of `pool`, and a share of the attachments' budget.
// The latter is counted first: whoever has a slot waits for nothing any more. Guarded by Residency::mu_, but for
// reading `pool` and `slot` by the thread that has the claim. REQUIRES: destroyed without the lock, or empty.
struct Residency::Claim {
  explicit Claim(Residency* its_residency) : residency(its_residency) {}
  ~Claim() {
    if (pool == nullptr) return;
    MutexLock lock(&residency->mu_);
    residency->Abandon(this);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  Residency* const residency;
  Pool* pool = nullptr;  // null: no room is claimed, or it is an image's now
  Slot slot;
  bool has_attachment_room = false;
  uint64_t attachment_bytes = 0;
  // Filled by a client, in its own time: nobody may wait for it.
  bool patient = false;
};

// An image on its way into one more memory: its source is held, room is claimed, its copy is under way. Guarded by
// Residency::mu_, but while BeginMove and EndMoves are without it: then it is their thread's. REQUIRES: the image
// lives; what was begun is ended, by the same thread.
struct Residency::Move {
  Move(Residency* residency, Resident* its_image, Memory* its_target, size_t its_index = 0)
      : image(its_image), target(its_target), index(its_index), claim(residency) {}

  Resident* const image;
  Memory* const target;
  const size_t index;                   // the caller's
  std::shared_ptr<Resident> reference;  // null: the caller has one
  Pool* from = nullptr;                 // of one that the spiller moves
  Copy* source = nullptr;               // null: it comes from the cold store
  Claim claim;
  std::string attachment;              // of a cold image
  std::unique_ptr<Transfer> transfer;  // null: it is there
  absl::Status status;                 // why it did not come
  bool source_is_gone = false;         // which may be why: another one may do
};

// What one thread has under way, in its order: so many that the link is busy while the oldest are compared and
// published, and not more, so that others' copies are not long behind them. While there are any the thread waits for
// nothing but them, and staging.
class Residency::Moves {
 public:
  bool empty() const { return moves_.empty(); }
  size_t size() const { return moves_.size(); }
  bool full(uint64_t next_bytes) const;  // with one more of this size
  void Add(std::unique_ptr<Move> move);
  // Those that are ended together: one wake-up and one launch of the hashes for a group. REQUIRES: not empty.
  std::vector<std::unique_ptr<Move>> TakeOldest();

 private:
  std::deque<std::unique_ptr<Move>> moves_;
  uint64_t bytes_ = 0;
};

// A state that is compared with its image's checksum.
struct Residency::Compared {
  const Memory* memory;
  const char* state;
  const Resident* image;
  absl::Status status{};  // DATA_LOSS: it is another one; or the device's
};

// Aborts where Residency contradicts itself.
inline void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "Residency: %s\n", what);
  std::abort();
}

inline absl::Status Damaged(ImageId id) {
  return Error(absl::StatusCode::kDataLoss, "CORRUPT", "the image's bytes changed in memory").Meta("image", id);
}

inline SlotPlace PlaceOf(const Slot& slot) {
  const std::shared_ptr<Extent>& extent = slot.extent->shared();
  return {extent, static_cast<uint64_t>(slot.data - extent->data())};
}

// A state that comes chunk by chunk into its slot.
class Residency::Writer final : public ImageWriter {
 public:
  Writer(Residency* residency, LayoutRef layout) : layout_(std::move(layout)), claim_(residency) {}

  uint64_t received_bytes() const override { return received_; }
  absl::Status Append(absl::Span<const absl::string_view> pieces, Checksum expected) override;
  bool append_waits() const override { return !claim_.pool->memory->in_reach; }
  void Restart() override {
    received_ = 0;
    leaves_.clear();
  }
  char* room() override { return claim_.slot.data; }
  SlotPlace place() const override { return PlaceOf(claim_.slot); }
  ImageRef FinishFilled(Checksum checksum, absl::string_view attachment) override;
  absl::Status AddAttachmentRoom(const Op& op, uint64_t bytes) override;
  absl::StatusOr<ImageRef> Finish(std::optional<Checksum> expected, absl::string_view attachment) override;

 private:
  friend class Residency;
  const LayoutRef layout_;
  Claim claim_;
  uint64_t received_ = 0;
  std::vector<LeafHash> leaves_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_RESIDENT_H_
