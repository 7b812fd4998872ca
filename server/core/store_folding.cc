// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Folding names that are at rest, and unfolding them. What a folded name is: folded_name.h.
#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "server/core/store.h"

namespace statepool {
namespace {

RecordedVersion RecordedOf(const Version& version) {
  const ImageInfo& image = version.image->info();
  return {version.id, version.parent, version.position,          version.exactness,
          image.id,   image.checksum, image.attachment_checksum, image.attachment_bytes};
}

// Recorded as it is: its record's versions are the newest of its ring.
bool IsRecorded(const Name& name) {
  if (name.unborn || name.busy() || name.dirty != DirtyTicket{}) return false;
  if (name.durable_revision != name.state.revision || name.state.durability == Durability::kVolatile) return false;
  return name.recorded.size() <= name.state.ring.size() &&
         std::equal(name.recorded.rbegin(), name.recorded.rend(), name.state.ring.rbegin());
}

}  // namespace

void Store::FoldIdle() {
  constexpr size_t kNamesPerHold = 200;  // then others have the lock
  // Most names that are not folded are in use; but after a rush of writes many wait for it.
  constexpr size_t kLooks = 2000, kMostLooks = 20'000;
  MutexLock lock(&mu_);
  const size_t most = std::min(names_.unfolded(), kMostLooks);
  for (size_t looked = 0, folded = 0; looked < most && names_.unfolded() > 0; ++looked) {
    if (looked >= kLooks && folded < looked / 2) return;
    if (looked % kNamesPerHold == kNamesPerHold - 1) {
      MutexUnlock unlock(&mu_);
      continue;
    }
    folded += FoldLocked(names_.NextUnfolded());
  }
}

bool Store::FoldLocked(Name* name) {
  if (!IsRecorded(*name)) return false;
  const Ring& ring = name->state.ring;
  const size_t unrecorded = ring.size() - name->recorded.size();
  absl::InlinedVector<const Image*, 8> images;
  for (size_t i = 0; i < ring.size(); ++i) {
    if (ring[i].use_count() != (i < unrecorded ? 1 : 2)) return false;  // another name has it, too
    images.push_back(ring[i]->image.get());
  }
  if (!images_->Disown(images)) return false;

  RestingName resting;
  resting.key = name->key;
  for (const VersionRef& version : ring) resting.versions.push_back(RecordedOf(*version));
  resting.recorded = name->recorded.size();
  resting.last_used = name->last_used;
  resting.forks = name->forks;
  SetHeadCounts(&name->state, nullptr);
  if (name->expiry_entry != kNever) expiry_.erase({name->expiry_entry, name});
  name->recorded.clear();
  name->state.ring.clear();
  resting.state = std::move(name->state);
  FoldedPtr folded = FoldedName::Pack(resting);
  if (const MonoTime deadline = resting.Deadline(); deadline != kNever) folded_expiry_.insert({deadline, folded.get()});
  names_.Fold(name, std::move(folded));
  return true;
}

std::unique_ptr<Name> Store::UnfoldLocked(const FoldedName& folded) {
  RestingName resting = folded.Unpack();
  folded_expiry_.erase({resting.Deadline(), &folded});
  auto name = std::make_unique<Name>(resting.key);
  name->state = std::move(resting.state);
  for (const RecordedVersion& v : resting.versions) {
    ImageRef image = images_->Adopt(
        {v.image, name->key.tenant, name->state.layout, v.checksum, v.attachment_checksum, v.attachment_bytes});
    name->state.ring.push_back(
        std::make_shared<const Version>(Version{v.id, v.parent, v.position, v.exactness, std::move(image)}));
  }
  name->recorded.assign(name->state.ring.end() - static_cast<ptrdiff_t>(resting.recorded), name->state.ring.end());
  name->durable_revision = name->state.revision;
  name->last_used = resting.last_used;
  name->forks = resting.forks;
  SetHeadCounts(nullptr, &name->state);
  ScheduleExpiryLocked(name.get());
  return name;
}

NameInfo Store::InfoOfResting(const RestingName& name, bool with_history) const {
  const auto info_of = [](const RecordedVersion& v) {
    return VersionInfo{v.id, v.parent, v.position, v.exactness, v.checksum, v.attachment_bytes, Tier::kCold};
  };
  NameInfo info = InfoOf(name.key, name.state, name.Deadline());
  info.version = info_of(name.versions.back());
  info.durable_revision = name.durable_revision();
  if (!with_history) return info;
  for (auto version = name.versions.rbegin(); version != name.versions.rend(); ++version) {
    info.history.push_back(info_of(*version));
  }
  CountRollbackTokens(&info);
  return info;
}

// ---- recovery

void Store::InsertRecoveredLocked(RestingName name) {
  if (const TombstoneTable::PrefixPlace ghost = tombstones_.Remove(name.key); ghost != nullptr) prefixes_.Erase(*ghost);
  if (name.state.prefix != nullptr) prefixes_.Insert(*name.state.prefix);
  ++layout_names_[name.state.layout.get()];
  FoldedPtr folded = FoldedName::Pack(name);
  if (const MonoTime deadline = name.Deadline(); deadline != kNever) folded_expiry_.insert({deadline, folded.get()});
  names_.InsertRecovered(std::move(folded));
}

// `images`: of all records, one entry for each version. What occurs more than once can't be a folded name's own.
void Store::UnfoldSharedLocked(std::vector<ImageId> images) {
  std::sort(images.begin(), images.end());
  absl::flat_hash_set<ImageId> shared;
  for (size_t i = 1; i < images.size(); ++i) {
    if (images[i] == images[i - 1]) shared.insert(images[i]);
  }
  if (shared.empty()) return;
  absl::flat_hash_map<VersionId, VersionRef> versions;
  for (auto it = names_.begin(); it != names_.end(); ++it) {
    const RestingName resting = it->folded()->Unpack();
    if (std::none_of(resting.versions.begin(), resting.versions.end(),
                     [&shared](const RecordedVersion& v) { return shared.contains(v.image); }))
      continue;
    Name* name = names_.Unfold(*it);
    for (Ring* ring : {&name->state.ring, &name->recorded}) {
      for (VersionRef& version : *ring) version = versions.try_emplace(version->id, version).first->second;
    }
  }
}

}  // namespace statepool
