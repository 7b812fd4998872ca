// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Images coming, being read, persisted and going. How they go between memories: residency_places.cc. How room is made
// for them: residency_eviction.cc.
#include "server/tiers/residency.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/tiers/resident.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr size_t kReclaimBatch = 256;
constexpr size_t kSweepBatch = 1024;
constexpr std::chrono::seconds kReclaimRetry{1};
constexpr std::chrono::milliseconds kPoll{10};  // how late a cancelled or expired call may notice while it waits
constexpr int kMakeRoomAttempts = 100;          // others may take what came free
constexpr uint64_t kMinAttachmentBudget = 1 << 20;

absl::Status WrongLength(absl::string_view what, uint64_t expected, uint64_t actual) {
  return Error(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH",
               absl::StrCat(what, " of this layout has ", expected, " bytes, not ", actual))
      .Field("data")
      .Meta("expected", expected)
      .Meta("actual", actual);
}

// Pieces, one after the other, in parts of any size.
class PieceReader {
 public:
  explicit PieceReader(absl::Span<const absl::string_view> pieces) : pieces_(pieces) {}

  // REQUIRES: as many bytes are left.
  void Append(uint64_t bytes, CopyHasher* copy) {
    while (bytes > 0) {
      const absl::string_view part = pieces_[next_].substr(used_, bytes);
      copy->Append(part);
      used_ += part.size();
      bytes -= part.size();
      if (used_ < pieces_[next_].size()) continue;
      ++next_;
      used_ = 0;
    }
  }

 private:
  const absl::Span<const absl::string_view> pieces_;
  size_t next_ = 0;
  size_t used_ = 0;  // of that piece
};

void AppendTo(std::vector<LeafHash>* leaves, const std::vector<LeafHash>& more) {
  leaves->insert(leaves->end(), more.begin(), more.end());
}

}  // namespace

// A pinned copy of an image: it stays in its slot, and lives, for as long as this does.
class Residency::ResidentPin final : public PinnedImage {
 public:
  ResidentPin(Residency* residency, ImageRef image, Copy* copy)
      : residency_(residency), image_(std::move(image)), copy_(copy) {}
  ~ResidentPin() override { residency_->Unpin(Resident::Of(*image_), copy_); }

  uint64_t size() const override { return image_->bytes(); }
  const char* data() const override { return copy_->slot.data; }
  bool in_host_memory() const override { return memory().in_reach; }
  absl::Status CopyOut(uint64_t offset, uint64_t bytes, char* to) const override {
    const absl::Status status = CopyOutOfPlace(offset, bytes, to);
    if (!absl::IsUnavailable(status) || memory().device->health().ok()) return status;
    // The device failed: from another place, if there is one.
    const absl::StatusOr<Pin> other = residency_->Read(Op(), image_, /*place=*/nullptr);
    return other.ok() ? (*other)->CopyOut(offset, bytes, to) : other.status();
  }
  absl::string_view attachment() const override { return Resident::Of(*image_)->attachment; }
  SlotPlace place() const override { return PlaceOf(copy_->slot); }

  const Memory& memory() const { return copy_->memory(); }

 private:
  absl::Status CopyOutOfPlace(uint64_t offset, uint64_t bytes, char* to) const {
    absl::StatusOr<StateReader> reader = residency_->ReaderOf(Op(), memory(), data() + offset, bytes);
    if (!reader.ok()) return reader.status();
    while (reader->left() > 0) {
      const absl::StatusOr<absl::string_view> piece = reader->Next();
      if (!piece.ok()) return piece.status();
      to = std::copy(piece->begin(), piece->end(), to);
    }
    return absl::OkStatus();
  }

  Residency* const residency_;
  const ImageRef image_;
  Copy* const copy_;
};

Residency::Residency(ResidencyOptions options, const ResidencyMemories& memories, ColdStore* cold, const Clock* clock)
    : options_{.attachment_budget_bytes = std::max(options.attachment_budget_bytes, kMinAttachmentBudget),
               .keep_empty = options.keep_empty,
               .owned_bytes_max = options.owned_bytes_max},
      warm_is_spare_(memories.warm_is_spare),
      cold_(cold),
      clock_(clock),
      ids_(cold->epoch()) {
  Require(!memories.hot.empty() && memories.hot.size() <= ResidencyMemories::kMaxHot, "1..16 hot memories");
  for (const ResidencyMemory& memory : memories.hot)
    memories_.push_back(std::make_unique<Memory>(memory, Tier::kHot, memories_.size()));
  if (memories.warm.has_value()) {
    memories_.push_back(std::make_unique<Memory>(*memories.warm, Tier::kWarm, memories_.size()));
    warm_ = memories_.back().get();
    Require(warm_->in_reach, "a warm memory is the host's");
  }
  for (const auto& memory : memories_) {
    Require(memory->in_reach || memory->staging != nullptr, "nothing to reach a device's memory through");
    healthy_ |= memory->bit;
    if (memory->in_reach) in_reach_ |= memory->bit;
  }
  for (const auto& memory : memories_) {
    for (const auto& other : memories_) {
      if (other != memory && other->tier == Tier::kHot && memory->device->Reaches(*other->device))
        memory->reached |= other->bit;
    }
  }
  reclaimer_ = std::thread(&Residency::ReclaimLoop, this);
  spiller_ = std::thread(&Residency::SpillLoop, this);
}

