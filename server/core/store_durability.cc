// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The durable side of the Store: records, write-behind, recovery, the orderly stop; and its invariants.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {
namespace {

// The first error, but before one that only says that a state is damaged another one.
void Keep(const absl::Status& status, absl::Status* error) {
  if (error->ok() || (absl::IsDataLoss(*error) && !status.ok() && !absl::IsDataLoss(status))) *error = status;
}

}  // namespace

bool Store::MustWaitLocked(const NameKey& key, bool to_record) {
  const Name* name = names_.FindUnfolded(key);
  if (name != nullptr && (name->reserved || (name->recording && (to_record || IsExpired(*name))))) return true;
  if (!to_record) return false;
  const auto grave = graves_.find(key);
  return grave != graves_.end() && grave->second.burying;
}

absl::Status Store::WaitLocked(const Op& op) {
  // Short waits, so that a cancellation and an injected clock are noticed; whoever makes a name idle signals.
  changed_.WaitFor(&mu_, std::chrono::milliseconds(50));
  return op.Check(*clock_);
}

NameRecord Store::RecordOf(const NameKey& key, const NameState& state, absl::Span<const VersionRef> versions) {
  NameRecord record;
  record.key = key;
  record.layout = state.layout->fingerprint();
  record.revision = state.revision;
  record.created = state.created;
  record.create_time = state.create_time;
  record.durability = state.durability;
  record.max_history = state.max_history;
  record.ttl = state.ttl;
  record.expire_time = state.expire_time;
  for (const VersionRef& v : versions) {
    const ImageInfo& image = v->image->info();
    record.versions.push_back({v->id, v->parent, v->position, v->exactness, image.id, image.checksum,
                               image.attachment_checksum, image.attachment_bytes});
  }
  record.requests = state.requests;
  if (state.prefix != nullptr) record.prefix = state.prefix->locator;
  return record;
}

// The ring's unbroken run of persisted versions that ends at the head: what a record may hold. REQUIRES: the head is
// persisted.
Ring Store::DurableRun(const NameState& state) const {
  size_t begin = state.ring.size() - 1;
  while (begin > 0 && images_->persisted(*state.ring[begin - 1]->image)) --begin;
  return Ring(state.ring.begin() + begin, state.ring.end());
}

absl::Status Store::RecordLocked(const Op& op, const std::vector<Name*>& names, uint64_t* written) {
  struct Item {
    Name* name;
    Revision group;
    NameState state;  // as it is recorded; the name may move on meanwhile
    Ring run;
    absl::Status status;
  };
  std::set<Revision> busy_groups;
  for (const Name* name : names) {
    if (MustWaitLocked(name->key, /*to_record=*/true)) busy_groups.insert(name->dirty.group);
  }
  std::vector<Item> items;
  for (Name* name : names) {
    if (name->dirty == DirtyTicket{} || busy_groups.contains(name->dirty.group)) continue;
    name->recording = true;
    items.push_back({name, name->dirty.group, name->state, {}, absl::OkStatus()});
  }
  if (items.empty()) return absl::OkStatus();

  absl::Status committed = absl::OkStatus();
  uint64_t bytes = 0;  // of images that were not on disk
  const MonoTime began = clock_->Now();
  {
    MutexUnlock unlock(&mu_);
    absl::flat_hash_map<Revision, absl::Status> failed;  // groups: none of their names is recorded then
    for (const Item& item : items) {
      if (failed.contains(item.group)) continue;
      const Image& image = *item.state.head()->image;
      const bool was_persisted = images_->persisted(image);
      if (absl::Status s = images_->Persist(op, item.state.head()->image); !s.ok()) {
        failed[item.group] = std::move(s);
      } else if (!was_persisted) {
        bytes += image.bytes();
      }
    }
    std::vector<NameChange> changes;
    for (Item& item : items) {
      if (const auto group = failed.find(item.group); group != failed.end()) {
        item.status = group->second;
        continue;
      }
      item.run = DurableRun(item.state);
      changes.push_back({item.name->key, RecordOf(item.name->key, item.state, item.run)});
    }
    if (!changes.empty()) committed = log_->Commit(changes, /*sync=*/true);
  }

  write_behind_.Wrote(bytes, absl::Nanoseconds(clock_->Now() - began));
  absl::Status error = committed;
  for (Item& item : items) {
    Name* name = item.name;
    name->recording = false;
    const DirtyTicket next = std::exchange(name->dirty_next, DirtyTicket{});
    if (item.status.ok()) item.status = committed;
    if (!item.status.ok()) {
      Keep(item.status, &error);
      // It stays where it is in the queue, unless it can never be recorded.
      if (!images_->loss(*item.state.head()->image).ok()) {
        SetDirtyLocked(name, next, name->dirty_next_since);
        if (next == DirtyTicket{}) lost_.insert(name->key);
      }
      continue;
    }
    name->recorded = std::move(item.run);
    name->durable_revision = item.state.revision;
    graves_.erase(name->key);
    ++*written;
    if (name->dirty != DirtyTicket{}) SetDirtyLocked(name, next, name->dirty_next_since);
  }
  changed_.SignalAll();
  return error;
}

