// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/store.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"

namespace statepool {
absl::Status Store::ValidateKey(const NameKey& key, absl::string_view field) {
  RETURN_IF_ERROR(ValidateName(key.name, field));
  Hash128 hash;
  if (key.kind == NameKind::kPrefix && !Hash128FromHex(key.name, &hash)) {
    return Invalid("INVALID_NAME", field,
                   "the name of a prefix is 32 lower-case hex digits, as PublishPrefix and MatchPrefix give it");
  }
  return absl::OkStatus();
}

Store::Store(StoreOptions options, ImageStore* images, NameLog* log, const Clock* clock)
    : options_(std::move(options)),
      images_(images),
      log_(log),
      clock_(clock),
      ids_(log->epoch()),
      layouts_(options_.max_layouts, options_.max_layout_bytes, log, clock),
      hasher_(log->hash_key(), options_.prefix_key_bits),
      names_([this](const FoldedName& folded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return UnfoldLocked(folded); }),
      write_behind_(options_.write_behind) {}

Store::~Store() { images_->Detach(); }

absl::StatusOr<LayoutRegistry::Entry> Store::RegisterLayout(const Op& op, LayoutRef layout, absl::string_view alias) {
  RETURN_IF_ERROR(op.Check(*clock_));
  return layouts_.Register(op, std::move(layout), alias);
}

absl::Status Store::DeleteLayout(const Op& op, absl::string_view layout) {
  RETURN_IF_ERROR(op.Check(*clock_));
  ReapExpired();  // they have no layout any more
  const auto unused = [&](const Layout& asked, absl::FunctionRef<void()> hide) -> absl::Status {
    MutexLock lock(&mu_);
    // Records of names that are gone still tell their layout.
    for (bool buried = false;;) {
      if (const auto uses = layout_names_.find(&asked); uses != layout_names_.end()) {
        return Error(absl::StatusCode::kFailedPrecondition, "LAYOUT_IN_USE",
                     absl::StrCat(uses->second, " names have this layout; delete them first"))
            .Field("layout")
            .Meta("names", uses->second);
      }
      if (buried) break;
      RETURN_IF_ERROR(BuryLocked());
      buried = std::all_of(graves_.begin(), graves_.end(), [](const auto& g) { return g.second.kept; });
      if (!buried) RETURN_IF_ERROR(WaitLocked(op));
    }
    // From here on no new name can take it: Write asks whether it is registered, under the lock.
    hide();
    return absl::OkStatus();
  };
  const absl::StatusOr<LayoutRef> deleted = layouts_.Delete(op, layout, unused);
  if (deleted.ok()) images_->LayoutDeleted(op.tenant, **deleted);
  return deleted.status();
}

// ---- finding

Name* Store::FindLocked(const NameKey& key) {
  Name* name = names_.Find(key);
  if (name == nullptr || name->unborn) return nullptr;
  if (!IsExpired(*name)) return name;
  if (!name->busy()) {
    ForgetLocked(name, TombstoneTable::Reason::kExpired);
    ++evictions_["expired"];
  }
  return nullptr;
}

absl::Status Store::MissLocked(const NameKey& key, absl::string_view field) {
  std::string reason, why;
  absl::StatusCode code = absl::StatusCode::kNotFound;
  const Name* name = names_.Find(key);
  std::optional<TombstoneTable::Reason> stone = tombstones_.Find(key);
  if (name != nullptr && !name->unborn) stone = TombstoneTable::Reason::kExpired;  // but still being recorded
  if (stone.has_value()) {
    switch (*stone) {
      case TombstoneTable::Reason::kDeleted: reason = "DELETED", why = "it was deleted"; break;
      case TombstoneTable::Reason::kExpired: reason = "EXPIRED", why = "its time was over"; break;
      case TombstoneTable::Reason::kEvicted: reason = "EVICTED", why = "it made room for others"; break;
      case TombstoneTable::Reason::kNotDurable:
        reason = "NOT_DURABLE_AT_RESTART", why = "it was not on disk when the daemon stopped; compute the state again";
        break;
      case TombstoneTable::Reason::kCorrupt:
        reason = "CORRUPT", why = "its record on disk can't be read; compute the state again";
        code = absl::StatusCode::kDataLoss;
        break;
    }
  } else if (tombstones_.uncertain()) {
    reason = "UNKNOWN_SINCE_RESTART",
    why = "it may never have been, or was lost when the daemon last ended without an orderly stop";
  } else if (tombstones_.overflowed()) {
    reason = "UNKNOWN", why = "it may never have been, or went too long ago to tell why";
  } else if (key.kind == NameKind::kPrefix) {
    reason = "NEVER_PUBLISHED", why = "it was never published";
  } else {
    reason = "NEVER_CREATED", why = "it was never made";
  }
  ++misses_[reason];
  static constexpr absl::string_view kKinds[] = {"", "sequence", "snapshot", "prefix"};
  Error error(code, reason, absl::StrCat("no ", kKinds[static_cast<int>(key.kind)], " '", key.name, "': ", why));
  error.Field(field);
  if (reason == "UNKNOWN_SINCE_RESTART" || reason == "NOT_DURABLE_AT_RESTART")
    error.Meta("incarnation", options_.incarnation);
  return error;
}

absl::StatusOr<Store::Found> Store::ResolveLocked(const Source& source, absl::string_view field) {
  RETURN_IF_ERROR(ValidateKey(source.key, field));
  if (source.position.has_value()) RETURN_IF_ERROR(ValidatePosition(*source.position, "position"));
  Name* name = FindLocked(source.key);
  if (name == nullptr) return MissLocked(source.key, field);
  const NameState& state = name->state;
  if (!source.layout.empty()) {
    absl::StatusOr<LayoutRef> layout = layouts_.Find(source.key.tenant, source.layout);
    RETURN_IF_ERROR(layout.status());
    if ((*layout)->fingerprint() != state.layout->fingerprint()) {
      ++misses_["LAYOUT_MISMATCH"];
      return LayoutMismatch(absl::StatusCode::kNotFound, **layout, *state.layout);
    }
  }
  if (source.version_id != 0) {
    const auto version = std::find_if(state.ring.begin(), state.ring.end(),
                                      [&](const VersionRef& v) { return v->id == source.version_id; });
    if (version == state.ring.end()) {
      ++misses_["VERSION_MISMATCH"];
      return Error(absl::StatusCode::kNotFound, "VERSION_MISMATCH",
                   absl::StrCat("'", source.key.name, "' has no version ", source.version_id,
                                " (any more); read its head, or an older position"))
          .Field("version_id");
    }
    if (!source.position.has_value() || *source.position == (*version)->position)
      return Found{name, static_cast<size_t>(version - state.ring.begin())};
  } else if (!source.position.has_value()) {
    return Found{name, state.ring.size() - 1};
  } else {
    for (size_t i = state.ring.size(); i-- > 0;) {
      if (state.ring[i]->position == *source.position) return Found{name, i};
    }
  }
  ++misses_["POSITION_MISMATCH"];
  return Error(absl::StatusCode::kNotFound, "POSITION_MISMATCH",
               absl::StrCat("'", source.key.name, "' has no version at position ", *source.position, "; it has ",
                            PositionsOf(state.ring)))
      .Field("position")
      .Meta("positions", PositionsOf(state.ring));
}

VersionInfo Store::InfoOf(const Version& version) const {
  const ImageInfo& image = version.image->info();
  return {version.id,
          version.parent,
          version.position,
          version.exactness,
          image.checksum,
          image.attachment_bytes,
          images_->tier(*version.image)};
}

void Store::AddHistory(const Ring& ring, NameInfo* info) const {
  info->history.clear();
  for (auto version = ring.rbegin(); version != ring.rend(); ++version) info->history.push_back(InfoOf(**version));
  CountRollbackTokens(info);
}

void Store::CountRollbackTokens(NameInfo* info) {
  std::vector<int64_t> positions;  // newest first
  for (const VersionInfo& version : info->history) positions.push_back(version.position);
  info->rollback_tokens = static_cast<uint32_t>(RollbackTokens(positions));
}

absl::Time Store::ExpireTimeOf(const NameState& state, MonoTime deadline) const {
  if (deadline == kNever) return absl::InfiniteFuture();
  if (state.expire_at <= deadline) return state.expire_time;
  return clock_->WallNow() + absl::Nanoseconds(deadline - clock_->Now());
}

NameInfo Store::InfoOf(const NameKey& key, const NameState& state, MonoTime deadline) const {
  NameInfo info;
  info.key = key;
  info.layout = state.layout;
  info.revision = state.revision;
  info.durability = state.durability;
  info.max_history = state.max_history;
  info.ttl = state.ttl;
  info.expire_time = ExpireTimeOf(state, deadline);
  info.create_time = state.create_time;
  return info;
}

NameInfo Store::InfoLocked(const Name& name, const Version& version) const {
  NameInfo info = InfoOf(name.key, name.state, name.Deadline());
  info.version = InfoOf(version);
  info.durable_revision = name.durable_revision;
  if (name.dirty != DirtyTicket{}) info.flush_lag = absl::Nanoseconds(clock_->Now() - name.dirty_since);
  return info;
}

// ---- deciding

absl::Status Store::ApplyOptions(const NameOptions& options, NameState* state) const {
  if (options.durability.has_value()) state->durability = *options.durability;
  if (options.max_history.has_value()) {
    if (*options.max_history < 1 || *options.max_history > options_.max_history) {
      return Invalid("INVALID_OPTION", "options.max_history", absl::StrCat("must be 1..", options_.max_history));
    }
    state->max_history = *options.max_history;
  }
  if (options.ttl.has_value() || options.expire_time.has_value() || options.never_expire) {
    state->ttl = absl::InfiniteDuration();
    state->expire_time = absl::InfiniteFuture();
    state->expire_at = kNever;
  }
  if (options.ttl.has_value()) {
    if (*options.ttl <= absl::ZeroDuration() || *options.ttl > options_.max_ttl) {
      return Invalid("INVALID_OPTION", "options.ttl",
                     absl::StrCat("must be more than 0 and at most ", absl::FormatDuration(options_.max_ttl)));
    }
    state->ttl = *options.ttl;
  }
  if (options.expire_time.has_value()) {
    const absl::Duration left = *options.expire_time - clock_->WallNow();
    if (left <= absl::ZeroDuration() || left > options_.max_ttl) {
      return Invalid("INVALID_OPTION", "options.expire_time",
                     absl::StrCat("must be in the future, at most ", absl::FormatDuration(options_.max_ttl), " away"));
    }
    state->expire_time = *options.expire_time;
    state->expire_at = After(clock_->Now(), left);
  }
  return absl::OkStatus();
}

absl::Status Store::CheckIfRevision(const Name* name, const std::optional<uint64_t>& if_revision) {
  const Revision revision = name == nullptr ? 0 : name->state.revision;
  if (!if_revision.has_value() || *if_revision == revision) return absl::OkStatus();
  return Error(absl::StatusCode::kAborted, "REVISION_MISMATCH",
               absl::StrCat("if_revision is ", *if_revision, ", the name's revision is ", revision,
                            revision == 0 ? " (it does not exist)" : "", "; read it again before you write"))
      .Field("if_revision")
      .Meta("revision", revision);
}

absl::StatusOr<const AnsweredRequest*> Store::FindAnswered(const NameState& state, const RequestId& request) {
  if (request.id.empty()) return nullptr;
  for (const AnsweredRequest& answered : state.requests) {
    if (answered.id != request.id) continue;
    if (answered.body_hash == request.body_hash) return &answered;
    return RequestIdReused();
  }
  return nullptr;
}

absl::StatusOr<bool> Store::ReplayLocked(const Name& name, const RequestId& request, NameInfo* info) const {
  const absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name.state, request);
  RETURN_IF_ERROR(answered.status());
  if (*answered != nullptr) *info = InfoOfAnswered(name, **answered);
  return *answered != nullptr;
}

