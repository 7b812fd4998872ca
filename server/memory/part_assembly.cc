// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/part_assembly.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "server/core/error.h"

namespace statepool {

class PartAssemblies::Assembly {
 public:
  enum class Part : uint8_t { kMissing, kCopying, kThere };

  // Set once.
  Key key;
  Device* device = nullptr;
  char* room = nullptr;
  uint64_t bytes = 0;
  MonoTime expires = 0;

  // Guarded by PartAssemblies::mu_.
  std::vector<Part> parts;  // of each rank
  uint32_t missing = 0;     // that are not kThere
  uint32_t copying = 0;     // that are kCopying
  absl::flat_hash_set<std::string> arenas;
  std::unique_ptr<ImageWriter> writer;  // until all parts are there, or it was dropped and nobody copies
  bool dropped = false;
  std::optional<NameInfo> published;
};

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

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::JoinLocked(const Key& key, uint32_t rank,
                                                                  absl::string_view arena) {
  const auto it = assemblies_.find(key);
  if (it == assemblies_.end()) return Joined();
  Assembly& assembly = *it->second;
  if (assembly.missing == 0 && !assembly.published.has_value()) return BeingPublished();
  if (assembly.parts[rank] == Assembly::Part::kCopying) {
    return Error(absl::StatusCode::kAborted, "UPLOAD_BUSY", "another call brings this very part now")
        .Field("request_id")
        .RetryAfter(absl::Milliseconds(20));
  }
  if (assembly.parts[rank] == Assembly::Part::kThere) return Joined{it->second};
  assembly.parts[rank] = Assembly::Part::kCopying;
  assembly.arenas.emplace(arena);
  ++assembly.copying;
  return Joined{it->second, true};
}

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::Join(const Key& key, uint32_t rank, absl::string_view arena) {
  Expire();
  MutexLock lock(&mu_);
  return JoinLocked(key, rank, arena);
}

absl::StatusOr<PartAssemblies::Joined> PartAssemblies::Begin(const Key& key, uint32_t rank, absl::string_view arena,
                                                             uint64_t bytes, Device* device,
                                                             std::unique_ptr<ImageWriter>* writer) {
  MutexLock lock(&mu_);
  const absl::StatusOr<Joined> joined = JoinLocked(key, rank, arena);
  if (!joined.ok() || joined->assembly != nullptr) return joined;
  const bool too_many = open_ >= options_.max_open;
  if (too_many || (open_bytes_ > 0 && bytes > options_.max_bytes - std::min(open_bytes_, options_.max_bytes))) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
                 "too many versions wait for parts of other ranks")
        .Field("request_id")
        .Meta("limit", too_many ? options_.max_open : options_.max_bytes)
        .RetryAfter(absl::Milliseconds(50));
  }
  auto assembly = std::make_shared<Assembly>();
  assembly->key = key;
  assembly->device = device;
  assembly->room = (*writer)->room();
  assembly->bytes = bytes;
  assembly->expires = After(clock_->Now(), options_.timeout);
  assembly->parts.resize(key.tp_size, Assembly::Part::kMissing);
  assembly->missing = key.tp_size;
  assembly->writer = std::move(*writer);
  ++open_;
  open_bytes_ += bytes;
  begun_.push_back(assembly);
  assemblies_.emplace(key, std::move(assembly));
  return JoinLocked(key, rank, arena);
}

char* PartAssemblies::room(const Assembly& assembly) { return assembly.room; }
Device* PartAssemblies::device(const Assembly& assembly) { return assembly.device; }

absl::StatusOr<uint32_t> PartAssemblies::Arrived(const Ref& assembly, uint32_t rank) {
  std::unique_ptr<ImageWriter> writer;  // goes after the lock
  MutexLock lock(&mu_);
  assembly->parts[rank] = Assembly::Part::kThere;
  --assembly->missing;
  --assembly->copying;
  if (!assembly->dropped) return assembly->missing;
  if (assembly->copying == 0) writer = std::move(assembly->writer);
  return Unknown();
}

void PartAssemblies::Failed(const Ref& assembly, uint32_t rank) {
  std::unique_ptr<ImageWriter> writer;
  MutexLock lock(&mu_);
  assembly->parts[rank] = Assembly::Part::kMissing;
  --assembly->copying;
  if (assembly->dropped && assembly->copying == 0) writer = std::move(assembly->writer);
}

std::unique_ptr<ImageWriter> PartAssemblies::TakeWriter(const Ref& assembly) {
  MutexLock lock(&mu_);
  return std::move(assembly->writer);
}

void PartAssemblies::Published(const Ref& assembly, const NameInfo& info) {
  std::unique_ptr<ImageWriter> none;  // theirs are taken
  MutexLock lock(&mu_);
  assembly->published = info;
  --open_;
  open_bytes_ -= assembly->bytes;
  published_.push_back(assembly);
  for (; published_.size() > options_.max_remembered; published_.pop_front())
    DropLocked(published_.front().get(), &none);
}

void PartAssemblies::Drop(const Ref& assembly) {
  std::unique_ptr<ImageWriter> writer;
  MutexLock lock(&mu_);
  DropLocked(assembly.get(), &writer);
}

void PartAssemblies::DropLocked(Assembly* assembly, std::unique_ptr<ImageWriter>* writer) {
  if (assembly->dropped) return;
  assembly->dropped = true;
  if (!assembly->published.has_value()) {
    --open_;
    open_bytes_ -= assembly->bytes;
  }
  if (assembly->copying == 0) *writer = std::move(assembly->writer);
  assemblies_.erase(assembly->key);
}

PartAssemblies::State PartAssemblies::StateOf(const Assembly& assembly) const {
  MutexLock lock(&mu_);
  if (assembly.published.has_value()) return {State::kPublished, 0, *assembly.published};
  if (assembly.dropped || (assembly.missing > 0 && clock_->Now() >= assembly.expires)) return {State::kDropped, 0, {}};
  return {assembly.missing > 0 ? State::kOpen : State::kWhole, assembly.missing, {}};
}

void PartAssemblies::ArenaEnded(absl::string_view arena) {
  std::vector<std::unique_ptr<ImageWriter>> writers;
  MutexLock lock(&mu_);
  std::vector<Ref> gone;
  for (const auto& [key, assembly] : assemblies_) {
    const bool is_open = assembly->missing > 0 && !assembly->published.has_value();
    if (is_open && assembly->arenas.contains(arena)) gone.push_back(assembly);
  }
  for (const Ref& assembly : gone) DropLocked(assembly.get(), &writers.emplace_back());
}

void PartAssemblies::Expire() {
  std::vector<std::unique_ptr<ImageWriter>> writers;
  const MonoTime now = clock_->Now();
  MutexLock lock(&mu_);
  const auto may_go = [now](const Assembly& begun) {
    return begun.missing == 0 || begun.dropped || now >= begun.expires;
  };
  for (; !begun_.empty() && may_go(*begun_.front()); begun_.pop_front()) {
    if (begun_.front()->missing > 0) DropLocked(begun_.front().get(), &writers.emplace_back());
  }
  for (; !published_.empty() && now >= published_.front()->expires; published_.pop_front())
    DropLocked(published_.front().get(), &writers.emplace_back());
}

}  // namespace statepool