Residency::~Residency() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    wake_.SignalAll();
  }
  reclaimer_.join();
  StopSpilling();
  absl::flat_hash_map<ImageId, std::shared_ptr<Resident>> adopted;
  {
    MutexLock lock(&mu_);
    adopted.swap(adopted_);
  }
  adopted.clear();
  MutexLock lock(&mu_);
  Require(images_ == 0 && claims_ == 0, "destroyed while images live");
}

void Residency::SetMakeRoom(std::function<bool()> make_room) {
  MutexLock lock(&mu_);
  make_room_ = std::move(make_room);
}

Residency::Family* Residency::FamilyFor(TenantId tenant, const LayoutRef& layout) {
  std::unique_ptr<Family>& family = families_[{tenant, layout->fingerprint()}];
  if (family == nullptr) family = std::make_unique<Family>(tenant, *layout, memories_.size());
  return family.get();
}

Residency::Pool* Residency::PoolFor(Family* family, Memory* memory) {
  std::unique_ptr<Pool>& pool = family->pools[memory->index];
  if (pool == nullptr) {
    pool = std::make_unique<Pool>(family, memory);
    memory->pools.push_back(pool.get());
  }
  return pool.get();
}

void Residency::Enter(Family* family) {
  if (family->users++ > 0 || !family->layout_deleted) return;
  family->layout_deleted = false;  // if the layout was not registered again it will be said once more
  --deleted_families_;
}

void Residency::Leave(Family* family) {
  if (--family->users > 0 || !family->layout_deleted) return;
  ++deleted_families_;
  wake_.SignalAll();
}

void Residency::LayoutDeleted(TenantId tenant, const Layout& layout) {
  MutexLock lock(&mu_);
  const auto it = families_.find({tenant, layout.fingerprint()});
  if (it == families_.end() || it->second->layout_deleted) return;
  it->second->layout_deleted = true;
  if (it->second->users > 0) return;
  ++deleted_families_;
  wake_.SignalAll();
}

void Residency::Progress() {
  ++progress_;
  changed_.SignalAll();
}

void Residency::WaitForChange(const Op& op) {
  if (op.deadline == kNever && op.cancelled == nullptr) {
    changed_.Wait(&mu_);
    return;
  }
  const MonoTime left = op.deadline == kNever ? INT64_MAX : std::max<MonoTime>(op.deadline - clock_->Now(), 0);
  changed_.WaitFor(&mu_, std::min(std::chrono::nanoseconds(left), std::chrono::nanoseconds(kPoll)));
}

// ----
// writing

absl::StatusOr<ImageRef> Residency::Write(const Op& op, LayoutRef layout, const StateBytes& bytes) {
  if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
  if (!bytes.initial) {
    uint64_t length = 0;
    for (absl::string_view piece : bytes.pieces) length += piece.size();
    const uint64_t expected = bytes.base != nullptr ? BytesOf(bytes.ranges) : layout->state_bytes();
    if (length != expected) {
      return WrongLength(bytes.base != nullptr ? "the selected part of a state" : "a state", expected, length);
    }
  }
  const bool shareable = bytes.initial && bytes.attachment.empty() && !bytes.expected_checksum;
  Candidates candidates;
  {
    std::shared_ptr<const Resident> initial;  // outlives the lock
    MutexLock lock(&mu_);
    NoticeFailures();
    if (shareable) initial = FamilyFor(op.tenant, layout)->initial.lock();
    if (initial != nullptr && loss(*initial).ok()) return initial;
    // What is the base's needs not leave its device.
    const Memory* const base = bytes.base == nullptr ? nullptr : &static_cast<const ResidentPin*>(bytes.base)->memory();
    candidates =
        CandidatesForWrite(base == nullptr || base->failed || base->tier != Tier::kHot ? nullptr : base->device);
  }
  for (Memory* memory : candidates) {
    absl::StatusOr<ImageRef> image = WriteOn(op, layout, bytes, shareable, memory);
    const bool last = memory == candidates.back();
    if (image.ok() || last || !(absl::IsResourceExhausted(image.status()) || !memory->device->health().ok()))
      return image;
  }
  return absl::InternalError("there is always a candidate");
}

absl::StatusOr<ImageRef> Residency::WriteOn(const Op& op, const LayoutRef& layout, const StateBytes& bytes,
                                            bool shareable, Memory* memory) {
  Claim claim(this);
  Family* family;
  {
    MutexLock lock(&mu_);
    family = FamilyFor(op.tenant, layout);
    Enter(family);
    claim.pool = PoolFor(family, memory);
  }
  if (absl::Status status = Acquire(op, bytes.attachment.size(), &claim); !status.ok()) return status;
  ImageInfo info{.id = ids_.Next(), .tenant = op.tenant, .layout = layout};
  const absl::StatusOr<std::vector<LeafHash>> leaves =
      bytes.initial           ? FillInitial(op, *layout, *memory, claim.slot.data)
      : bytes.base != nullptr ? FillOverBase(op, bytes, *memory, claim.slot.data)
                              : Fill(op, bytes.pieces, layout->state_bytes(), *memory, claim.slot.data);
  if (!leaves.ok()) return leaves.status();
  info.checksum = HashRoot(*leaves);
  if (bytes.expected_checksum && *bytes.expected_checksum != info.checksum)
    return ChecksumMismatch(*bytes.expected_checksum, info.checksum);

  auto image = NewImage(&claim, std::move(info), bytes.attachment, !bytes.initial);
  if (!shareable) return image;
  std::shared_ptr<const Resident> first;  // outlives the lock
  MutexLock lock(&mu_);
  first = family->initial.lock();
  if (first != nullptr && loss(*first).ok()) return first;  // another Create was faster; ours goes
  family->initial = image;
  return image;
}