NameInfo Store::InfoOfAnswered(const Name& name, const AnsweredRequest& answered) const {
  NameInfo info = InfoLocked(name, *name.state.head());
  info.revision = answered.revision;
  if (info.version.id != answered.version) {
    info.version = VersionInfo{.exactness = Exactness::kUnknown, .tier = Tier::kUnknown};
    for (const VersionRef& version : name.state.ring) {
      if (version->id == answered.version) info.version = InfoOf(*version);
    }
  }
  info.version.id = answered.version;
  info.version.position = answered.position;
  info.version.checksum = answered.checksum;
  info.replayed = true;
  return info;
}

NameState Store::NewState(LayoutRef layout) const {
  NameState state;
  state.layout = std::move(layout);
  state.create_time = clock_->WallNow();
  state.durability = options_.default_durability;
  state.max_history = options_.default_max_history;
  state.ttl = options_.default_ttl;
  return state;
}

std::function<void()> Store::UseOf(const NameKey& key, size_t forks) {
  return [this, key, forks]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Name* name = FindLocked(key);
    if (name == nullptr) return;
    UseLocked(name);
    if (key.kind == NameKind::kPrefix) name->forks += static_cast<uint32_t>(forks);
  };
}

VersionRef Store::NewVersion(VersionId parent, int64_t position, Exactness exactness, ImageRef image) {
  return std::make_shared<const Version>(Version{ids_.Next(), parent, position, exactness, std::move(image)});
}

