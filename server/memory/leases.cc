// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/leases.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/memory/token.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

absl::Status TooMany(absl::string_view reason, absl::string_view message, uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, reason, message)
      .Meta("limit", limit)
      .RetryAfter(absl::Milliseconds(100));
}

}  // namespace

struct Leases::Lease {
  enum class State { kWaiting, kLeased, kEnded };
  struct Mapped {
    std::shared_ptr<Extent> extent;
    uint64_t slots = 0;       // of it that are pinned or granted
    bool granted = false;     // of them any was granted: the extent is the lease's own
    bool handed_out = false;  // its descriptors were sent
    bool told = false;        // that it should be dropped
  };
  struct Held {
    Pin pin;
    Place place;
  };

  std::string id, token;
  TenantId tenant = kDefaultTenant;
  OwnerId owner = 0;
  State state = State::kWaiting;
  MonoTime token_expires = 0;
  bool process_gone = false;
  uint64_t last_id = 0;  // of a pin or a grant
  absl::flat_hash_map<uint64_t, Held> pins;
  absl::flat_hash_map<uint64_t, std::unique_ptr<ImageWriter>> grants;
  absl::flat_hash_map<uint64_t, Mapped> extents;

  std::unique_ptr<ImageWriter> Take(absl::flat_hash_map<uint64_t, std::unique_ptr<ImageWriter>>::iterator grant) {
    std::unique_ptr<ImageWriter> writer = std::move(grant->second);
    --extents.at(writer->place().extent->id()).slots;
    grants.erase(grant);
    return writer;
  }
  LeasedSlot Note(const SlotPlace& place, bool granted) {
    Mapped& mapped = extents[place.extent->id()];
    if (mapped.extent == nullptr) mapped.extent = place.extent;
    mapped.granted |= granted;
    ++mapped.slots;
    return {++last_id, place.extent->id(), place.offset};
  }
};

struct Leases::Trash {
  std::vector<Pin> pins;
  std::vector<std::unique_ptr<ImageWriter>> grants;
  std::vector<std::shared_ptr<Extent>> extents;
  std::vector<OwnerId> owners, gone;  // that ended, and whose processes are gone
};

Leases::Leases(LeaseOptions options, statepool::Store* store, LeaseMemory memory, const Clock* clock)
    : options_(options), store_(store), memory_(std::move(memory)), clock_(clock) {}

Leases::~Leases() {
  Trash trash;
  {
    MutexLock lock(&mu_);
    std::vector<std::string> ids;
    for (const auto& [id, lease] : leases_) ids.push_back(id);
    for (const std::string& id : ids) {
      Lease* lease = leases_.at(id).get();
      lease->process_gone = true;
      EndLocked(lease, &trash);
      EraseIfGone(id, &trash);
    }
  }
  Empty(&trash);
}

void Leases::Empty(Trash* trash) const {
  for (const OwnerId owner : trash->owners) memory_.end_owner(owner, /*gone=*/false);
  trash->pins.clear();
  trash->grants.clear();
  for (const OwnerId owner : trash->gone) memory_.end_owner(owner, /*gone=*/true);
  if (trash->extents.empty()) return;
  trash->extents.clear();
  memory_.freed();
}

// ----
// opening and ending

absl::StatusOr<Leases::Opened> Leases::Open(const Op& op) {
  auto lease = std::make_unique<Lease>();
  lease->id = RandomToken();
  lease->token = RandomToken();
  lease->tenant = op.tenant;
  lease->token_expires = After(clock_->Now(), options_.token_timeout);
  Opened opened{lease->id, lease->token};
  MutexLock lock(&mu_);
  if (leases_.size() >= options_.max_leases)
    return TooMany("TOO_MANY_LEASES", "there are too many direct leases already", options_.max_leases);
  lease->owner = ++last_owner_;
  leases_.emplace(opened.lease, std::move(lease));
  return opened;
}

absl::StatusOr<Leases::Lease*> Leases::Find(const Op& op, absl::string_view id) const {
  if (id.empty()) return Invalid("MISSING_FIELD", "lease", "name the direct lease");
  const auto it = leases_.find(id);
  if (it == leases_.end() || it->second->tenant != op.tenant || it->second->state == Lease::State::kEnded) {
    return Error(absl::StatusCode::kNotFound, "LEASE_UNKNOWN",
                 absl::StrCat("there is no direct lease '", id.substr(0, 64),
                              "': its connection ended, or the daemon was started anew; open another"))
        .Field("lease")
        .Meta("incarnation", store_->options().incarnation);
  }
  if (it->second->state == Lease::State::kWaiting) {
    return Error(absl::StatusCode::kFailedPrecondition, "LEASE_NOT_CONNECTED",
                 "connect to the lease's socket with its token first")
        .Field("lease");
  }
  return it->second.get();
}

