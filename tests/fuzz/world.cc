// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/world.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "server/core/error.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {
namespace {

constexpr uint64_t kChunkBytes = 4096;
constexpr size_t kArenasKept = 3;

// Small enough that a few requests reach them.
StoreOptions SmallLimits(const WorldOptions& world) {
  StoreOptions options;
  options.max_names = 24;
  options.max_layouts = 6;
  options.max_layout_bytes = 8 << 10;
  options.max_history = 8;
  options.default_max_history = 3;
  options.max_children = 6;
  options.max_tokens = 80;  // more than a stem has
  options.max_extra_key_bytes = 16;
  options.max_attachment_bytes = 4096;
  options.max_page_size = 10;
  options.max_results = 4;
  options.max_batch = 6;
  options.max_ttl = absl::Hours(1);
  options.flush_batch_bytes = 1024;
  options.prefix_key_bits = world.prefix_key_bits;
  options.incarnation = "i";
  return options;
}

}  // namespace

MemoryNameLog::MemoryNameLog(Disk* disk, MemoryDisk* images, uint64_t epoch)
    : disk_(disk), images_(images), epoch_(epoch), last_run_(disk->last_run) {
  disk->last_run = {true, false, ""};
}

absl::Status MemoryNameLog::Full() const {
  if (!disk_->full) return absl::OkStatus();
  return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "the disk is full").RetryAfter(absl::Seconds(1));
}

absl::Status MemoryNameLog::Commit(absl::Span<const NameChange> changes, bool) {
  MutexLock lock(&mu_);
  if (absl::Status status = Full(); !status.ok()) return status;
  for (const NameChange& change : changes) {
    if (!change.record.has_value()) {
      disk_->names.erase(change.key);
      continue;
    }
    Require(disk_->layouts.count(change.record->layout) > 0, "a name is recorded before its layout", change.key.name);
    MutexLock images_lock(&images_->mu);
    for (const RecordedVersion& version : change.record->versions) {
      Require(images_->images.count(version.image) > 0, "a name is recorded before its image", change.key.name);
    }
    disk_->names[change.key] = *change.record;
  }
  return absl::OkStatus();
}

absl::Status MemoryNameLog::CommitLayout(const LayoutRecord& layout) {
  MutexLock lock(&mu_);
  if (absl::Status status = Full(); !status.ok()) return status;
  disk_->layouts[(*Layout::FromCanonical(layout.canonical))->fingerprint()] = layout;
  return absl::OkStatus();
}

absl::Status MemoryNameLog::DeleteLayout(TenantId, absl::string_view fingerprint) {
  MutexLock lock(&mu_);
  if (absl::Status status = Full(); !status.ok()) return status;
  for (const auto& [key, record] : disk_->names) {
    Require(record.layout != fingerprint, "a layout is deleted that a record needs", key.name);
  }
  disk_->layouts.erase(std::string(fingerprint));
  return absl::OkStatus();
}

absl::Status MemoryNameLog::CommitCleanStop(absl::string_view tombstones) {
  MutexLock lock(&mu_);
  if (absl::Status status = Full(); !status.ok()) return status;
  disk_->last_run = {true, true, std::string(tombstones)};
  return absl::OkStatus();
}