void Store::GiveRevision(const RequestId& request, NameState* state) {
  if (state->ring.size() > state->max_history) {
    state->ring.erase(state->ring.begin(), state->ring.end() - state->max_history);
  }
  state->revision = ids_.Next();
  if (state->created == 0) state->created = state->revision;
  if (request.id.empty()) return;
  if (state->requests.size() >= kMaxRequestIds) state->requests.erase(state->requests.begin());
  const Version& head = *state->head();
  state->requests.push_back(
      {request.id, request.body_hash, state->revision, head.id, head.position, head.image->info().checksum});
}

// ---- bookkeeping

void Store::SetHeadCounts(const NameState* old_state, const NameState* new_state) const {
  if (new_state != nullptr) new_state->head()->image->AddHead();
  if (old_state != nullptr) old_state->head()->image->DropHead();
}

void Store::PublishLocked(Name* name, NameState state, uint64_t dirty_group, MonoTime now) {
  const bool is_new = name->state.ring.empty();
  SetHeadCounts(is_new ? nullptr : &name->state, &state);
  if (is_new) {
    if (!name->unborn) ++layout_names_[state.layout.get()];
    if (const TombstoneTable::PrefixPlace ghost = tombstones_.Remove(name->key); ghost != nullptr)
      prefixes_.Erase(*ghost);
  } else if (name->state.prefix != nullptr) {
    prefixes_.Erase(*name->state.prefix);
  }
  if (state.prefix != nullptr) prefixes_.Insert(*state.prefix);
  name->state = std::move(state);
  name->unborn = false;
  name->last_used = now;
  ScheduleExpiryLocked(name);
  // Recorded already, or never to be.
  if (dirty_group == 0 || name->state.durability == Durability::kVolatile) {
    SetDirtyLocked(name, {}, 0);
    name->dirty_next = {};
    return;
  }
  const DirtyTicket ticket{dirty_group, ids_.Next()};
  name->changed = now;
  if (name->dirty == DirtyTicket{}) {
    SetDirtyLocked(name, ticket, now);
  } else {
    SetDirtyLocked(name, name->dirty, name->dirty_since);  // for another image
  }
  if (name->recording && name->dirty_next == DirtyTicket{}) {
    name->dirty_next = ticket;
    name->dirty_next_since = now;
  }
}

