// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/part_assembly.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"

namespace statepool {

class PartAssemblies::Assembly {
 public:
  enum class Progress : uint8_t { kMissing, kCopying, kThere };

  // Set once.
  Key key;
  Device* device = nullptr;
  char* room = nullptr;
  MonoTime expires = 0;

  // Guarded by PartAssemblies::mu_.
  uint64_t bytes = 0;           // that count in open_bytes_, while it is not published
  std::vector<Progress> parts;  // of each rank
  uint32_t missing = 0;         // that are not kThere
  uint32_t copying = 0;         // that are kCopying
  absl::flat_hash_set<std::string> arenas;
  Slot slot;                                  // until all parts are there, or it was dropped and nobody copies
  absl::flat_hash_set<uint32_t> attached_by;  // ranks that gave the attachment
  std::string attachment;                     // until it is taken, or dropped
  Checksum attachment_checksum = 0;
  bool dropped = false;
  std::optional<NameInfo> published;
};

namespace {

absl::Status TooMany(uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
               "too many versions wait for parts of other ranks")
      .Field("request_id")
      .Meta("limit", limit)
      .RetryAfter(absl::Milliseconds(50));
}

}  // namespace

absl::Status PartAssemblies::Unknown() {
  return Error(absl::StatusCode::kNotFound, "UPLOAD_UNKNOWN",
               "the other ranks' parts did not come in time, or a rank is gone: all ranks store the version again")
      .Field("request_id");
}

absl::Status PartAssemblies::BeingPublished() {
  return Error(absl::StatusCode::kAborted, "UPLOAD_BUSY", "the version is being published now")
      .Field("request_id")
      .RetryAfter(absl::Milliseconds(20));
}

// For more of an assembly that has `own_bytes` already. One alone may have more than all together.
bool PartAssemblies::HasRoom(uint64_t bytes, uint64_t own_bytes) const {
  return open_bytes_ == own_bytes || bytes <= options_.max_bytes - std::min(open_bytes_, options_.max_bytes);
}

// REQUIRES: the part is there, or is not being brought.
absl::Status PartAssemblies::Attach(Assembly* assembly, const Part& part) {
  if (part.attachment.empty()) return absl::OkStatus();
  const Checksum checksum = ChecksumOf(part.attachment);
  if (!assembly->attached_by.empty()) {
    if (checksum != assembly->attachment_checksum) {
      return Invalid("INVALID_OPTION", "attachment",
                     "this version has another attachment: one rank gives it, or several the same");
    }
    assembly->attached_by.insert(part.rank);
    return absl::OkStatus();
  }
  if (assembly->parts[part.rank] == Assembly::Progress::kThere) {
    return Invalid(
        "INVALID_OPTION", "attachment",
        "this rank's part is there already, without an attachment: store the version with another request_id");
  }
  if (!HasRoom(part.attachment.size(), assembly->bytes)) return TooMany(options_.max_bytes);
  assembly->attached_by.insert(part.rank);
  assembly->attachment = std::string(part.attachment);
  assembly->attachment_checksum = checksum;
  assembly->bytes += part.attachment.size();
  open_bytes_ += part.attachment.size();
  return absl::OkStatus();
}

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::JoinLocked(const Key& key, const Part& part) {
  const auto it = assemblies_.find(key);
  if (it == assemblies_.end()) return Joined();
  Assembly& assembly = *it->second;
  if (assembly.missing == 0 && !assembly.published.has_value()) return BeingPublished();
  Assembly::Progress& progress = assembly.parts[part.rank];
  if (progress == Assembly::Progress::kCopying) {
    return Error(absl::StatusCode::kAborted, "UPLOAD_BUSY", "another call brings this very part now")
        .Field("request_id")
        .RetryAfter(absl::Milliseconds(20));
  }
  if (absl::Status attached = Attach(&assembly, part); !attached.ok()) return attached;
  if (progress == Assembly::Progress::kThere) return Joined{it->second};
  progress = Assembly::Progress::kCopying;
  assembly.arenas.emplace(part.arena);
  ++assembly.copying;
  return Joined{it->second, true};
}

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::Join(const Key& key, const Part& part) {
  Expire();
  MutexLock lock(&mu_);
  return JoinLocked(key, part);
}

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::Begin(const Key& key, const Part& part, uint64_t bytes,
                                                             Device* device, Slot* slot) {
  MutexLock lock(&mu_);
  const absl::StatusOr<Joined> joined = JoinLocked(key, part);
  if (!joined.ok() || joined->assembly != nullptr) return joined;
  if (open_ >= options_.max_open) return TooMany(options_.max_open);
  if (!HasRoom(bytes + part.attachment.size(), /*own_bytes=*/0)) return TooMany(options_.max_bytes);
  auto assembly = std::make_shared<Assembly>();
  assembly->key = key;
  assembly->device = device;
  assembly->room = slot->writer->room();
  assembly->bytes = bytes;
  assembly->expires = After(clock_->Now(), options_.timeout);
  assembly->parts.resize(key.tp_size, Assembly::Progress::kMissing);
  assembly->missing = key.tp_size;
  assembly->slot = std::move(*slot);
  ++open_;
  open_bytes_ += bytes;
  begun_.push_back(assembly);
  assemblies_.emplace(key, std::move(assembly));
  return JoinLocked(key, part);
}

char* PartAssemblies::room(const Assembly& assembly) { return assembly.room; }
Device* PartAssemblies::device(const Assembly& assembly) { return assembly.device; }