std::vector<Name*> Store::NextBatchLocked(const FlushRound& round, Revision last, Revision* group, uint64_t* bytes) {
  constexpr size_t kNamesPerHold = 1000;  // looked at, then others have the lock
  std::vector<Name*> batch;
  size_t looked = 0;
  for (auto it = dirty_.lower_bound({*group + 1, 0}); it != dirty_.end() && it->first.group <= last;) {
    if (*bytes >= std::min(options_.flush_batch_bytes, round.bytes) || looked >= kNamesPerHold) return batch;
    if (it->second->dirty_since > round.due) break;
    const size_t begin = batch.size();
    const bool overdue = it->second->dirty_since <= round.overdue;
    bool idle = true;
    uint64_t group_bytes = 0;
    for (*group = it->first.group; it != dirty_.end() && it->first.group == *group; ++it, ++looked) {
      Name* name = it->second;
      batch.push_back(name);
      idle = idle && name->changed <= round.idle_since;
      if (!images_->persisted(*name->state.head()->image)) group_bytes += name->state.layout->state_bytes();
      group_bytes += 1024;  // its record
    }
    if (idle || overdue) {
      *bytes += group_bytes;
    } else {
      batch.resize(begin);
    }
  }
  *group = last;
  return batch;
}

absl::Status Store::RecordQueueLocked(const Op& op, FlushRound* round, uint64_t* written) {
  absl::Status error;
  // Whole groups, each once: others may join one while the lock is given back, and what was written together goes
  // together, so that a crash leaves all of it or none. Later groups are not for this round.
  const Revision last = dirty_.empty() ? 0 : dirty_.rbegin()->first.group;
  for (Revision group = 0; group != last && round->bytes > 0;) {
    uint64_t bytes = 0;
    const std::vector<Name*> batch = NextBatchLocked(*round, last, &group, &bytes);
    if (batch.empty()) {
      MutexUnlock unlock(&mu_);
      continue;
    }
    Keep(RecordLocked(op, batch, written), &error);
    round->bytes -= std::min(round->bytes, bytes);
  }
  return error;
}

absl::Status Store::BuryLocked() {
  for (;;) {
    std::vector<NameChange> changes;
    for (auto& [key, grave] : graves_) {
      const Name* name = names_.FindUnfolded(key);
      if (grave.kept || grave.burying || (name != nullptr && name->busy())) continue;
      grave.burying = true;
      changes.push_back({key, std::nullopt});
      if (changes.size() == 1000) break;
    }
    if (changes.empty()) return absl::OkStatus();
    absl::Status committed;
    {
      MutexUnlock unlock(&mu_);
      committed = log_->Commit(changes, /*sync=*/false);
    }
    for (const NameChange& change : changes) {
      const auto grave = graves_.find(change.key);
      if (committed.ok()) {
        graves_.erase(grave);
      } else {
        grave->second.burying = false;
      }
    }
    changed_.SignalAll();
    if (!committed.ok()) return committed;
  }
}