absl::Status Leases::Check(const Op& op, absl::string_view lease) const {
  MutexLock lock(&mu_);
  return Find(op, lease).status();
}

absl::StatusOr<std::string> Leases::Connect(absl::string_view token) {
  MutexLock lock(&mu_);
  for (const auto& [id, lease] : leases_) {
    if (lease->state != Lease::State::kWaiting || lease->token != token) continue;
    if (clock_->Now() >= lease->token_expires) break;
    lease->state = Lease::State::kLeased;
    lease->token.clear();
    return id;
  }
  return Error(absl::StatusCode::kUnauthenticated, "TOKEN_INVALID",
               "nothing waits for this token: it is unknown, was used, or came too late; ask for another");
}

void Leases::EndLocked(Lease* lease, Trash* trash) {
  if (lease->state == Lease::State::kEnded) return;
  lease->state = Lease::State::kEnded;
  while (!lease->pins.empty()) UnpinLocked(lease, lease->pins.begin()->first, trash);
  while (!lease->grants.empty()) trash->grants.push_back(lease->Take(lease->grants.begin()));
  trash->owners.push_back(lease->owner);
}

// Lets go of what cannot be mapped, and of the lease if there is nothing else.
void Leases::EraseIfGone(absl::string_view id, Trash* trash) {
  const auto it = leases_.find(id);
  if (it == leases_.end() || it->second->state != Lease::State::kEnded) return;
  Lease* const lease = it->second.get();
  absl::erase_if(lease->extents, [&](auto& entry) {
    if (entry.second.handed_out && !lease->process_gone) return false;
    trash->extents.push_back(std::move(entry.second.extent));
    return true;
  });
  if (!lease->extents.empty()) return;
  trash->gone.push_back(lease->owner);
  leases_.erase(it);
}

void Leases::LeaseEnded(absl::string_view id) {
  Trash trash;
  {
    MutexLock lock(&mu_);
    const auto it = leases_.find(id);
    if (it != leases_.end()) EndLocked(it->second.get(), &trash);
    EraseIfGone(id, &trash);
  }
  Empty(&trash);
}

void Leases::ProcessGone(absl::string_view id) {
  Trash trash;
  {
    MutexLock lock(&mu_);
    const auto it = leases_.find(id);
    if (it == leases_.end()) return;
    it->second->process_gone = true;
    EndLocked(it->second.get(), &trash);
    EraseIfGone(id, &trash);
  }
  Empty(&trash);
}

bool Leases::IsGone(absl::string_view id) const {
  MutexLock lock(&mu_);
  return !leases_.contains(id);
}

// ----
// pins

absl::StatusOr<LeasedSlot> Leases::Hold(const Op& op, absl::string_view id, Pin pin) {
  const SlotPlace place = pin->place();
  const uint64_t bytes = pin->size();
  MutexLock lock(&mu_);
  absl::StatusOr<Lease*> found = Find(op, id);
  RETURN_IF_ERROR(found.status());
  Lease* const lease = *found;
  if (lease->pins.size() >= options_.max_pins)
    return TooMany("TOO_MANY_PINS", "this lease has too many slots pinned; let go of some", options_.max_pins);
  PinnedSlot& slot = pinned_[{place.extent->id(), place.offset}];
  if (slot.pins == 0 && bytes > options_.max_pinned_bytes - std::min(pinned_bytes_, options_.max_pinned_bytes)) {
    pinned_.erase({place.extent->id(), place.offset});
    return TooMany("TOO_MUCH_PINNED", "direct leases have too many bytes pinned; let go of some",
                   options_.max_pinned_bytes);
  }
  if (slot.pins == 0) {
    slot.bytes = bytes;
    pinned_bytes_ += bytes;
  }
  ++slot.pins;
  const LeasedSlot leased = lease->Note(place, /*granted=*/false);
  lease->pins.emplace(leased.id, Lease::Held{std::move(pin), {leased.extent, leased.offset}});
  ++pins_total_;
  return leased;
}

void Leases::UnpinLocked(Lease* lease, uint64_t id, Trash* trash) {
  const auto it = lease->pins.find(id);
  if (it == lease->pins.end()) {
    const auto grant = lease->grants.find(id);
    if (grant == lease->grants.end()) return;
    trash->grants.push_back(lease->Take(grant));
    return;
  }
  const auto slot = pinned_.find(it->second.place);
  if (--slot->second.pins == 0) {
    pinned_bytes_ -= slot->second.bytes;
    pinned_.erase(slot);
  }
  --lease->extents.at(it->second.place.first).slots;
  trash->pins.push_back(std::move(it->second.pin));
  lease->pins.erase(it);
}

