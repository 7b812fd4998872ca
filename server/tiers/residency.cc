// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Images coming, being read, persisted and going. How room is made for them: residency_eviction.cc.
#include "server/tiers/residency.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

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

absl::Status Damaged(ImageId id) {
  return Error(absl::StatusCode::kDataLoss, "CORRUPT", "the image's bytes changed in memory").Meta("image", id);
}

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

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "Residency: %s\n", what);
  std::abort();
}

}  // namespace

// A pinned image: it stays in its slot, and lives, for as long as this does.
class Residency::ResidentPin final : public PinnedImage {
 public:
  ResidentPin(Residency* residency, ImageRef image) : residency_(residency), image_(std::move(image)) {}
  ~ResidentPin() override { residency_->Unpin(Resident::Of(*image_)); }

  uint64_t size() const override { return image_->bytes(); }
  const char* data() const override { return Resident::Of(*image_)->slot.data; }
  bool in_host_memory() const override { return residency_->device_->host_accessible(); }
  absl::Status CopyOut(uint64_t offset, uint64_t bytes, char* to) const override {
    absl::StatusOr<StateReader> reader = residency_->ReaderOf(Op(), data() + offset, bytes);
    if (!reader.ok()) return reader.status();
    while (reader->left() > 0) {
      const absl::StatusOr<absl::string_view> piece = reader->Next();
      if (!piece.ok()) return piece.status();
      to = std::copy(piece->begin(), piece->end(), to);
    }
    return absl::OkStatus();
  }
  absl::string_view attachment() const override { return Resident::Of(*image_)->attachment; }
  SlotPlace place() const override { return PlaceOf(Resident::Of(*image_)->slot); }

 private:
  Residency* const residency_;
  const ImageRef image_;
};