void Store::FlushDue() {
  constexpr absl::Duration kAfterFailure = absl::Seconds(1);
  const WriteBehindOptions& options = options_.write_behind;
  uint64_t written = 0;
  MutexLock lock(&mu_);
  const MonoTime now = clock_->Now();
  // A try costs a look at every byte that waits: on a full disk not all the time.
  if (now < flush_again_) return;
  const absl::Status buried = BuryLocked();
  const MonoTime interval = absl::ToInt64Nanoseconds(options.flush_interval);
  const bool urgent = write_behind_.urgent();
  FlushRound round;
  round.due = urgent ? now : now - interval;
  const uint64_t allowed = urgent ? UINT64_MAX : write_behind_.Allowance(now);
  round.bytes = allowed;
  // Names that rest come first: what is written of the others is soon out of date. Unless they wait too long.
  round.idle_since = now - interval;
  round.overdue = now - absl::ToInt64Nanoseconds(options.max_lag / 2);
  absl::Status recorded = RecordQueueLocked(Op(), &round, &written);
  round.idle_since = kNever;
  if (!absl::IsResourceExhausted(recorded)) recorded.Update(RecordQueueLocked(Op(), &round, &written));
  if (!urgent) write_behind_.Charge(allowed - round.bytes);
  flush_status_ = recorded.ok() ? buried : recorded;
  flush_again_ = flush_status_.ok() ? 0 : After(clock_->Now(), kAfterFailure);
}

// Errors: CORRUPT or DEVICE_FAILED if any of the names, or of all if there are none, can't become durable.
absl::Status Store::CheckLostLocked(absl::Span<const NameKey> keys) {
  if (lost_.empty()) return absl::OkStatus();
  for (auto it = lost_.begin(); it != lost_.end();) {
    const Name* name = names_.FindUnfolded(*it);
    const bool has_another =
        name == nullptr || name->dirty != DirtyTicket{} || images_->loss(*name->state.head()->image).ok();
    it = has_another ? lost_.erase(it) : std::next(it);
  }
  for (const NameKey& key : keys.empty() ? std::vector<NameKey>(lost_.begin(), lost_.end())
                                         : std::vector<NameKey>(keys.begin(), keys.end())) {
    if (!lost_.contains(key)) continue;
    const absl::Status loss = images_->loss(*names_.FindUnfolded(key)->state.head()->image);
    if (absl::IsUnavailable(loss)) {
      return Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED",
                   absl::StrCat("the state of '", key.name, "' can't become durable: ", loss.message()))
          .Field("names");
    }
    return Error(absl::StatusCode::kDataLoss, "CORRUPT",
                 absl::StrCat(
                     "the state of '", key.name,
                     "' changed in memory, or has another checksum than its writer told: it can't become durable"))
        .Field("names");
  }
  return absl::OkStatus();
}

absl::StatusOr<FlushAnswer> Store::Flush(const Op& op, absl::Span<const NameKey> keys) {
  if (keys.size() > options_.max_children) {
    return absl::Status(
        Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(keys.size(), " names in one Flush"))
            .Field("names")
            .Meta("limit", options_.max_children));
  }
  for (const NameKey& key : keys) RETURN_IF_ERROR(ValidateKey(key, "names"));
  if (keys.empty()) ReapExpired();  // they are no names any more
  FlushAnswer answer;
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(CheckLostLocked(keys));
  if (keys.empty()) {
    answer.names = std::count_if(names_.begin(), names_.end(), [](const NameTable::Entry& entry) {
      if (entry.folded() != nullptr) return entry.folded()->durability() != Durability::kVolatile;
      return !entry.name()->unborn && entry.name()->state.durability != Durability::kVolatile;
    });
    if (dirty_.empty()) return answer;
    // A round leaves out what is busy; everything that was written when the call came must be through, also what waits
    // outside the queue while an older state of its name is being recorded (dirty_next).
    for (const DirtyTicket end{ids_.Next(), 0};;) {
      const uint64_t before = answer.written;
      FlushRound all;
      RETURN_IF_ERROR(RecordQueueLocked(op, &all, &answer.written));
      if (dirty_.empty() || dirty_.begin()->first > end) {
        RETURN_IF_ERROR(CheckLostLocked(keys));  // another round may have given something up meanwhile
        return answer;
      }
      if (answer.written == before) RETURN_IF_ERROR(WaitLocked(op));
      RETURN_IF_ERROR(op.Check(*clock_));
    }
  }
  struct Wanted {
    NameKey key;
    Revision revision;  // to be recorded, or a later one
    uint64_t ticket;    // of a change that is no new revision
  };
  std::vector<Wanted> wanted;
  for (const NameKey& key : keys) {
    Name* name = FindLocked(key);
    if (name == nullptr) return MissLocked(key, "names");
    if (name->state.durability == Durability::kVolatile) continue;
    ++answer.names;
    wanted.push_back({key, name->state.revision, std::max(name->dirty.own, name->dirty_next.own)});
  }
  for (;;) {
    std::vector<Name*> pending;
    absl::flat_hash_set<const Name*> seen;
    for (const auto& [key, revision, ticket] : wanted) {
      Name* name = names_.FindUnfolded(key);
      if (name == nullptr || name->dirty == DirtyTicket{}) continue;
      if (name->durable_revision >= revision && name->dirty.own > ticket) continue;
      // With it all that was written together with it.
      for (Name* member : GroupLocked(*name)) {
        if (seen.insert(member).second) pending.push_back(member);
      }
    }
    if (pending.empty()) {
      RETURN_IF_ERROR(CheckLostLocked(keys));  // another round may have given one of them up meanwhile
      return answer;
    }
    RETURN_IF_ERROR(op.Check(*clock_));
    const uint64_t before = answer.written;
    RETURN_IF_ERROR(RecordLocked(op, pending, &answer.written));
    if (answer.written == before) RETURN_IF_ERROR(WaitLocked(op));
  }
}

