// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Store::Write: the one way in which names change.
#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {

// The names of one Write, as they were decided. All under the lock, but for Commit.
class Store::Writing {
 public:
  struct Item {
    const NameKey* key;
    Next next;
    Change* change;
    size_t index;          // into change->keys
    Name* name = nullptr;  // null: new, or gone already
    bool record = false;   // its record is committed before the answer: a new one, or that it is gone
    Ring run;              // what the new record holds
  };

  explicit Writing(Store* store) : store_(store) {}

  // Asks every change. False: one was refused.
  bool Decide(absl::Span<Change> changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);
  // Whether anything must be on disk before the answer.
  bool IsDurable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);
  // Names to be recorded first, because they were written together with one of these and are not written with it now.
  std::vector<Name*> Companions() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);
  // Whether a name goes. (One that stays may move on while an older state of it is being recorded.)
  bool Forgets() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);
  // How many unrecorded names would be recorded together after this.
  size_t GroupSize() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);
  absl::Status TakeNames() ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);           // new ones are unborn until Publish
  absl::Status Commit(const Op& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);  // gives the lock back meanwhile
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);

  size_t size() const { return items_.size(); }

 private:
  bool HasRecord(const Item& item) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_) {
    return (item.name != nullptr && !item.name->recorded.empty()) || store_->graves_.contains(*item.key);
  }
  void Forget(Item* item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_);

  Store* const store_;
  std::vector<Item> items_;
};

bool Store::Writing::Decide(absl::Span<Change> changes) {
  items_.clear();
  bool all = true;
  for (Change& change : changes) {
    if (!change.status.ok()) all = false;
    if (!change.status.ok() || change.decide == nullptr) continue;
    absl::StatusOr<std::vector<Next>> decided = change.decide();
    change.status = decided.status();
    // All names of a change have one layout, and if the first is new, so are the others.
    if (change.status.ok() && !decided->empty() && decided->front().has_value() &&
        store_->names_.Find(change.keys.front()) == nullptr &&
        !store_->layouts_.IsRegistered(change.keys.front().tenant, *decided->front()->layout)) {
      change.status =
          Error(absl::StatusCode::kNotFound, "LAYOUT_UNKNOWN", "the layout was deleted meanwhile").Field("layout");
    }
    if (!change.status.ok()) {
      all = false;
      continue;
    }
    for (size_t i = 0; i < decided->size(); ++i)
      items_.push_back({&change.keys[i], std::move((*decided)[i]), &change, i, nullptr, false, {}});
  }
  // Now that nobody looks for names any more: looking may forget one that is expired.
  for (Item& item : items_) item.name = store_->names_.Find(*item.key);
  return all;
}

bool Store::Writing::IsDurable() const {
  return std::any_of(items_.begin(), items_.end(), [this](const Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(store_->mu_) {
    return item.next.has_value() ? item.next->durability == Durability::kSync : HasRecord(item);
  });
}

bool Store::Writing::Forgets() const {
  return std::any_of(items_.begin(), items_.end(), [](const Item& item) { return !item.next.has_value(); });
}

std::vector<Name*> Store::Writing::Companions() const {
  absl::flat_hash_set<const Name*> own;
  for (const Item& item : items_) own.insert(item.name);
  for (const Item& item : items_) {
    if (item.name == nullptr) continue;
    std::vector<Name*> group = store_->GroupLocked(*item.name);
    if (std::any_of(group.begin(), group.end(), [&](const Name* member) { return !own.contains(member); }))
      return group;
  }
  return {};
}

size_t Store::Writing::GroupSize() const {
  size_t size = items_.size();
  absl::flat_hash_set<uint64_t> groups;
  for (const Item& item : items_) {
    const Name* name = item.name;
    if (name == nullptr || name->dirty == DirtyTicket{} || !groups.insert(name->dirty.group).second) continue;
    size += store_->GroupLocked(*name).size();
  }
  return size;
}

absl::Status Store::Writing::TakeNames() {
  size_t new_names = 0;
  for (const Item& item : items_) new_names += item.name == nullptr && item.next.has_value();
  if (new_names > 0 && store_->names_.size() + store_->graves_.size() + new_names > store_->options_.max_names) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_NAMES",
                 "the table of names is full; delete names or let them expire")
        .Meta("limit", store_->options_.max_names);
  }
  for (Item& item : items_) {
    if (item.name != nullptr || !item.next.has_value()) continue;
    item.name = store_->names_.Insert(*item.key);
    item.name->unborn = true;
    // From here on its layout is in use: it must not be deleted while the name's record is under way.
    item.name->state.layout = item.next->layout;
    ++store_->layout_names_[item.next->layout.get()];
  }
  return absl::OkStatus();
}