void Store::DropLayoutUseLocked(const Layout& layout) {
  if (const auto uses = layout_names_.find(&layout); --uses->second == 0) layout_names_.erase(uses);
}

void Store::ScheduleExpiryLocked(Name* name) {
  const MonoTime deadline = name->Deadline();
  if (name->expiry_entry <= deadline && name->expiry_entry != kNever) return;  // looked at again in time
  if (name->expiry_entry != kNever) expiry_.erase({name->expiry_entry, name});
  name->expiry_entry = deadline;
  if (deadline != kNever) expiry_.insert({deadline, name});
}

absl::Duration Store::FlushLagLocked() const {
  if (dirty_.empty()) return absl::ZeroDuration();
  return absl::Nanoseconds(clock_->Now() - dirty_.begin()->second->dirty_since);
}

absl::Status Store::AdmitLocked(Durability durability, const Layout& layout, const Image* image,
                                WriteBehind::Adding* adding) const {
  if (durability != Durability::kWriteBehind) return absl::OkStatus();
  if (image != nullptr && images_->persisted(*image)) return absl::OkStatus();
  const ImageId id = image == nullptr ? 0 : image->info().id;
  const uint64_t attachment_bytes = image == nullptr ? 0 : image->info().attachment_bytes;
  const absl::Status behind =
      write_behind_.Admit(id, layout.state_bytes() + attachment_bytes, FlushLagLocked(), adding);
  // Why it is behind helps more.
  return behind.ok() || ReasonOf(flush_status_) != "COLD_FULL" ? behind : flush_status_;
}