absl::Status Store::Drain(const Op& op) {
  ReapExpired();  // what is gone must not come back
  uint64_t written = 0;
  MutexLock lock(&mu_);
  absl::Status recorded;
  // What can never be recorded leaves the queue, and what was written together with it comes in the next round.
  for (size_t before = SIZE_MAX; !dirty_.empty() && dirty_.size() < before;) {
    before = dirty_.size();
    FlushRound all;
    recorded = RecordQueueLocked(op, &all, &written);
  }
  const absl::Status buried = BuryLocked();
  for (const NameTable::Entry& entry : names_) {
    const Name* name = entry.name();
    if (name == nullptr || name->durable_revision != 0) continue;
    // The tombstone of a prefix keeps it findable after the restart: its place is in the index once more.
    if (name->state.prefix != nullptr) prefixes_.Insert(*name->state.prefix);
    EraseGhostsLocked(tombstones_.Add(name->key, TombstoneTable::Reason::kNotDurable, name->state.prefix));
  }
  const std::string tombstones = tombstones_.Save();
  absl::Status marked;
  {
    MutexUnlock unlock(&mu_);
    marked = log_->CommitCleanStop(tombstones);
  }
  // What is damaged, or was lost with a device, can't be recorded by anyone: its name answers with what was recorded
  // before.
  if (!recorded.ok() && !dirty_.empty()) return recorded;
  return buried.ok() ? marked : buried;
}

// ---- recovery