absl::StatusOr<StateReader> Residency::ReaderOf(const Op& op, const Memory& memory, const char* from,
                                                uint64_t bytes) const {
  if (memory.in_reach) return StateReader({from, bytes});
  absl::StatusOr<std::unique_ptr<StagingPool::Pair>> pair = memory.staging->Take(op);
  if (!pair.ok()) return pair.status();
  return StateReader(memory.device, *std::move(pair), from, bytes);
}

absl::StatusOr<StateFiller> Residency::FillerOf(const Op& op, const Memory& memory, char* to, uint64_t bytes) const {
  if (memory.in_reach) return StateFiller(to, bytes);
  absl::StatusOr<std::unique_ptr<StagingPool::Pair>> pair = memory.staging->Take(op);
  if (!pair.ok()) return pair.status();
  return StateFiller(memory.device, *std::move(pair), to, bytes);
}

absl::StatusOr<std::vector<LeafHash>> Residency::Fill(const Op& op, absl::Span<const absl::string_view> pieces,
                                                      uint64_t bytes, const Memory& memory, char* to) const {
  absl::StatusOr<StateFiller> filler = FillerOf(op, memory, to, bytes);
  if (!filler.ok()) return filler.status();
  std::vector<LeafHash> leaves;
  PieceReader reader(pieces);
  while (filler->left() > 0) {
    const absl::StatusOr<absl::Span<char>> room = filler->Room();
    if (!room.ok()) return room.status();
    CopyHasher copy(room->data(), room->size());
    reader.Append(room->size(), &copy);
    AppendTo(&leaves, copy.Finish());
    if (absl::Status status = filler->Filled(); !status.ok()) return status;
  }
  if (absl::Status status = filler->Finish(); !status.ok()) return status;
  return leaves;
}

absl::StatusOr<std::vector<LeafHash>> Residency::FillInitial(const Op& op, const Layout& layout, const Memory& memory,
                                                             char* to) const {
  absl::StatusOr<StateFiller> filler = FillerOf(op, memory, to, layout.state_bytes());
  if (!filler.ok()) return filler.status();
  std::vector<LeafHash> leaves;
  while (filler->left() > 0) {
    const uint64_t done = filler->bytes() - filler->left();
    const absl::StatusOr<absl::Span<char>> room = filler->Room();
    if (!room.ok()) return room.status();
    layout.FillInitial(done, room->data(), room->size());
    AppendTo(&leaves, HashLeaves({room->data(), room->size()}));
    if (absl::Status status = filler->Filled(); !status.ok()) return status;
  }
  if (absl::Status status = filler->Finish(); !status.ok()) return status;
  return leaves;
}

// The base, with the pieces in the place of its ranges. REQUIRES: both have the same length.
absl::StatusOr<std::vector<LeafHash>> Residency::FillOverBase(const Op& op, const StateBytes& bytes,
                                                              const Memory& memory, char* to) const {
  PieceReader reader(bytes.pieces);
  const uint64_t size = bytes.base->size();
  if (memory.in_reach && bytes.base->in_host_memory()) {
    const absl::string_view base = bytes.base->bytes();
    CopyHasher copy(to, size);
    for (const ByteRange& range : bytes.ranges) {
      copy.Append(base.substr(copy.copied(), range.offset - copy.copied()));
      reader.Append(range.bytes, &copy);
    }
    copy.Append(base.substr(copy.copied()));
    return copy.Finish();
  }
  const Memory& base = static_cast<const ResidentPin*>(bytes.base)->memory();
  absl::Status copied = CopyBetween(op, memory.staging, base.device, bytes.base->data(), memory.device, to, size);
  if (!copied.ok()) return copied;
  for (const ByteRange& range : bytes.ranges) {
    absl::StatusOr<StateFiller> filler = FillerOf(op, memory, to + range.offset, range.bytes);
    if (!filler.ok()) return filler.status();
    while (filler->left() > 0) {
      const absl::StatusOr<absl::Span<char>> room = filler->Room();
      if (!room.ok()) return room.status();
      CopyHasher copy(room->data(), room->size());
      reader.Append(room->size(), &copy);
      if (absl::Status status = filler->Filled(); !status.ok()) return status;
    }
    if (absl::Status status = filler->Finish(); !status.ok()) return status;
  }
  return LeavesOf(memory, to, size);
}

absl::StatusOr<std::vector<LeafHash>> Residency::LeavesOf(const Memory& memory, const char* state,
                                                          uint64_t bytes) const {
  std::vector<LeafHash> leaves(LeafCount(bytes));
  if (absl::Status status = memory.device->HashLeaves(state, bytes, absl::MakeSpan(leaves)); !status.ok())
    return status;
  return leaves;
}

