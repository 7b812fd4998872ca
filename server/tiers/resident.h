// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Resident: an image as Residency keeps it: which slot it has, whether it is on disk, who uses it now. And what goes
// with it: pools and claims. For residency*.cc alone.
#ifndef STATEPOOL_SERVER_TIERS_RESIDENT_H_
#define STATEPOOL_SERVER_TIERS_RESIDENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "server/core/image.h"
#include "server/memory/slot_pool.h"
#include "server/tiers/residency.h"

namespace statepool {

// The slots of one tenant and layout, and which of the images in them may leave.
struct Residency::Pool {
  struct ExtentVictims {
    std::vector<Resident*> by_slot;  // null where the slot is free or its image may not leave
    uint32_t count = 0;
  };

  Pool(TenantId tenant, const Layout& layout, uint64_t chunk_bytes)
      : slots(tenant, layout.state_bytes(), chunk_bytes) {}

  SlotPool slots;
  uint64_t users = 0;           // images of it, hot or not, and claims
  bool layout_deleted = false;  // it goes with its last user
  absl::btree_set<VictimKey> victims;
  absl::flat_hash_map<SlotExtent*, ExtentVictims> extents;  // those with at least one victim
  std::weak_ptr<const Resident> initial;                    // one image serves every Create
  size_t fewest_empty = 0;                                  // empty extents, since the last trim
};

// All but `info`, `hot`, `cold` and `damaged` is guarded by Residency::mu_ (while `persisting` or pinned, slot and
// attachment stand still and may be read without it). An image is hot, or cold, or both, or damaged.
class Residency::Resident final : public Image, public std::enable_shared_from_this<Residency::Resident> {
 public:
  Resident(Residency* residency, Pool* its_pool, ImageInfo info)
      : Image(std::move(info)), pool(its_pool), residency_(residency) {}
  ~Resident() override { residency_->Forget(this); }

  // What may change of an image is its place, which is no part of what it is: hence the cast.
  static Resident* Of(const Image& image) { return const_cast<Resident*>(static_cast<const Resident*>(&image)); }

  Pool* const pool;
  std::atomic<bool> hot{false};   // it has a slot
  std::atomic<bool> cold{false};  // it is whole in the cold store; never false again

  Slot slot;
  std::string attachment;  // while hot
  int pins = 0;
  bool persisting = false;
  bool promoting = false;
  std::atomic<bool> damaged{
      false};  // its bytes changed in memory: never to be read, spilled or persisted. It has no slot then
  bool maybe_on_disk = false;  // a put was begun: the cold store has something to forget
  bool disowned = false;       // its bytes are another's business: they stay when it goes
  bool was_head = false;       // not yet a head is not yet behind one
  uint64_t used_at = 0;        // a count of uses, not a time
  std::optional<VictimKey> listed;

 private:
  void HeadsChanged() const override { residency_->HeadsChanged(Of(*this)); }

  Residency* const residency_;
};

// Room for one image that is none yet: a slot of `pool`, and a share of the attachments' budget. The latter is counted
// first: whoever has a slot waits for nothing any more. Guarded by Residency::mu_, but for reading `pool` and `slot` by
// the thread that has the claim. REQUIRES: destroyed without the lock.
struct Residency::Claim {
  explicit Claim(Residency* its_residency) : residency(its_residency) {}
  ~Claim() {
    if (pool != nullptr) residency->Abandon(this);
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
  bool append_waits() const override { return !claim_.residency->device_->host_accessible(); }
  void Restart() override {
    received_ = 0;
    leaves_.clear();
  }
  char* room() override { return claim_.slot.data; }
  SlotPlace place() const override { return PlaceOf(claim_.slot); }
  ImageRef FinishFilled(Checksum checksum, absl::string_view attachment) override;
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