absl::Status Store::Recover() {
  RETURN_IF_ERROR(log_->LoadLayouts([this](LayoutRecord record) { return layouts_.Recover(record); }));
  MutexLock lock(&mu_);
  const LastRun last = log_->last_run();
  if (last.existed && !last.clean) {
    tombstones_.SetUncertain();
  } else if (last.clean) {
    for (const TombstoneTable::PrefixPlace& ghost : tombstones_.Load(last.tombstones)) prefixes_.Insert(*ghost);
  }
  // Every name comes back folded; then those that share a state are unfolded, and share it again.
  std::vector<ImageId> images;
  RETURN_IF_ERROR(log_->LoadNames([&](NameChange change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::Status {
    absl::StatusOr<LayoutRef> layout = absl::NotFoundError("");
    Hash128 prefix_key;
    if (change.record.has_value()) layout = layouts_.Find(change.key.tenant, change.record->layout);
    if (change.record.has_value()) {
      for (const RecordedVersion& v : change.record->versions) images_->KeepUnused(v.image);
    }
    if (!change.record.has_value() || !layout.ok() || change.record->versions.empty() ||
        (change.key.kind == NameKind::kPrefix && !Hash128FromHex(change.key.name, &prefix_key))) {
      EraseGhostsLocked(tombstones_.Add(change.key, TombstoneTable::Reason::kCorrupt, nullptr));
      graves_[change.key].kept = true;
      return absl::OkStatus();
    }
    NameRecord& record = *change.record;
    RestingName name;
    NameState& state = name.state;
    state.layout = *layout;
    state.revision = record.revision;
    state.created = record.created;
    state.create_time = record.create_time;
    state.ttl = record.ttl;
    state.expire_time = record.expire_time;
    if (record.expire_time != absl::InfiniteFuture()) {
      state.expire_at = After(clock_->Now(), std::max(record.expire_time - clock_->WallNow(), absl::ZeroDuration()));
    }
    state.durability = record.durability;
    state.max_history = record.max_history;
    state.requests = std::move(record.requests);
    if (change.key.kind == NameKind::kPrefix) {
      state.prefix = std::make_shared<const PrefixIndex::Place>(
          PrefixIndex::Place{prefix_key, record.prefix, static_cast<uint64_t>(record.versions.back().position)});
    }
    for (const RecordedVersion& v : record.versions) images.push_back(v.image);
    name.key = std::move(change.key);
    name.versions = std::move(record.versions);
    name.recorded = name.versions.size();
    name.last_used = clock_->Now();
    InsertRecoveredLocked(std::move(name));
    return absl::OkStatus();
  }));
  names_.RecoveryDone();
  UnfoldSharedLocked(std::move(images));
  images_->RecoveryDone();
  return absl::OkStatus();
}

// ---- invariants

#define STATEPOOL_CHECK(condition)                                                           \
  if (!(condition)) {                                                                        \
    std::fprintf(stderr, "%s:%d: invariant violated: %s\n", __FILE__, __LINE__, #condition); \
    std::abort();                                                                            \
  }

namespace {

void CheckFolded(const FoldedName& folded) {
  const RestingName name = folded.Unpack();
  const NameState& state = name.state;
  STATEPOOL_CHECK(state.ring.empty() && name.versions.size() <= state.max_history);
  STATEPOOL_CHECK(name.recorded >= 1 && name.recorded <= name.versions.size());
  STATEPOOL_CHECK(state.created != 0 && state.created <= state.revision);
  STATEPOOL_CHECK(state.requests.size() <= kMaxRequestIds);
  STATEPOOL_CHECK(name.key.kind == NameKind::kSequence || name.versions.size() == 1);
  STATEPOOL_CHECK((name.key.kind == NameKind::kPrefix) == (state.prefix != nullptr));
  if (state.prefix != nullptr)
    STATEPOOL_CHECK(static_cast<int64_t>(state.prefix->length) == name.versions.back().position);
}

}  // namespace

void Store::CheckInvariants() const {
  MutexLock lock(&mu_);
  absl::flat_hash_map<const Image*, int64_t> heads;
  absl::flat_hash_map<VersionId, const Version*> versions;
  absl::flat_hash_map<const Layout*, uint64_t> layouts;
  size_t dirty = 0, expiring = 0, prefixes = tombstones_.prefixes();
  uint64_t counts[4] = {};
  absl::flat_hash_set<ImageId> folded_images, waiting;
  size_t unfolded = 0, folded_expiring = 0;
  std::optional<NameTable::View> previous;
  for (const NameTable::Entry& entry : names_) {
    STATEPOOL_CHECK(!previous.has_value() || *previous < entry.view());
    previous = entry.view();
    ++counts[static_cast<int>(previous->kind)];
    if (entry.folded() != nullptr) {
      CheckFolded(*entry.folded());
      const RestingName name = entry.folded()->Unpack();
      ++layouts[name.state.layout.get()];
      for (const RecordedVersion& version : name.versions) STATEPOOL_CHECK(folded_images.insert(version.image).second);
      if (name.key.kind == NameKind::kPrefix) ++prefixes;
      if (name.Deadline() == kNever) continue;
      ++folded_expiring;
      STATEPOOL_CHECK(folded_expiry_.contains({name.Deadline(), entry.folded()}));
      continue;
    }
    ++unfolded;
    const Name* name = entry.name();
    if (name->unborn) {
      STATEPOOL_CHECK(name->reserved && name->state.ring.empty() && name->recorded.empty());
      ++layouts[name->state.layout.get()];
      continue;
    }
    const NameState& state = name->state;
    STATEPOOL_CHECK(!state.ring.empty() && state.ring.size() <= state.max_history);
    STATEPOOL_CHECK(state.created != 0 && state.created <= state.revision);
    STATEPOOL_CHECK(name->durable_revision <= state.revision);
    STATEPOOL_CHECK((name->durable_revision == 0) == name->recorded.empty());
    if (name->waits_for != 0) waiting.insert(name->waits_for);
    STATEPOOL_CHECK(name->waits_for == 0 || name->dirty != DirtyTicket{});
    STATEPOOL_CHECK(!name->reserved || name->recording);
    STATEPOOL_CHECK(state.requests.size() <= kMaxRequestIds);
    STATEPOOL_CHECK((name->key.kind == NameKind::kPrefix) == (state.prefix != nullptr));
    if (name->key.kind != NameKind::kSequence) STATEPOOL_CHECK(state.ring.size() == 1);
    if (state.prefix != nullptr) {
      ++prefixes;
      STATEPOOL_CHECK(static_cast<int64_t>(state.prefix->length) == state.head()->position);
      STATEPOOL_CHECK(Hash128ToHex(state.prefix->key) == name->key.name);
    }
    for (const Ring* ring : {&state.ring, &std::as_const(name->recorded)}) {
      for (const VersionRef& version : *ring) {
        const auto [it, is_new] = versions.emplace(version->id, version.get());
        STATEPOOL_CHECK(is_new || it->second == version.get());  // one id, one version
        STATEPOOL_CHECK(version->image->info().layout->fingerprint() == state.layout->fingerprint());
        STATEPOOL_CHECK(version->image->info().tenant == name->key.tenant);
        STATEPOOL_CHECK(version->position >= 0 && version->position <= kMaxPosition);
      }
    }
    for (const VersionRef& version : name->recorded) STATEPOOL_CHECK(images_->persisted(*version->image));
    ++heads[state.head()->image.get()];
    ++layouts[state.layout.get()];
    const bool is_dirty = name->dirty != DirtyTicket{};
    dirty += is_dirty;
    if (is_dirty) STATEPOOL_CHECK(dirty_.at(name->dirty) == name);
    // Every WRITE_BEHIND name is recorded or waits for it.
    if (state.durability == Durability::kWriteBehind)
      STATEPOOL_CHECK(is_dirty || name->durable_revision == state.revision || lost_.contains(name->key));
    if (state.durability == Durability::kSync) STATEPOOL_CHECK(name->durable_revision == state.revision);
    if (name->expiry_entry != kNever) {
      ++expiring;
      STATEPOOL_CHECK(expiry_.contains({name->expiry_entry, const_cast<Name*>(name)}));
    }
    STATEPOOL_CHECK(name->Deadline() == kNever || name->expiry_entry != kNever);  // it will be looked at
  }
  for (const auto& [image, count] : heads) STATEPOOL_CHECK(image->heads() == count);
  for (const auto& [id, version] : versions) {
    STATEPOOL_CHECK(heads.contains(version->image.get()) || version->image->heads() == 0);
    STATEPOOL_CHECK(!folded_images.contains(version->image->info().id));  // a folded name shares with nobody
  }
  STATEPOOL_CHECK(unfolded == names_.unfolded());
  STATEPOOL_CHECK(names_.IndexIsWhole());
  STATEPOOL_CHECK(folded_expiring == folded_expiry_.size());
  for (int kind = 1; kind <= 3; ++kind) STATEPOOL_CHECK(counts[kind] == names_.count(static_cast<NameKind>(kind)));
  STATEPOOL_CHECK(layouts.size() == layout_names_.size());
  for (const auto& [layout, count] : layouts) STATEPOOL_CHECK(layout_names_.at(layout) == count);
  STATEPOOL_CHECK(dirty == dirty_.size());
  STATEPOOL_CHECK(waiting.empty() == (write_behind_.dirty_bytes() == 0));
  STATEPOOL_CHECK(expiring == expiry_.size());
  STATEPOOL_CHECK(prefixes == prefixes_.size());
  for (const auto& [key, grave] : graves_) {
    STATEPOOL_CHECK(grave.kept != !grave.versions.empty());
    STATEPOOL_CHECK(names_.FindFolded(key) == nullptr);
    const Name* name = names_.FindUnfolded(key);
    STATEPOOL_CHECK(name == nullptr || name->durable_revision == 0);
    for (const VersionRef& version : grave.versions)
      STATEPOOL_CHECK(!folded_images.contains(version->image->info().id));
  }
}

}  // namespace statepool