std::shared_ptr<Residency::Resident> Residency::NewImage(Claim* claim, ImageInfo info, absl::string_view attachment,
                                                         bool from_client) {
  info.attachment_bytes = static_cast<uint32_t>(attachment.size());
  info.attachment_checksum = ChecksumOf(attachment);
  std::string own_attachment(attachment);
  auto image = std::make_shared<Resident>(this, claim->pool->family, std::move(info));
  MutexLock lock(&mu_);
  ++images_;
  Enter(image->family);
  if (from_client) {
    stats_.transferred_bytes[{Tier::kUnknown, claim->pool->memory->tier}] +=
        image->bytes() + image->info().attachment_bytes;
  }
  image->attachment = std::move(own_attachment);
  image->used_at = ++uses_;
  Install(image.get(), claim);
  Progress();
  return image;
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::BeginWrite(const Op& op, LayoutRef layout,
                                                                   uint64_t attachment_bytes, const Device* on) {
  return NewWriter(op, std::move(layout), attachment_bytes, /*owner=*/0, on, /*at_once=*/false);
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::BeginOwned(const Op& op, LayoutRef layout, OwnerId owner,
                                                                   const Device* on, bool at_once) {
  Require(owner != 0, "a slot is to be nobody's own");
  return NewWriter(op, std::move(layout), /*attachment_bytes=*/0, owner, on, at_once);
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::NewWriter(const Op& op, LayoutRef layout,
                                                                  uint64_t attachment_bytes, OwnerId owner,
                                                                  const Device* on, bool at_once) {
  if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
  Candidates candidates;
  {
    MutexLock lock(&mu_);
    NoticeFailures();
    candidates = CandidatesForWrite(on);
  }
  absl::Status status;
  for (Memory* memory : candidates) {
    auto writer = std::make_unique<Writer>(this, layout);
    {
      MutexLock lock(&mu_);
      Family* const family = FamilyFor(op.tenant, layout);
      Enter(family);
      writer->claim_.pool = PoolFor(family, memory);
    }
    status =
        owner == 0 ? Acquire(op, attachment_bytes, &writer->claim_) : AcquireOwned(op, owner, at_once, &writer->claim_);
    if (status.ok()) {
      MutexLock lock(&mu_);
      writer->claim_.patient = true;
      --memory->moving;
      changed_.SignalAll();  // to those who waited for it
      return writer;
    }
    if (!absl::IsResourceExhausted(status) && memory->device->health().ok()) break;
  }
  return status;
}

absl::Status Residency::Writer::Append(absl::Span<const absl::string_view> pieces, Checksum expected) {
  assert(received_ % kLeafBytes == 0);
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  assert(bytes <= layout_->state_bytes() - received_);
  const absl::StatusOr<std::vector<LeafHash>> leaves =
      claim_.residency->Fill(Op(), pieces, bytes, *claim_.pool->memory, claim_.slot.data + received_);
  if (!leaves.ok()) return leaves.status();
  if (const Checksum actual = HashRoot(*leaves); actual != expected) return ChecksumMismatch(expected, actual);
  AppendTo(&leaves_, *leaves);
  received_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<ImageRef> Residency::Writer::Finish(std::optional<Checksum> expected, absl::string_view attachment) {
  if (received_ != layout_->state_bytes()) return WrongLength("a state", layout_->state_bytes(), received_);
  assert(attachment.size() == claim_.attachment_bytes);
  Residency* const residency = claim_.residency;
  ImageInfo info{.id = residency->ids_.Next(), .tenant = claim_.pool->family->tenant, .layout = layout_};
  info.checksum = HashRoot(leaves_);
  if (expected && *expected != info.checksum) return ChecksumMismatch(*expected, info.checksum);
  received_ = 0;
  return residency->NewImage(&claim_, std::move(info), attachment, /*from_client=*/true);
}

absl::Status Residency::Writer::AddAttachmentRoom(const Op& op, uint64_t bytes) {
  return claim_.residency->AcquireAttachment(op, bytes, &claim_);
}

ImageRef Residency::Writer::FinishFilled(Checksum checksum, absl::string_view attachment) {
  assert(attachment.size() == claim_.attachment_bytes);
  ImageInfo info{.id = claim_.residency->ids_.Next(), .tenant = claim_.pool->family->tenant, .layout = layout_};
  info.checksum = checksum;
  return claim_.residency->NewImage(&claim_, std::move(info), attachment, /*from_client=*/false);
}

// A copy in the slot that was claimed. REQUIRES: the attachment is there, if this is the first.
void Residency::Install(Resident* image, Claim* claim) {
  Pool* const pool = std::exchange(claim->pool, nullptr);
  Memory* const memory = pool->memory;
  --claims_;
  --memory->claims;
  if (!claim->patient) --memory->moving;
  const uint64_t room = std::exchange(claim->attachment_bytes, 0);  // the image's from here on
  if (!image->copies.empty()) attachment_bytes_ -= room;            // which has it already
  Leave(pool->family);
  auto copy = std::make_unique<Copy>();
  copy->pool = pool;
  copy->slot = std::exchange(claim->slot, Slot{});
  Pool::ExtentImages& extent = pool->extents[copy->slot.extent];
  extent.by_slot.resize(copy->slot.extent->slots());
  extent.by_slot[copy->slot.index] = image;
  ++extent.images;
  ++memory->images;
  memory->image_bytes += image->bytes();
  image->copies.push_back(std::move(copy));
  if (memory->failed) {
    LoseCopy(image, image->copies.back().get(), &stats_.lost_images);
  } else {
    PlacesChanged(image);
  }
}

void Residency::Abandon(Claim* claim) {
  Pool* const pool = std::exchange(claim->pool, nullptr);
  attachment_bytes_ -= std::exchange(claim->attachment_bytes, 0);
  claim->has_attachment_room = false;
  if (claim->slot) {
    pool->slots.Free(std::exchange(claim->slot, Slot{}));
    --claims_;
    --pool->memory->claims;
    if (!claim->patient) --pool->memory->moving;
  }
  Leave(pool->family);
  Progress();
}

// ----
// reading

Pin Residency::PinLocked(const ImageRef& ref, Copy* copy) {
  Resident* image = Resident::Of(*ref);
  Unlist(image);
  image->used_at = ++uses_;
  if (copy->pins++ == 0) ++stats_.pinned_images;
  List(image);
  return std::make_unique<ResidentPin>(this, ref, copy);
}

void Residency::Unpin(Resident* image, Copy* copy) {
  MutexLock lock(&mu_);
  if (--copy->pins > 0) return;
  --stats_.pinned_images;
  if (!copy->is_used() && (copy->damaged || copy->memory().failed)) {
    DropCopy(image, copy);
  } else {
    PlacesChanged(image);
  }
  Progress();
}

Pin Residency::TryRead(const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  if ((image->places & in_reach_) == 0) return nullptr;
  MutexLock lock(&mu_);
  Copy* const copy = BestCopy(*image);
  return copy != nullptr && copy->memory().in_reach && copy->verified ? PinLocked(ref, copy) : nullptr;
}

absl::StatusOr<Pin> Residency::Read(const Op& op, const ImageRef& ref, PinPlace place) {
  const Device* const on = place.on;
  Resident* image = Resident::Of(*ref);
  MutexLock lock(&mu_);
  bool counted = false;
  for (;;) {
    NoticeFailures();
    if (absl::Status status = loss(*image); !status.ok()) return status;
    const Memory* const only = on == nullptr ? nullptr : Of(on);
    Require(on == nullptr || only != nullptr, "a state is wanted on a device that is no hot memory's");
    if (only != nullptr) {
      if (absl::Status status = Usable(*only); !status.ok()) return status;
    }
    Copy* const copy = only == nullptr ? BestCopy(*image) : CopyFor(*image, *only, place.or_reached);
    if (copy != nullptr && !copy->damaged && copy->verified) return PinLocked(ref, copy);
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    if (copy != nullptr && !copy->damaged) {
      if (absl::Status status = Verify(image, copy); !status.ok()) return status;
      continue;
    }
    // It is about to go, or one is about to be there, or on the disk.
    if (copy != nullptr || image->coming != 0 || !CanBeRead(*image)) {
      WaitForChange(op);
      continue;
    }
    if (!std::exchange(counted, true)) ++stats_.misses;
    absl::Status status;
    bool again = false, waits = true;
    for (Memory* memory : CandidatesForRead(on)) {
      const Copy* const there = CopyIn(*image, *memory);
      if (there != nullptr && there->damaged) continue;  // about to go, when nobody uses it
      again = image->coming != 0 || there != nullptr;    // since the lock was given back
      if (again) break;
      waits = false;
      status = Bring(op, image, memory);
      if (status.ok()) ++stats_.promotions;
      again = absl::IsAborted(status);
      if (!absl::IsResourceExhausted(status) && memory->device->health().ok()) break;
    }
    if (waits) {  // the lock was not given back
      WaitForChange(op);
      continue;
    }
    // Where a device failed another place may have it still.
    if (!again && !status.ok() && (on != nullptr || !absl::IsUnavailable(status) || (image->places & healthy_) == 0))
      return status;
  }
}

// ----
// persisting

absl::Status Residency::Persist(const Op& op, const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  if (image->cold) return absl::OkStatus();
  MutexLock lock(&mu_);
  return PersistAny(op, image);
}

// Whoever writes it. REQUIRES: the caller has a reference.
absl::Status Residency::PersistAny(const Op& op, Resident* image) {
  for (;;) {
    if (image->cold) return absl::OkStatus();
    NoticeFailures();
    if (absl::Status status = loss(*image); !status.ok()) return status;
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    if (image->persisting) {
      WaitForChange(op);
      continue;
    }
    const Copy* const copy = BestCopy(*image);
    if (copy == nullptr) {  // it comes from a device that failed meanwhile
      WaitForChange(op);
      continue;
    }
    const Memory& memory = copy->memory();
    absl::Status status = PersistLocked(op, image);
    NoticeFailures();
    // A copy that was damaged, or in a device that failed, may not be the only one.
    if (!absl::IsDataLoss(status) && !memory.failed) return status;
  }
}

// REQUIRES: a copy can be read; not cold, not persisting; the caller has a reference.
absl::Status Residency::PersistLocked(const Op& op, Resident* image) {
  Copy* const copy = BestCopy(*image);
  Hold(image, copy);
  image->persisting = true;
  image->maybe_on_disk = true;
  ++copy->memory().moving;
  absl::Status status;
  {
    MutexUnlock unlock(&mu_);
    status = PutCold(op, *image, *copy);
  }
  --copy->memory().moving;
  if (status.ok()) {
    image->cold = true;
    stats_.transferred_bytes[{copy->memory().tier, Tier::kCold}] += image->bytes() + image->attachment.size();
  } else if (absl::IsDataLoss(status)) {
    Damage(image, copy);
  }
  image->persisting = false;
  if (!status.ok()) {
    NoticeFailures();
    stats_.lost_images += absl::IsUnavailable(loss(*image));
  }
  Release(image, copy);
  return status;
}

absl::Status Residency::PutCold(const Op& op, const Resident& image, const Copy& copy) {
  // Verified before the write, as again after every read: what was damaged in memory must not become the durable truth.
  const absl::StatusOr<std::vector<LeafHash>> leaves = LeavesOf(copy.memory(), copy.slot.data, image.bytes());
  if (!leaves.ok()) return leaves.status();
  if (HashRoot(*leaves) != image.info().checksum || ChecksumOf(image.attachment) != image.info().attachment_checksum)
    return Damaged(image.info().id);
  const uint64_t bytes = image.bytes() + image.attachment.size();
  for (int attempt = 0;; ++attempt) {
    uint64_t deleted_before;
    {
      MutexLock lock(&mu_);
      deleted_before = deleted_;
    }
    absl::Status status;
    {
      absl::StatusOr<StateReader> state = ReaderOf(op, copy.memory(), copy.slot.data, image.bytes());
      if (!state.ok()) return state.status();
      status = cold_->PutImage(image.info(), &*state, *leaves, image.attachment);
    }
    if (!absl::IsResourceExhausted(status) || attempt == kMakeRoomAttempts) return status;
    if (absl::Status ended = op.Check(*clock_); !ended.ok()) return ended;
    // First what nobody refers to any more, then prefixes.
    std::function<bool()> make_room;
    bool reclaiming, reclaimed;
    {
      MutexLock lock(&mu_);
      reclaiming = deleted_ < dropped_ || sweeping_;
      reclaimed = deleted_ != deleted_before;  // perhaps after the put had failed
      make_room = make_room_;
    }
    if (reclaimed) continue;
    if (reclaiming) {
      if (!WaitForReclaim(op)) return status;
      continue;
    }
    // Room can be made in the budget, not on a disk that is full of something else.
    const bool over_budget = bytes > cold_->budget_bytes() - std::min(cold_->used_bytes(), cold_->budget_bytes());
    if (!over_budget || !make_room || !make_room()) return status;
  }
}

absl::Status Residency::GetCold(const Op& op, const ImageInfo& info, const Memory& memory, char* slot,
                                std::string* attachment) {
  absl::StatusOr<StateFiller> state = FillerOf(op, memory, slot, info.layout->state_bytes());
  return state.ok() ? cold_->ReadImage(info, &*state, attachment) : state.status();
}

bool Residency::persisted(const Image& image) const { return Resident::Of(image)->cold; }

Tier Residency::tier(const Image& of) const {
  const Resident& image = *Resident::Of(of);
  const uint32_t places = image.places & healthy_;
  const uint32_t warm = warm_ == nullptr ? 0 : warm_->bit;
  if ((places & ~warm) != 0) return Tier::kHot;
  if (places != 0) return Tier::kWarm;
  return image.cold ? Tier::kCold : Tier::kUnknown;
}

// ----
// going

void Residency::HeadsChanged(Resident* image) {
  MutexLock lock(&mu_);
  image->was_head = image->was_head || image->is_head();
  if (!image->listed || image->listed->victim_class == VictimClassOf(*image)) return;
  Unlist(image);
  List(image);
}

void Residency::Forget(Resident* image) {
  MutexLock lock(&mu_);
  Unlist(image);
  while (!image->copies.empty()) DropCopy(image, image->copies.back().get());
  --images_;
  Leave(image->family);
  if (detached_ || image->disowned || (!image->cold && !image->maybe_on_disk)) return;
  reclaim_.push_back(image->info().id);
  ++dropped_;
  wake_.SignalAll();
}

ImageRef Residency::Adopt(const ImageInfo& info) {
  MutexLock lock(&mu_);
  if (const auto it = adopted_.find(info.id); it != adopted_.end()) return it->second;
  auto image = std::make_shared<Resident>(this, FamilyFor(info.tenant, info.layout), info);
  Enter(image->family);
  image->cold = true;
  image->was_head = true;  // those that are none now are behind one
  ++images_;
  if (!recovered_) adopted_.emplace(info.id, image);
  return image;
}

bool Residency::Disown(absl::Span<const Image* const> images) {
  MutexLock lock(&mu_);
  for (const Image* one : images) {
    const Resident* image = Resident::Of(*one);
    if (!image->cold || !image->copies.empty() || image->persisting || image->coming != 0) return false;
    if (image->weak_from_this().use_count() != 1) return false;
  }
  for (const Image* one : images) {
    Resident* image = Resident::Of(*one);
    image->disowned = true;
    // Only through this could anyone get at it again. Compared without a reference, which could turn out the last.
    std::weak_ptr<const Resident>& initial = image->family->initial;
    const std::weak_ptr<const Resident> self = image->weak_from_this();
    if (!initial.owner_before(self) && !self.owner_before(initial)) initial.reset();
  }
  return true;
}

void Residency::KeepUnused(ImageId id) {
  MutexLock lock(&mu_);
  needed_.push_back(id);
}

void Residency::RecoveryDone() {
  absl::flat_hash_map<ImageId, std::shared_ptr<Resident>> adopted;  // outlives the lock
  MutexLock lock(&mu_);
  adopted.swap(adopted_);
  recovered_ = true;
  needed_.reserve(needed_.size() + adopted.size());
  for (const auto& [id, image] : adopted) needed_.push_back(id);
  std::sort(needed_.begin(), needed_.end());
  sweeping_ = true;
  wake_.SignalAll();
}

void Residency::Detach() {
  StopSpilling();  // it may ask the store for room
  MutexLock lock(&mu_);
  detached_ = true;
  make_room_ = nullptr;
}

void Residency::StopSpilling() {
  {
    MutexLock lock(&mu_);
    spilling_ahead_ = false;
    wake_spiller_.SignalAll();
  }
  if (spiller_.joinable()) spiller_.join();
}

bool Residency::WaitForReclaim(const Op& op) {
  MutexLock lock(&mu_);
  reclaim_failed_ = false;
  trim_now_ = trim_wanted_;
  wake_.SignalAll();
  const uint64_t until = dropped_;
  while (!stopping_ && !reclaim_failed_ &&
         (deleted_ < until || sweeping_ || trim_now_ || trimming_ || deleted_families_ > 0)) {
    if (!op.Check(*clock_).ok()) return false;
    WaitForChange(op);
  }
  return !reclaim_failed_;
}

std::shared_ptr<Residency::Resident> Residency::NextToMoveDown(Memory** from) {
  // The lowest first: those above need its room.
  for (auto it = memories_.rbegin(); it != memories_.rend(); ++it) {
    Memory* const memory = *from = it->get();
    const uint64_t going_down = std::min(memory->dirty_bytes, memory->going_down_bytes);
    if (memory->dirty_bytes - going_down <= memory->dirty_bytes_max && memory->ahead_bytes == 0) continue;
    for (const VictimClass dirty : {VictimClass::kBehindDirty, VictimClass::kHeadDirty}) {
      for (auto victim = memory->victims.lower_bound({dirty, 0, nullptr});
           victim != memory->victims.end() && victim->victim_class == dirty; ++victim) {
        // No reference left means that its destructor waits for our lock.
        if (std::shared_ptr<Resident> image = victim->image->weak_from_this().lock()) return image;
      }
    }
    memory->ahead_bytes = 0;
  }
  return nullptr;
}

void Residency::SpillLoop() {
  std::shared_ptr<Resident> image;  // these outlive the lock: an image's destructor takes it
  std::vector<std::unique_ptr<Move>> ended;
  Moves moves;
  // What was demoted took the place of what made another copy clean: the next one goes to the disk, so that this ends.
  bool warm_is_full = false;
  bool together = true;  // until the warm memory has no room at once
  MutexLock lock(&mu_);
  while (spilling_ahead_ || !moves.empty()) {
    if (image != nullptr || !ended.empty()) {
      MutexUnlock unlock(&mu_);
      image.reset();
      ended.clear();
    }
    Memory* memory = nullptr;
    if (spilling_ahead_) image = NextToMoveDown(&memory);
    uint64_t redirtied = redirtied_;
    if (image != nullptr && together && !warm_is_full && MayDemote(*image, *memory) && !moves.full(image->bytes())) {
      together = BeginDemotion(image, memory, &moves);
      warm_is_full = redirtied_ != redirtied;
      continue;
    }
    if (!moves.empty()) {
      ended = moves.TakeOldest();
      EndDemotions(ended);
      continue;
    }
    if (image == nullptr) {
      if (spilling_ahead_) wake_spiller_.Wait(&mu_);
      continue;
    }
    // What room must be made for goes by itself, if it must go now.
    const bool ahead_only = memory->dirty_bytes <= memory->dirty_bytes_max;
    together = true;
    if (ahead_only) {
      memory->ahead_bytes = 0;
      warm_is_full = false;
      continue;
    }
    bool demoted = false;
    ++memory->moving;
    absl::Status status;
    if (warm_is_full) {
      status = PersistAny(Op(), image.get());
      stats_.spills += status.ok();
    } else {
      redirtied = redirtied_;
      status = MoveDown(Op(), image.get(), *memory, &demoted);
    }
    --memory->moving;
    warm_is_full = demoted && redirtied_ != redirtied;
    changed_.SignalAll();
    if (!status.ok() && spilling_ahead_ && !absl::IsDataLoss(status))
      wake_spiller_.WaitFor(&mu_, kReclaimRetry);  // whoever needs the slot will be told why
  }
}

void Residency::ReclaimLoop() {
  MutexLock lock(&mu_);
  while (!stopping_) {
    const MonoTime to_trim = trim_now_ ? 0 : trim_at_ - clock_->Now();
    if (trim_wanted_ && to_trim <= 0) {
      trim_wanted_ = false;  // it may be wanted again while extents are unmapped
      trimming_ = true;
      Trim();
      trimming_ = false;
      changed_.SignalAll();
      continue;
    }
    if (deleted_families_ > 0) {
      trimming_ = true;
      DeleteFamilies();
      trimming_ = false;
      changed_.SignalAll();
      continue;
    }
    if (reclaim_.empty() && !sweeping_) {
      if (trim_wanted_) {
        wake_.WaitFor(&mu_, std::chrono::nanoseconds(to_trim));
      } else {
        wake_.Wait(&mu_);
      }
      continue;
    }
    const absl::Status status = reclaim_.empty() ? SweepBatch() : DeleteBatch();
    const bool failed_before = std::exchange(reclaim_failed_, !status.ok());
    changed_.SignalAll();
    if (status.ok()) continue;
    if (!failed_before) spdlog::warn("deleting images from the cold store: {}", std::string(status.message()));
    if (cold_->failed()) {  // nothing can be deleted any more; the next start sweeps
      deleted_ += reclaim_.size();
      reclaim_.clear();
      sweeping_ = false;
      continue;
    }
    if (!stopping_) wake_.WaitFor(&mu_, kReclaimRetry);
  }
  changed_.SignalAll();
}

absl::Status Residency::DeleteBatch() {
  const size_t size = std::min(reclaim_.size(), kReclaimBatch);
  const std::vector<ImageId> batch(reclaim_.begin(), reclaim_.begin() + static_cast<ptrdiff_t>(size));
  reclaim_.erase(reclaim_.begin(), reclaim_.begin() + static_cast<ptrdiff_t>(size));
  absl::Status status;
  {
    MutexUnlock unlock(&mu_);
    status = cold_->DeleteImages(batch);
  }
  if (status.ok()) deleted_ += batch.size();
  if (!status.ok()) reclaim_.insert(reclaim_.begin(), batch.begin(), batch.end());
  return status;
}

// Images of earlier epochs that no recovered record needs.
absl::Status Residency::SweepBatch() {
  const ImageId after = swept_;
  const ImageId first_of_ours = cold_->epoch() << kCounterBits;
  std::vector<ImageId> needed = std::move(needed_);
  absl::StatusOr<std::vector<ImageId>> ids;
  absl::Status status;
  ImageId last = after;
  {
    MutexUnlock unlock(&mu_);
    ids = cold_->ListImages(after, kSweepBatch);
    status = ids.status();
    if (status.ok()) {
      std::vector<ImageId> garbage;
      for (ImageId id : *ids) {
        last = id;
        if (id < first_of_ours && !std::binary_search(needed.begin(), needed.end(), id)) garbage.push_back(id);
      }
      if (!garbage.empty()) status = cold_->DeleteImages(garbage);
    }
  }
  needed_ = std::move(needed);
  if (!status.ok()) return status;
  swept_ = last;
  if (ids->empty() || last >= first_of_ours) {
    sweeping_ = false;
    needed_ = {};
  }
  return absl::OkStatus();
}

// ----
// looking

ResidencyStats Residency::stats() const {
  MutexLock lock(&mu_);
  ResidencyStats stats = stats_;
  stats.attachment_bytes = attachment_bytes_;
  stats.cold_bytes = cold_->used_bytes();
  stats.unreclaimed_images = reclaim_.size();
  for (const auto& memory : memories_) {
    const Device& device = *memory->device;
    stats.memories.push_back({.device = device.name(),
                              .tier = memory->tier,
                              .health = device.health(),
                              .budget_bytes = device.budget_bytes(),
                              .chunk_bytes = device.chunk_bytes(),
                              .used_bytes = device.used_bytes(),
                              .images = memory->images,
                              .image_bytes = memory->image_bytes,
                              .evictions = memory->evictions});
    stats.evictions += memory->evictions;
    if (memory->tier == Tier::kHot) {
      stats.hot_images += memory->images;
      stats.hot_bytes += memory->image_bytes;
    }
    for (const Pool* pool : memory->pools) {
      stats.pools.push_back({.device = device.name(),
                             .tenant = pool->family->tenant,
                             .layout = pool->family->layout,
                             .slots_used = pool->slots.used_slots(),
                             .slots_free = pool->slots.free_slots(),
                             .extent_bytes = pool->slots.extent_bytes()});
    }
  }
  return stats;
}

void Residency::CheckInvariants() const {
  MutexLock lock(&mu_);
  uint64_t users = 0, deleted_families = 0, claims = 0, copies = 0;
  for (const auto& [key, family] : families_) {
    users += family->users;
    deleted_families += family->layout_deleted && family->users == 0;
  }
  absl::flat_hash_set<const Resident*> attached;
  uint64_t attached_bytes = 0;
  for (const auto& memory : memories_) {
    CheckMemory(*memory);
    claims += memory->claims;
    copies += memory->images;
    for (const VictimKey& key : memory->victims) {
      const bool all = std::all_of(key.image->copies.begin(), key.image->copies.end(),
                                   [](const auto& copy) { return copy->listed; });
      if (!all || key.image->attachment.empty() || !attached.insert(key.image).second) continue;
      attached_bytes += key.image->attachment.size();
    }
  }
  Require(claims == claims_, "claims are miscounted");
  Require(users >= images_ + claims_, "an image or a claim is not counted as its family's user");
  Require(deleted_families == deleted_families_, "families of deleted layouts are miscounted");
  Require(attachment_bytes_ <= options_.attachment_budget_bytes, "attachments are over their budget");
  Require(copies <= images_ * memories_.size() && stats_.pinned_images <= copies, "images are miscounted");
  Require(attached.size() == attached_victims_.size() && attached_bytes <= attachment_bytes_,
          "attachments are miscounted");
}

}  // namespace statepool