absl::Status MemoryNameLog::LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) {
  MutexLock lock(&mu_);
  for (const auto& [fingerprint, record] : disk_->layouts) {
    if (absl::Status status = visit(record); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MemoryNameLog::LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) {
  MutexLock lock(&mu_);
  for (const auto& [key, record] : disk_->names) {
    if (absl::Status status = visit({key, record}); !status.ok()) return status;
  }
  return absl::OkStatus();
}

World::World(const WorldOptions& options) : options_(options) { Start(); }

World::~World() { Stop(); }

void World::Start() {
  device_ = *HostDevice::Create({"host", options_.hot_bytes, kChunkBytes});
  cold_ = std::make_unique<MemoryColdStore>(&images_, options_.cold_bytes);
  uint64_t epoch = cold_->epoch();
  log_ = std::make_unique<MemoryNameLog>(&disk_, &images_, epoch);
  residency_ = std::make_unique<Residency>(
      ResidencyOptions{.attachment_budget_bytes = 1 << 20, .owned_bytes_max = options_.hot_bytes / 8},
      ResidencyMemories{.hot = {{device_.get()}}}, cold_.get(), &clock_);
  store_ = std::make_unique<Store>(SmallLimits(options_), residency_.get(), log_.get(), &clock_);
  residency_->SetMakeRoom([this] { return store_->EvictPrefix(); });
  const absl::Status recovered = store_->Recover();
  Require(recovered.ok(), "the store does not recover", recovered.message());
  copies_ = std::make_unique<CopyScheduler>(CopySchedulerOptions{}, &clock_);
  ArenaOptions arena_options;
  arena_options.max_arenas = 4;
  arena_options.max_bytes = options_.hot_bytes / 2;
  arena_options.granule_bytes = kChunkBytes;
  arena_options.max_rows = 8;
  arena_options.max_steps = 4;
  arena_options.max_pinned_bytes = options_.hot_bytes / 8;
  arenas_ =
      std::make_unique<Arenas>(arena_options, store_.get(), residency_.get(),
                               ArenaMemory{{device_.get()},
                                           [this](const Op& op, TenantId tenant, uint64_t bytes, const Device* on) {
                                             return residency_->AllocateShared(op, tenant, bytes, on);
                                           },
                                           [this] { residency_->SharedMemoryFreed(); }},
                               copies_.get(), &clock_);
  LeaseOptions lease_options;
  lease_options.max_leases = 4;
  lease_options.max_pins = 8;
  lease_options.max_pinned_bytes = lease_options.max_granted_bytes = options_.hot_bytes / 8;
  lease_options.max_grants = 2;
  leases_ = std::make_unique<Leases>(
      lease_options, store_.get(),
      LeaseMemory{[this](const Op& op, LayoutRef layout, OwnerId owner, bool at_once) {
                    return residency_->BeginOwned(op, std::move(layout), owner, device_.get(), at_once);
                  },
                  [this](OwnerId owner, bool gone) { residency_->EndOwner(owner, gone); },
                  [this] { residency_->SharedMemoryFreed(); }, [this] { return residency_->refusals(); }},
      &clock_);
  watchdog_ = std::make_unique<Watchdog>(&clock_);
  uploads_ = std::make_unique<Uploads>(options_.uploads, store_.get(), &clock_, watchdog_.get());
  Identity identity{"1", "c", "i", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4, 1 << 20};
  handlers_ = std::make_unique<Handlers>(store_.get(), arenas_.get(), leases_.get(), identity,
                                         [] { return std::vector<v1::DeviceInfo>(1); });
}

void World::Stop() {
  handlers_.reset();
  uploads_.reset();
  watchdog_.reset();
  arena_ids_.clear();
  arenas_.reset();
  lease_ids_.clear();
  leases_.reset();
  copies_.reset();
  store_.reset();
  residency_.reset();  // ends the process when images or claims are left
  log_.reset();
  cold_.reset();
  if (device_ != nullptr) Require(device_->used_bytes() == 0, "memory of the device is left");
  device_.reset();
}

void World::Restart(bool clean) {
  uploads_.reset();
  if (clean) static_cast<void>(store_->Drain(Op()));
  Stop();
  Start();
}

void World::CheckInvariants() const {
  store_->CheckInvariants();
  residency_->CheckInvariants();
  arenas_->CheckInvariants();
}

void World::Connect(const v1::Arena& arena) {
  const absl::StatusOr<Arenas::Lease> lease = arenas_->Connect(arena.token());
  Require(lease.ok(), "a new arena's token is refused", lease.status().message());
  close(lease->fd);
  arena_ids_.insert(arena_ids_.begin(), arena.arena());
  if (arena_ids_.size() > kArenasKept) arena_ids_.pop_back();
}

void World::Connect(const v1::DirectLease& lease) {
  const absl::StatusOr<std::string> id = leases_->Connect(lease.token());
  Require(id.ok() && *id == lease.lease(), "a new lease's token is refused", id.status().message());
  lease_ids_.insert(lease_ids_.begin(), lease.lease());
  if (lease_ids_.size() <= kArenasKept) return;
  leases_->ProcessGone(lease_ids_.back());
  lease_ids_.pop_back();
}

std::string World::LeaseOf(const std::string& name) const {
  size_t n;
  return absl::SimpleAtoi(name, &n) && n < lease_ids_.size() ? lease_ids_[n] : name;
}

std::string World::ArenaOf(const std::string& name) const {
  size_t n;
  return absl::SimpleAtoi(name, &n) && n < arena_ids_.size() ? arena_ids_[n] : name;
}

void World::CheckNothingLeaks() {
  // Forgotten ones too: nobody else is there.
  arenas_->EndAll();
  for (const std::string& lease : lease_ids_) leases_->ProcessGone(lease);
  lease_ids_.clear();
  uploads_ = nullptr;
  uploads_ = std::make_unique<Uploads>(options_.uploads, store_.get(), &clock_, watchdog_.get());
  SetDiskFull(false);
  for (const NameKind kind : {NameKind::kPrefix, NameKind::kSnapshot, NameKind::kSequence}) {
    DeleteManyRequest every;
    every.kind = kind;
    every.all = true;
    const absl::StatusOr<DeleteManyAnswer> deleted = store_->DeleteMany(Op(), every);
    Require(deleted.ok(), "names can't be deleted", deleted.status().message());
  }
  store_->ReapExpired();
  store_->FlushDue();
  CheckInvariants();
  Require(residency_->WaitForReclaim(), "images can't be reclaimed");
  const Store::Counts counts = store_->counts();
  Require(counts.sequences + counts.snapshots + counts.prefixes == 0, "names are left");
  const ResidencyStats stats = residency_->stats();
  Require(stats.pinned_images == 0, "a pin is left");
  Require(stats.hot_images == 0, "an image is left");
  Require(stats.cold_bytes == 0, "bytes are left in the cold store");
}

}  // namespace statepool::fuzz