absl::Status Store::Writing::Commit(const Op& op) {
  for (Item& item : items_) {
    item.record = item.next.has_value() ? item.next->durability != Durability::kVolatile : HasRecord(item);
    if (item.name != nullptr) item.name->reserved = item.name->recording = true;
    if (const auto grave = store_->graves_.find(*item.key); grave != store_->graves_.end())
      grave->second.burying = true;
  }
  absl::Status committed = absl::OkStatus();
  {
    MutexUnlock unlock(&store_->mu_);
    std::vector<NameChange> changes;
    for (Item& item : items_) {
      if (!item.record) continue;
      if (!item.next.has_value()) {
        changes.push_back({*item.key, std::nullopt});
        continue;
      }
      committed = store_->images_->Persist(op, item.next->head()->image);
      if (!committed.ok()) break;
      item.run = store_->DurableRun(*item.next);
      changes.push_back({*item.key, RecordOf(*item.key, *item.next, item.run)});
    }
    if (committed.ok()) committed = store_->log_->Commit(changes, /*sync=*/true);
  }
  for (Item& item : items_) {
    if (const auto grave = store_->graves_.find(*item.key); grave != store_->graves_.end())
      grave->second.burying = false;
    if (item.name != nullptr) item.name->reserved = item.name->recording = false;
    if (committed.ok() || item.name == nullptr || !item.name->unborn) continue;
    store_->DropLayoutUseLocked(*item.name->state.layout);
    store_->names_.Erase(item.name);
  }
  store_->changed_.SignalAll();
  return committed;
}

void Store::Writing::Forget(Item* item) {
  const auto grave = store_->graves_.find(*item->key);
  const bool was_unreadable = grave != store_->graves_.end() && grave->second.kept;
  if (item->record && grave != store_->graves_.end()) store_->graves_.erase(grave);
  if (item->name != nullptr) {
    if (item->record) item->name->recorded.clear();
    store_->ForgetLocked(item->name, TombstoneTable::Reason::kDeleted);
  } else if (was_unreadable && store_->names_.Find(*item->key) == nullptr) {
    store_->EraseGhostsLocked(store_->tombstones_.Add(*item->key, TombstoneTable::Reason::kDeleted, nullptr));
  }
}

void Store::Writing::Publish() {
  const MonoTime now = store_->clock_->Now();
  // Names that wait to be recorded, and those written together with them, now wait together: where the first of them
  // stood in the queue.
  uint64_t group = store_->ids_.Next();
  MonoTime since = now;
  std::vector<Name*> members;
  if (items_.size() > 1) {
    for (const Item& item : items_) {
      if (item.name == nullptr || item.record || item.name->dirty == DirtyTicket{}) continue;
      group = std::min(group, item.name->dirty.group);
      for (Name* member : store_->GroupLocked(*item.name)) {
        since = std::min(since, member->dirty_since);
        members.push_back(member);
      }
    }
    for (Name* member : members) store_->SetDirtyLocked(member, {group, member->dirty.own}, since);
  }
  for (Item& item : items_) {
    if (!item.next.has_value()) {
      Forget(&item);
      continue;
    }
    if (item.record) {
      item.name->recorded = std::move(item.run);
      item.name->durable_revision = item.next->revision;
      store_->graves_.erase(*item.key);
    }
    store_->PublishLocked(item.name, *std::move(item.next), item.record ? 0 : group, now);
    if (item.name->dirty.group == group && group != 0) item.name->dirty_since = since;
    if (item.index == 0 && item.change->info != nullptr)
      *item.change->info = store_->InfoLocked(*item.name, *item.name->state.head());
  }
}

absl::Status Store::Write(const Op& op, absl::Span<Change> changes, bool all_or_none) {
  const auto must_wait = [&](bool to_record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    for (const Change& change : changes) {
      for (const NameKey& key : change.keys) {
        if (MustWaitLocked(key, to_record)) return true;
      }
    }
    return false;
  };
  std::vector<absl::Status> refused_before;  // by whoever made the changes
  for (const Change& change : changes) refused_before.push_back(change.status);

  MutexLock lock(&mu_);
  Writing writing(this);
  bool durable = false;
  for (;; durable = false) {
    RETURN_IF_ERROR(op.Check(*clock_));
    if (!must_wait(/*to_record=*/false)) {
      for (size_t i = 0; i < changes.size(); ++i) changes[i].status = refused_before[i];
      if (!writing.Decide(changes) && all_or_none) {
        for (Change& change : changes) {
          if (change.status.ok()) {
            change.status = Error(absl::StatusCode::kAborted, "BATCH_ABORTED",
                                  "another item of the batch was refused, so nothing was done");
          }
        }
        return absl::OkStatus();
      }
      if (writing.size() == 0) return absl::OkStatus();
      durable = writing.IsDurable();
      if (!durable && writing.size() == 1 && !writing.Forgets()) break;
      if (!must_wait(/*to_record=*/true)) {
        // What goes to disk together is bounded: this goes there now.
        durable = durable || writing.GroupSize() > options_.max_children;
        if (!durable) break;
        const std::vector<Name*> companions = writing.Companions();
        if (companions.empty()) break;
        uint64_t written = 0;
        RETURN_IF_ERROR(RecordLocked(op, companions, &written));
        if (written > 0) continue;
      }
    }
    RETURN_IF_ERROR(WaitLocked(op));
  }
  RETURN_IF_ERROR(writing.TakeNames());
  if (durable) RETURN_IF_ERROR(writing.Commit(op));
  writing.Publish();
  return absl::OkStatus();
}

absl::Status Store::Write(const Op& op, Change change) {
  RETURN_IF_ERROR(Write(op, {&change, 1}, /*all_or_none=*/true));
  return change.status;
}

}  // namespace statepool