void Store::SetDirtyLocked(Name* name, DirtyTicket ticket, MonoTime since) {
  if (name->dirty != DirtyTicket{}) dirty_.erase(name->dirty);
  name->dirty = ticket;
  name->dirty_since = since;
  if (ticket != DirtyTicket{}) dirty_.emplace(ticket, name);
  const Image* image = ticket == DirtyTicket{} ? nullptr : name->state.head()->image.get();
  if (image != nullptr && images_->persisted(*image)) image = nullptr;
  const ImageId waits_for = image == nullptr ? 0 : image->info().id;
  if (waits_for == name->waits_for) return;
  if (image != nullptr) write_behind_.Add(*image);
  if (name->waits_for != 0) write_behind_.Remove(name->waits_for);
  name->waits_for = waits_for;
}

std::vector<Name*> Store::GroupLocked(const Name& name) {
  std::vector<Name*> group;
  if (name.dirty == DirtyTicket{}) return group;
  for (auto it = dirty_.lower_bound({name.dirty.group, 0}); it != dirty_.end(); ++it) {
    if (it->first.group != name.dirty.group) break;
    group.push_back(it->second);
  }
  return group;
}

void Store::ForgetLocked(Name* name, std::optional<TombstoneTable::Reason> reason) {
  DropLayoutUseLocked(*name->state.layout);
  SetHeadCounts(&name->state, nullptr);
  SetDirtyLocked(name, {}, 0);
  if (name->expiry_entry != kNever) expiry_.erase({name->expiry_entry, name});
  if (!name->recorded.empty()) graves_[name->key].versions = std::move(name->recorded);
  if (reason.has_value()) {
    EraseGhostsLocked(tombstones_.Add(name->key, *reason, name->state.prefix));
  } else if (name->state.prefix != nullptr) {
    prefixes_.Erase(*name->state.prefix);
  }
  names_.Erase(name);
}

void Store::EraseGhostsLocked(const std::vector<TombstoneTable::PrefixPlace>& gone) {
  for (const TombstoneTable::PrefixPlace& place : gone) prefixes_.Erase(*place);
}

// ---- housekeeping

void Store::ReapExpired() {
  constexpr int kNamesPerHold = 1000;  // then others have the lock
  MutexLock lock(&mu_);
  const MonoTime now = clock_->Now();
  for (int looked = 1; !expiry_.empty() && expiry_.begin()->first <= now; ++looked) {
    if (looked % kNamesPerHold == 0) MutexUnlock unlock(&mu_);
    if (expiry_.empty()) break;
    Name* name = expiry_.begin()->second;
    expiry_.erase(expiry_.begin());
    name->expiry_entry = kNever;
    if (IsExpired(*name) && !name->busy()) {
      ForgetLocked(name, TombstoneTable::Reason::kExpired);
      ++evictions_["expired"];
      continue;
    }
    // Used since, or busy: looked at again at its deadline, or soon.
    name->expiry_entry = name->busy() ? After(now, absl::Milliseconds(100)) : name->Deadline();
    if (name->expiry_entry != kNever) expiry_.insert({name->expiry_entry, name});
  }
  for (int looked = 1; !folded_expiry_.empty() && folded_expiry_.begin()->first <= now; ++looked) {
    if (looked % kNamesPerHold == 0) {
      MutexUnlock unlock(&mu_);
      continue;
    }
    // Finding it unfolds it, and forgets it.
    const NameTable::View view = folded_expiry_.begin()->second->view();
    FindLocked({view.tenant, view.kind, std::string(view.name)});
  }
}

Store::Counts Store::counts() const {
  MutexLock lock(&mu_);
  return {names_.count(NameKind::kSequence), names_.count(NameKind::kSnapshot), names_.count(NameKind::kPrefix)};
}

bool Store::FlushIsUrgent() const {
  MutexLock lock(&mu_);
  return write_behind_.urgent() && clock_->Now() >= flush_again_;
}

uint64_t Store::max_dirty_bytes() const {
  MutexLock lock(&mu_);
  return write_behind_.max_dirty_bytes();
}

StoreStats Store::stats() const {
  MutexLock lock(&mu_);
  StoreStats stats;
  stats.sequences = names_.count(NameKind::kSequence);
  stats.snapshots = names_.count(NameKind::kSnapshot);
  stats.prefixes = names_.count(NameKind::kPrefix);
  stats.dirty_names = dirty_.size();
  stats.dirty_bytes = write_behind_.dirty_bytes();
  stats.max_dirty_bytes = write_behind_.max_dirty_bytes();
  stats.flush_lag = FlushLagLocked();
  stats.flush_status = flush_status_;
  stats.prefix_hits = prefix_hits_;
  stats.prefix_misses = prefix_misses_;
  stats.misses = misses_;
  stats.evictions = evictions_;
  return stats;
}

}  // namespace statepool