Residency::Residency(ResidencyOptions options, Device* device, ColdStore* cold, const Clock* clock)
    : options_{.attachment_budget_bytes = std::max(options.attachment_budget_bytes, kMinAttachmentBudget),
               .keep_empty = options.keep_empty,
               .dirty_bytes_max = options.dirty_bytes_max,
               .owned_bytes_max = options.owned_bytes_max,
               .staging = options.staging},
      device_(device),
      cold_(cold),
      clock_(clock),
      ids_(cold->epoch()) {
  Require(device->host_accessible() || options.staging != nullptr, "nothing to reach the device's memory through");
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

Residency::Pool* Residency::PoolFor(TenantId tenant, const LayoutRef& layout) {
  std::unique_ptr<Pool>& pool = pools_[{tenant, layout->fingerprint()}];
  if (pool == nullptr) pool = std::make_unique<Pool>(tenant, *layout, device_->chunk_bytes());
  return pool.get();
}

void Residency::Enter(Pool* pool) {
  if (pool->users++ > 0 || !pool->layout_deleted) return;
  pool->layout_deleted = false;  // if the layout was not registered again it will be said once more
  --deleted_pools_;
}

void Residency::Leave(Pool* pool) {
  if (--pool->users > 0 || !pool->layout_deleted) return;
  ++deleted_pools_;
  wake_.SignalAll();
}

void Residency::LayoutDeleted(TenantId tenant, const Layout& layout) {
  MutexLock lock(&mu_);
  const auto it = pools_.find({tenant, layout.fingerprint()});
  if (it == pools_.end() || it->second->layout_deleted) return;
  it->second->layout_deleted = true;
  if (it->second->users > 0) return;
  ++deleted_pools_;
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
  Claim claim(this);
  Pool* pool;
  {
    std::shared_ptr<const Resident> initial;  // outlives the lock
    MutexLock lock(&mu_);
    pool = PoolFor(op.tenant, layout);
    if (shareable) initial = pool->initial.lock();
    if (initial != nullptr) return initial;
    claim.pool = pool;
    Enter(pool);
  }
  if (absl::Status status = Acquire(op, bytes.attachment.size(), &claim); !status.ok()) return status;
  ImageInfo info{.id = ids_.Next(), .tenant = op.tenant, .layout = layout};
  const absl::StatusOr<std::vector<LeafHash>> leaves =
      bytes.initial           ? FillInitial(op, *layout, claim.slot.data)
      : bytes.base != nullptr ? FillOverBase(op, bytes, claim.slot.data)
                              : Fill(op, bytes.pieces, layout->state_bytes(), claim.slot.data);
  if (!leaves.ok()) return leaves.status();
  info.checksum = HashRoot(*leaves);
  if (bytes.expected_checksum && *bytes.expected_checksum != info.checksum)
    return ChecksumMismatch(*bytes.expected_checksum, info.checksum);

  auto image = NewImage(&claim, std::move(info), bytes.attachment, !bytes.initial);
  if (!shareable) return image;
  std::shared_ptr<const Resident> first;  // outlives the lock
  MutexLock lock(&mu_);
  first = pool->initial.lock();
  if (first != nullptr) return first;  // another Create was faster; ours goes
  pool->initial = image;
  return image;
}

absl::StatusOr<StateReader> Residency::ReaderOf(const Op& op, const char* from, uint64_t bytes) const {
  if (device_->host_accessible()) return StateReader({from, bytes});
  absl::StatusOr<std::unique_ptr<StagingPool::Pair>> pair = options_.staging->Take(op);
  if (!pair.ok()) return pair.status();
  return StateReader(device_, *std::move(pair), from, bytes);
}

absl::StatusOr<StateFiller> Residency::FillerOf(const Op& op, char* to, uint64_t bytes) const {
  if (device_->host_accessible()) return StateFiller(to, bytes);
  absl::StatusOr<std::unique_ptr<StagingPool::Pair>> pair = options_.staging->Take(op);
  if (!pair.ok()) return pair.status();
  return StateFiller(device_, *std::move(pair), to, bytes);
}

absl::StatusOr<std::vector<LeafHash>> Residency::Fill(const Op& op, absl::Span<const absl::string_view> pieces,
                                                      uint64_t bytes, char* to) const {
  absl::StatusOr<StateFiller> filler = FillerOf(op, to, bytes);
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

absl::StatusOr<std::vector<LeafHash>> Residency::FillInitial(const Op& op, const Layout& layout, char* to) const {
  absl::StatusOr<StateFiller> filler = FillerOf(op, to, layout.state_bytes());
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
absl::StatusOr<std::vector<LeafHash>> Residency::FillOverBase(const Op& op, const StateBytes& bytes, char* to) const {
  PieceReader reader(bytes.pieces);
  const uint64_t size = bytes.base->size();
  if (device_->host_accessible()) {
    const absl::string_view base = bytes.base->bytes();
    CopyHasher copy(to, size);
    for (const ByteRange& range : bytes.ranges) {
      copy.Append(base.substr(copy.copied(), range.offset - copy.copied()));
      reader.Append(range.bytes, &copy);
    }
    copy.Append(base.substr(copy.copied()));
    return copy.Finish();
  }
  // What is the base's stays on the device.
  absl::StatusOr<std::unique_ptr<Transfer>> whole = device_->CopyWithin(to, bytes.base->data(), size);
  if (!whole.ok()) return whole.status();
  if (absl::Status status = (*whole)->Wait(); !status.ok()) return status;
  for (const ByteRange& range : bytes.ranges) {
    absl::StatusOr<StateFiller> filler = FillerOf(op, to + range.offset, range.bytes);
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
  return LeavesOf(to, size);
}

absl::StatusOr<std::vector<LeafHash>> Residency::LeavesOf(const char* state, uint64_t bytes) const {
  std::vector<LeafHash> leaves(LeafCount(bytes));
  if (absl::Status status = device_->HashLeaves(state, bytes, absl::MakeSpan(leaves)); !status.ok()) return status;
  return leaves;
}

std::shared_ptr<Residency::Resident> Residency::NewImage(Claim* claim, ImageInfo info, absl::string_view attachment,
                                                         bool from_client) {
  info.attachment_bytes = static_cast<uint32_t>(attachment.size());
  info.attachment_checksum = ChecksumOf(attachment);
  std::string own_attachment(attachment);
  auto image = std::make_shared<Resident>(this, claim->pool, std::move(info));
  MutexLock lock(&mu_);
  ++images_;
  Enter(image->pool);
  Install(image.get(), claim, std::move(own_attachment));
  List(image.get());
  if (from_client) stats_.client_to_hot_bytes += image->bytes() + image->info().attachment_bytes;
  Progress();
  return image;
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::BeginWrite(const Op& op, LayoutRef layout,
                                                                   uint64_t attachment_bytes) {
  return NewWriter(op, std::move(layout), attachment_bytes, /*owner=*/0);
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::BeginOwned(const Op& op, LayoutRef layout, OwnerId owner) {
  Require(owner != 0, "a slot is to be nobody's own");
  return NewWriter(op, std::move(layout), /*attachment_bytes=*/0, owner);
}

absl::StatusOr<std::unique_ptr<ImageWriter>> Residency::NewWriter(const Op& op, LayoutRef layout,
                                                                  uint64_t attachment_bytes, OwnerId owner) {
  if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
  auto writer = std::make_unique<Writer>(this, std::move(layout));
  {
    MutexLock lock(&mu_);
    writer->claim_.pool = PoolFor(op.tenant, writer->layout_);
    Enter(writer->claim_.pool);
  }
  absl::Status status =
      owner == 0 ? Acquire(op, attachment_bytes, &writer->claim_) : AcquireOwned(op, owner, &writer->claim_);
  if (!status.ok()) return status;
  MutexLock lock(&mu_);
  writer->claim_.patient = true;
  --moving_;
  changed_.SignalAll();  // to those who waited for it
  return writer;
}

absl::Status Residency::Writer::Append(absl::Span<const absl::string_view> pieces, Checksum expected) {
  assert(received_ % kLeafBytes == 0);
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  assert(bytes <= layout_->state_bytes() - received_);
  const absl::StatusOr<std::vector<LeafHash>> leaves =
      claim_.residency->Fill(Op(), pieces, bytes, claim_.slot.data + received_);
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
  ImageInfo info{.id = residency->ids_.Next(), .tenant = claim_.pool->slots.tenant(), .layout = layout_};
  info.checksum = HashRoot(leaves_);
  if (expected && *expected != info.checksum) return ChecksumMismatch(*expected, info.checksum);
  received_ = 0;
  return residency->NewImage(&claim_, std::move(info), attachment, /*from_client=*/true);
}

ImageRef Residency::Writer::FinishFilled(Checksum checksum, absl::string_view attachment) {
  assert(attachment.size() == claim_.attachment_bytes);
  ImageInfo info{.id = claim_.residency->ids_.Next(), .tenant = claim_.pool->slots.tenant(), .layout = layout_};
  info.checksum = checksum;
  return claim_.residency->NewImage(&claim_, std::move(info), attachment, /*from_client=*/false);
}

void Residency::Install(Resident* image, Claim* claim, std::string attachment) {
  --claims_;
  if (!claim->patient) --moving_;
  claim->attachment_bytes = 0;  // counted as the image's from here on
  Leave(std::exchange(claim->pool, nullptr));
  image->slot = std::exchange(claim->slot, Slot{});
  image->attachment = std::move(attachment);
  image->used_at = ++uses_;
  image->hot = true;
  if (!image->cold) {
    dirty_bytes_ += image->bytes();
    if (dirty_bytes_ > options_.dirty_bytes_max) wake_spiller_.SignalAll();
  }
  ++stats_.hot_images;
  stats_.hot_bytes += image->bytes();
}

void Residency::Abandon(Claim* claim) {
  MutexLock lock(&mu_);
  attachment_bytes_ -= claim->attachment_bytes;
  if (claim->slot) {
    claim->pool->slots.Free(claim->slot);
    --claims_;
    if (!claim->patient) --moving_;
  }
  Leave(claim->pool);
  Progress();
}

// ----
// reading

Pin Residency::PinLocked(const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  Unlist(image);
  image->used_at = ++uses_;
  if (image->pins++ == 0) ++stats_.pinned_images;
  return std::make_unique<ResidentPin>(this, ref);
}

void Residency::Unpin(Resident* image) {
  MutexLock lock(&mu_);
  if (--image->pins > 0) return;
  --stats_.pinned_images;
  if (image->damaged) DropSlot(image);
  List(image);
  Progress();
}

Pin Residency::TryRead(const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  if (!image->hot || !device_->host_accessible()) return nullptr;
  MutexLock lock(&mu_);
  return image->hot && !image->damaged ? PinLocked(ref) : nullptr;
}

absl::StatusOr<Pin> Residency::Read(const Op& op, const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  Claim claim(this);
  std::string attachment;
  MutexLock lock(&mu_);
  for (;;) {
    if (image->damaged) return Damaged(image->info().id);
    if (image->hot) return PinLocked(ref);
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    if (!image->promoting) break;
    WaitForChange(op);
  }
  image->promoting = true;
  ++stats_.misses;
  claim.pool = image->pool;
  Enter(image->pool);
  absl::Status status;
  {
    MutexUnlock unlock(&mu_);
    status = Acquire(op, image->info().attachment_bytes, &claim);
    if (status.ok()) status = GetCold(op, image->info(), claim.slot.data, &attachment);
  }
  image->promoting = false;
  changed_.SignalAll();
  if (!status.ok()) return status;
  Install(image, &claim, std::move(attachment));
  ++stats_.promotions;
  stats_.cold_to_hot_bytes += image->bytes() + image->info().attachment_bytes;
  return PinLocked(ref);
}

// ----
// persisting

absl::Status Residency::Persist(const Op& op, const ImageRef& ref) {
  Resident* image = Resident::Of(*ref);
  if (image->cold) return absl::OkStatus();
  MutexLock lock(&mu_);
  for (;;) {
    if (image->cold) return absl::OkStatus();
    if (image->damaged) return Damaged(image->info().id);
    if (absl::Status status = op.Check(*clock_); !status.ok()) return status;
    if (!image->persisting) return PersistLocked(op, image);
    WaitForChange(op);
  }
}

// REQUIRES: hot, not cold, not persisting; the caller has a reference.
absl::Status Residency::PersistLocked(const Op& op, Resident* image) {
  Unlist(image);
  image->persisting = true;
  image->maybe_on_disk = true;
  ++moving_;
  absl::Status status;
  {
    MutexUnlock unlock(&mu_);
    status = PutCold(op, *image);
  }
  --moving_;
  image->persisting = false;
  if (status.ok()) {
    image->cold = true;
    dirty_bytes_ -= image->bytes();
    stats_.hot_to_cold_bytes += image->bytes() + image->attachment.size();
  } else if (absl::IsDataLoss(status)) {
    image->damaged = true;
    if (image->pins == 0) DropSlot(image);
  }
  List(image);
  Progress();
  return status;
}

absl::Status Residency::PutCold(const Op& op, const Resident& image) {
  // Verified before the write, as again after every read: what was damaged in memory must not become the durable truth.
  const absl::StatusOr<std::vector<LeafHash>> leaves = LeavesOf(image.slot.data, image.bytes());
  if (!leaves.ok()) return leaves.status();
  if (HashRoot(*leaves) != image.info().checksum || ChecksumOf(image.attachment) != image.info().attachment_checksum) {
    spdlog::error("image {} changed in memory", image.info().id);
    return Damaged(image.info().id);
  }
  const uint64_t bytes = image.bytes() + image.attachment.size();
  for (int attempt = 0;; ++attempt) {
    uint64_t deleted_before;
    {
      MutexLock lock(&mu_);
      deleted_before = deleted_;
    }
    absl::Status status;
    {
      absl::StatusOr<StateReader> state = ReaderOf(op, image.slot.data, image.bytes());
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

absl::Status Residency::GetCold(const Op& op, const ImageInfo& info, char* slot, std::string* attachment) {
  absl::StatusOr<StateFiller> state = FillerOf(op, slot, info.layout->state_bytes());
  return state.ok() ? cold_->ReadImage(info, &*state, attachment) : state.status();
}

bool Residency::lost(const Image& image) const { return Resident::Of(image)->damaged; }

bool Residency::persisted(const Image& image) const { return Resident::Of(image)->cold; }

Tier Residency::tier(const Image& image) const { return Resident::Of(image)->hot ? Tier::kHot : Tier::kCold; }

// ----
// going

void Residency::HeadsChanged(Resident* image) {
  MutexLock lock(&mu_);
  image->was_head = image->was_head || image->is_head();
  if (!image->listed) return;
  Unlist(image);
  List(image);
}

void Residency::Forget(Resident* image) {
  MutexLock lock(&mu_);
  Unlist(image);
  if (image->hot) DropSlot(image);
  --images_;
  Leave(image->pool);
  if (detached_ || image->disowned || (!image->cold && !image->maybe_on_disk)) return;
  reclaim_.push_back(image->info().id);
  ++dropped_;
  wake_.SignalAll();
}

ImageRef Residency::Adopt(const ImageInfo& info) {
  MutexLock lock(&mu_);
  if (const auto it = adopted_.find(info.id); it != adopted_.end()) return it->second;
  auto image = std::make_shared<Resident>(this, PoolFor(info.tenant, info.layout), info);
  Enter(image->pool);
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
    if (!image->cold || image->hot || image->persisting || image->promoting || image->damaged) return false;
    if (image->weak_from_this().use_count() != 1) return false;
  }
  for (const Image* one : images) {
    Resident* image = Resident::Of(*one);
    image->disowned = true;
    // Only through this could anyone get at it again. Compared without a reference, which could turn out the last.
    std::weak_ptr<const Resident>& initial = image->pool->initial;
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
         (deleted_ < until || sweeping_ || trim_now_ || trimming_ || deleted_pools_ > 0)) {
    if (!op.Check(*clock_).ok()) return false;
    WaitForChange(op);
  }
  return !reclaim_failed_;
}

void Residency::SpillLoop() {
  const auto next = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> std::shared_ptr<Resident> {
    for (const VictimClass dirty : {VictimClass::kBehindDirty, VictimClass::kHeadDirty}) {
      for (auto it = victims_.lower_bound({dirty, 0, nullptr}); it != victims_.end() && it->victim_class == dirty;
           ++it) {
        // No reference left means that its destructor waits for our lock.
        if (std::shared_ptr<Resident> image = it->image->weak_from_this().lock()) return image;
      }
    }
    return nullptr;
  };
  std::shared_ptr<Resident> image;  // outlives the lock
  MutexLock lock(&mu_);
  while (spilling_ahead_) {
    if (image != nullptr) {  // its destructor takes the lock
      MutexUnlock unlock(&mu_);
      image.reset();
    }
    if (dirty_bytes_ > options_.dirty_bytes_max) image = next();
    if (image == nullptr) {
      wake_spiller_.Wait(&mu_);
      continue;
    }
    const absl::Status status = PersistLocked(Op(), image.get());
    if (status.ok()) {
      ++stats_.spills;
    } else if (spilling_ahead_ && !absl::IsDataLoss(status)) {
      wake_spiller_.WaitFor(&mu_, kReclaimRetry);  // whoever needs the slot will be told why
    }
  }
}

void Residency::ReclaimLoop() {
  MutexLock lock(&mu_);
  while (!stopping_) {
    const MonoTime to_trim = trim_now_ ? 0 : trim_at_ - clock_->Now();
    if (trim_wanted_ && to_trim <= 0) {
      trim_wanted_ = false;  // it may be wanted again while extents are unmapped
      trimming_ = true;
      GiveBack(std::exchange(trim_now_, false) ? TakeEmptyExtents(/*keep_each=*/1) : TakeLongEmptyExtents());
      trimming_ = false;
      changed_.SignalAll();
      continue;
    }
    if (deleted_pools_ > 0) {
      trimming_ = true;
      GiveBack(TakeDeletedPools());
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
  stats.device = device_->name();
  stats.device_budget_bytes = device_->budget_bytes();
  stats.device_used_bytes = device_->used_bytes();
  stats.hot_attachment_bytes = attachment_bytes_;
  stats.cold_bytes = cold_->used_bytes();
  stats.unreclaimed_images = reclaim_.size();
  for (const auto& [key, pool] : pools_) {
    stats.pools.push_back({.tenant = key.first,
                           .layout = key.second,
                           .slots_used = pool->slots.used_slots(),
                           .slots_free = pool->slots.free_slots(),
                           .extent_bytes = pool->slots.extent_bytes()});
  }
  return stats;
}

void Residency::CheckInvariants() const {
  MutexLock lock(&mu_);
  uint64_t used_slots = 0, extent_bytes = 0, pool_victims = 0, extent_victims = 0, users = 0, deleted_pools = 0;
  for (const auto& [key, pool] : pools_) {
    pool->slots.CheckInvariants(device_->host_accessible());
    used_slots += pool->slots.used_slots();
    extent_bytes += pool->slots.extent_bytes();
    pool_victims += pool->victims.size();
    users += pool->users;
    deleted_pools += pool->layout_deleted && pool->users == 0;
    for (const auto& [extent, victims] : pool->extents) {
      const auto listed = std::count_if(victims.by_slot.begin(), victims.by_slot.end(),
                                        [](Resident* image) { return image != nullptr; });
      Require(victims.count > 0 && static_cast<uint32_t>(listed) == victims.count,
              "an extent's victims are miscounted");
      Require(victims.count <= extent->used(), "an extent has more victims than used slots");
      extent_victims += victims.count;
    }
  }
  Require(used_slots == stats_.hot_images + claims_, "a slot is neither an image's nor claimed");
  Require(users >= images_ + claims_, "an image or a claim is not counted as its pool's user");
  Require(deleted_pools == deleted_pools_, "pools of deleted layouts are miscounted");
  Require(extent_bytes <= device_->used_bytes(), "the pools have more than the device gave");
  Require(device_->used_bytes() <= device_->budget_bytes(), "the device is over its budget");
  Require(attachment_bytes_ <= options_.attachment_budget_bytes, "attachments are over their budget");
  Require(victims_.size() == pool_victims && victims_.size() == extent_victims, "the lists of victims disagree");
  Require(stats_.hot_images <= images_ && stats_.pinned_images <= stats_.hot_images, "images are miscounted");
  uint64_t attached = 0, attached_bytes = 0;
  for (const VictimKey& key : victims_) {
    const Resident& image = *key.image;
    Require(image.listed == key && key.used_at == image.used_at, "a victim is listed under another key");
    Require(image.hot && image.pins == 0 && !image.persisting && !image.damaged,
            "an image is listed that may not leave");
    Require(image.cold == !key.dirty(), "a victim is in the wrong class");
    Require(image.pool->victims.contains(key), "a victim is not in its pool's list");
    if (!image.attachment.empty()) ++attached;
    attached_bytes += image.attachment.size();
  }
  Require(dirty_bytes_ <= stats_.hot_bytes, "dirty bytes are miscounted");
  Require(attached == attached_victims_.size() && attached_bytes <= attachment_bytes_, "attachments are miscounted");
}

}  // namespace statepool