absl::StatusOr<uint32_t> PartAssemblies::Arrived(const Ref& assembly, uint32_t rank) {
  Slot slot;  // goes after the lock
  MutexLock lock(&mu_);
  assembly->parts[rank] = Assembly::Progress::kThere;
  --assembly->missing;
  --assembly->copying;
  if (!assembly->dropped) return assembly->missing;
  if (assembly->copying == 0) slot = std::move(assembly->slot);
  return Unknown();
}

void PartAssemblies::Failed(const Ref& assembly, uint32_t rank) {
  Slot slot;
  MutexLock lock(&mu_);
  assembly->parts[rank] = Assembly::Progress::kMissing;
  --assembly->copying;
  if (assembly->attached_by.erase(rank) > 0 && assembly->attached_by.empty() && !assembly->dropped) {
    assembly->bytes -= assembly->attachment.size();
    open_bytes_ -= assembly->attachment.size();
    std::string().swap(assembly->attachment);
  }
  if (assembly->dropped && assembly->copying == 0) slot = std::move(assembly->slot);
}

PartAssemblies::Whole PartAssemblies::Take(const Ref& assembly) {
  MutexLock lock(&mu_);
  return {std::move(assembly->slot), std::exchange(assembly->attachment, {})};
}

void PartAssemblies::Published(const Ref& assembly, const NameInfo& info) {
  Slot none;  // theirs are taken
  MutexLock lock(&mu_);
  assembly->published = info;
  --open_;
  open_bytes_ -= assembly->bytes;
  published_.push_back(assembly);
  for (; published_.size() > options_.max_remembered; published_.pop_front())
    DropLocked(published_.front().get(), &none);
}

void PartAssemblies::Drop(const Ref& assembly) {
  Slot slot;
  MutexLock lock(&mu_);
  DropLocked(assembly.get(), &slot);
}

void PartAssemblies::DropLocked(Assembly* assembly, Slot* slot) {
  if (assembly->dropped) return;
  assembly->dropped = true;
  if (!assembly->published.has_value()) {
    --open_;
    open_bytes_ -= assembly->bytes;
  }
  std::string().swap(assembly->attachment);  // rows refer to the assembly for longer
  if (assembly->copying == 0) *slot = std::move(assembly->slot);
  assemblies_.erase(assembly->key);
}

PartAssemblies::State PartAssemblies::StateOf(const Assembly& assembly) const {
  MutexLock lock(&mu_);
  if (assembly.published.has_value()) return {State::kPublished, 0, *assembly.published};
  if (assembly.dropped || (assembly.missing > 0 && clock_->Now() >= assembly.expires)) return {State::kDropped, 0, {}};
  return {assembly.missing > 0 ? State::kOpen : State::kWhole, assembly.missing, {}};
}

void PartAssemblies::ArenaEnded(absl::string_view arena) {
  std::vector<Slot> slots;
  MutexLock lock(&mu_);
  std::vector<Ref> gone;
  for (const auto& [key, assembly] : assemblies_) {
    const bool is_open = assembly->missing > 0 && !assembly->published.has_value();
    if (is_open && assembly->arenas.contains(arena)) gone.push_back(assembly);
  }
  for (const Ref& assembly : gone) DropLocked(assembly.get(), &slots.emplace_back());
}

void PartAssemblies::CheckInvariants() const {
  const auto require = [](bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "PartAssemblies: %s\n", what);
    std::abort();
  };
  MutexLock lock(&mu_);
  uint64_t open = 0, open_bytes = 0;
  for (const auto& [key, assembly] : assemblies_) {
    const auto count = [&parts = assembly->parts](Assembly::Progress progress) {
      return static_cast<uint32_t>(std::count(parts.begin(), parts.end(), progress));
    };
    require(assembly->key == key && !assembly->dropped, "one that was dropped, or under another's key");
    require(assembly->missing == assembly->parts.size() - count(Assembly::Progress::kThere), "parts are miscounted");
    require(assembly->copying == count(Assembly::Progress::kCopying), "copies are miscounted");
    require(!assembly->attached_by.empty() || assembly->attachment.empty(), "an attachment that nobody gave");
    require(assembly->missing == 0 || (assembly->slot.writer != nullptr && !assembly->published),
            "an open one has no slot");
    if (assembly->published.has_value()) continue;
    ++open;
    open_bytes += assembly->bytes;
  }
  require(open == open_ && open_ <= options_.max_open, "open ones are miscounted, or too many");
  require(open_bytes == open_bytes_, "bytes of open ones are miscounted");
  require(begun_.size() <= 2 * (uint64_t{options_.max_open} + 64), "ended ones pile up behind an open one");
  require(published_.size() <= options_.max_remembered, "too many published ones are remembered");
}

void PartAssemblies::Expire() {
  std::vector<Slot> slots;
  const MonoTime now = clock_->Now();
  MutexLock lock(&mu_);
  const auto may_go = [now](const Assembly& begun) {
    return begun.missing == 0 || begun.dropped || now >= begun.expires;
  };
  for (; !begun_.empty() && may_go(*begun_.front()); begun_.pop_front()) {
    if (begun_.front()->missing > 0) DropLocked(begun_.front().get(), &slots.emplace_back());
  }
  if (begun_.size() > 2 * open_ + 64) {  // behind one that is open yet
    std::erase_if(begun_, [](const Ref& begun) { return begun->missing == 0 || begun->dropped; });
  }
  for (; !published_.empty() && now >= published_.front()->expires; published_.pop_front())
    DropLocked(published_.front().get(), &slots.emplace_back());
}

}  // namespace statepool