void Leases::Unpin(absl::string_view lease, absl::Span<const uint64_t> ids) {
  Trash trash;
  {
    MutexLock lock(&mu_);
    const auto it = leases_.find(lease);
    if (it == leases_.end()) return;
    for (const uint64_t id : ids) UnpinLocked(it->second.get(), id, &trash);
  }
  Empty(&trash);
}

// ----
// grants

absl::StatusOr<OwnerId> Leases::OwnerOf(const Op& op, absl::string_view id) const {
  MutexLock lock(&mu_);
  const absl::StatusOr<Lease*> lease = Find(op, id);
  RETURN_IF_ERROR(lease.status());
  return (*lease)->owner;
}

absl::StatusOr<LeasedSlot> Leases::GrantOne(const Op& op, absl::string_view id, OwnerId owner, const LayoutRef& layout,
                                            bool at_once) {
  absl::StatusOr<std::unique_ptr<ImageWriter>> writer = memory_.grant(op, layout, owner, at_once);
  RETURN_IF_ERROR(writer.status());
  MutexLock lock(&mu_);
  absl::StatusOr<Lease*> lease = Find(op, id);
  if (!lease.ok()) {  // it ended meanwhile, and may have made an extent its own after that
    const bool gone = !leases_.contains(id);
    MutexUnlock unlock(&mu_);
    writer->reset();
    memory_.end_owner(owner, gone);
    return lease.status();
  }
  const LeasedSlot slot = (*lease)->Note((*writer)->place(), /*granted=*/true);
  (*lease)->grants.emplace(slot.id, *std::move(writer));
  ++granted_total_;
  return slot;
}

absl::StatusOr<std::vector<LeasedSlot>> Leases::Grant(const Op& op, absl::string_view id, absl::string_view layout,
                                                      uint32_t count) {
  const absl::StatusOr<OwnerId> owner = OwnerOf(op, id);
  RETURN_IF_ERROR(owner.status());
  if (layout.empty()) return Invalid("MISSING_FIELD", "layout", "name the layout");
  if (count == 0 || count > options_.max_grants)
    return Invalid("INVALID_OPTION", "count", absl::StrCat("1..", options_.max_grants, " slots are granted in a call"));
  absl::StatusOr<LayoutRef> found = store_->layouts().Find(op.tenant, layout);
  RETURN_IF_ERROR(found.status());
  std::vector<LeasedSlot> slots;
  while (slots.size() < count) {
    const absl::StatusOr<LeasedSlot> slot = GrantOne(op, id, *owner, *found, /*at_once=*/false);
    if (!slot.ok() && !absl::IsNotFound(slot.status()) && !slots.empty()) break;  // the lease is there
    RETURN_IF_ERROR(slot.status());
    slots.push_back(*slot);
  }
  return slots;
}

std::vector<LeasedSlot> Leases::GrantStock(const Op& op, absl::string_view id, const LayoutRef& layout,
                                           uint32_t count) {
  std::vector<LeasedSlot> slots;
  const absl::StatusOr<OwnerId> owner = OwnerOf(op, id);
  while (owner.ok() && slots.size() < count) {
    const absl::StatusOr<LeasedSlot> slot = GrantOne(op, id, *owner, layout, /*at_once=*/true);
    if (!slot.ok()) break;
    slots.push_back(*slot);
  }
  return slots;
}

absl::StatusOr<ImageRef> Leases::Use(const Op& op, absl::string_view id, uint64_t grant, Checksum checksum) {
  std::unique_ptr<ImageWriter> writer;
  {
    MutexLock lock(&mu_);
    absl::StatusOr<Lease*> lease = Find(op, id);
    RETURN_IF_ERROR(lease.status());
    const auto it = (*lease)->grants.find(grant);
    if (it != (*lease)->grants.end()) {
      writer = (*lease)->Take(it);
      ++filled_total_;
    }
  }
  const auto unknown = [](absl::string_view message) -> absl::Status {
    return Error(absl::StatusCode::kFailedPrecondition, "GRANT_UNKNOWN", message).Field("grant");
  };
  if (writer == nullptr) return unknown("this slot was not granted to the lease, or was used already; ask for another");
  const std::shared_ptr<Extent> extent = writer->place().extent;
  if (extent->can_be_sealed() && !extent->Seal())
    return unknown("the slot's extent was tampered with: it can't be sealed");
  return writer->FinishFilled(checksum, /*attachment=*/"");
}

// ----
// extents

absl::StatusOr<Leases::Handout> Leases::HandOut(absl::string_view id, uint64_t extent) {
  std::shared_ptr<Extent> memory;
  Handout handout;
  bool was_handed_out;
  {
    MutexLock lock(&mu_);
    const auto lease = leases_.find(id);
    if (lease == leases_.end() || lease->second->state != Lease::State::kLeased ||
        !lease->second->extents.contains(extent))
      return Error(absl::StatusCode::kNotFound, "EXTENT_UNKNOWN", "no slot of this lease lies in this extent");
    Lease::Mapped& mapped = lease->second->extents.at(extent);
    memory = mapped.extent;
    was_handed_out = std::exchange(mapped.handed_out, true);
    handout.writable = mapped.granted && !memory->sealed();
  }
  // A driver may take its time: not under the lock.
  absl::StatusOr<std::vector<int>> fds = memory->ExportChunks();
  if (!fds.ok()) {
    memory = nullptr;
    if (!was_handed_out) Dropped(id, {extent});
    return fds.status();
  }
  handout.bytes = memory->bytes();
  handout.device = memory->device();
  handout.fds = *std::move(fds);
  return handout;
}

void Leases::DropLocked(Lease* lease, uint64_t extent, Trash* trash) {
  const auto it = lease->extents.find(extent);
  if (it == lease->extents.end()) return;
  // While the lease has slots of it, it will want to map it again.
  it->second.handed_out = false;
  it->second.told = false;
  if (it->second.slots > 0) return;
  trash->extents.push_back(std::move(it->second.extent));
  lease->extents.erase(it);
}

void Leases::Dropped(absl::string_view id, absl::Span<const uint64_t> extents) {
  Trash trash;
  {
    MutexLock lock(&mu_);
    const auto it = leases_.find(id);
    if (it == leases_.end()) return;
    for (const uint64_t extent : extents) DropLocked(it->second.get(), extent, &trash);
    EraseIfGone(id, &trash);
  }
  Empty(&trash);
}

std::vector<Leases::Wish> Leases::Tend() {
  std::vector<Wish> wishes;
  const uint64_t refusals = memory_.refusals();
  Trash trash;
  {
    MutexLock lock(&mu_);
    const MonoTime now = clock_->Now();
    const bool short_of_room = std::exchange(refusals_told_, refusals) != refusals;
    std::vector<std::string> late;
    for (auto& [id, lease] : leases_) {
      if (lease->state == Lease::State::kWaiting && now >= lease->token_expires) late.push_back(id);
      if (lease->state != Lease::State::kLeased) continue;
      Wish wish{id, {}, short_of_room && !lease->grants.empty()};
      std::vector<uint64_t> unmapped;
      for (auto& [extent, mapped] : lease->extents) {
        if (!mapped.extent->retired()) continue;
        if (!mapped.handed_out) unmapped.push_back(extent);
        if (mapped.handed_out && wish.drop.size() < kToldMax && !std::exchange(mapped.told, true))
          wish.drop.push_back(extent);
      }
      for (const uint64_t extent : unmapped) DropLocked(lease.get(), extent, &trash);
      if (!wish.drop.empty() || wish.short_of_room) wishes.push_back(std::move(wish));
    }
    for (const std::string& id : late) {
      spdlog::info("nobody connected to a direct lease in time: it is closed");
      EndLocked(leases_.at(id).get(), &trash);
      EraseIfGone(id, &trash);
    }
  }
  Empty(&trash);
  return wishes;
}

void Leases::NotTold(absl::string_view id, absl::Span<const uint64_t> extents) {
  MutexLock lock(&mu_);
  const auto lease = leases_.find(id);
  if (lease == leases_.end()) return;
  for (const uint64_t extent : extents) {
    const auto mapped = lease->second->extents.find(extent);
    if (mapped != lease->second->extents.end()) mapped->second.told = false;
  }
}

// ----
// looking

LeaseStats Leases::stats() const {
  MutexLock lock(&mu_);
  LeaseStats stats;
  stats.pinned_bytes = pinned_bytes_;
  stats.pins_total = pins_total_;
  stats.granted_total = granted_total_;
  stats.filled_total = filled_total_;
  for (const auto& [id, lease] : leases_) {
    stats.leases += lease->state == Lease::State::kLeased;
    stats.pins += lease->pins.size();
    stats.grants += lease->grants.size();
    for (const auto& [extent, mapped] : lease->extents) {
      if (mapped.handed_out) stats.mapped_bytes += mapped.extent->bytes();
      if (mapped.handed_out && mapped.extent->retired()) stats.retired_bytes += mapped.extent->bytes();
    }
  }
  return stats;
}

}  // namespace statepool
