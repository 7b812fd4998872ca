// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Store::Write: the one way in which names change.
#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {

// A name of one Write, as it was decided.
struct Store::WriteItem {
  const NameKey* key;
  Next next;
  Change* change;
  size_t index;          // into change->keys
  Name* name = nullptr;  // null: new, or gone already
  bool record = false;   // its record is committed before the answer: a new one, or that it is gone
  Ring run;              // what the new record holds
};

bool Store::DecideLocked(absl::Span<Change> changes, std::vector<WriteItem>* items) {
  items->clear();
  bool all = true;
  WriteBehind::Adding adding;
  for (Change& change : changes) {
    if (!change.status.ok()) all = false;
    if (!change.status.ok() || change.decide == nullptr) continue;
    absl::StatusOr<std::vector<Next>> decided = change.decide();
    change.status = decided.status();
    // All names of a change have one layout, and if the first is new, so are the others.
    if (change.status.ok() && !decided->empty() && decided->front().has_value() &&
        names_.Find(change.keys.front()) == nullptr &&
        !layouts_.IsRegistered(change.keys.front().tenant, *decided->front()->layout)) {
      change.status =
          Error(absl::StatusCode::kNotFound, "LAYOUT_UNKNOWN", "the layout was deleted meanwhile").Field("layout");
    }
    for (size_t i = 0; change.status.ok() && i < decided->size(); ++i) {
      const Next& next = (*decided)[i];
      if (next.has_value())
        change.status = AdmitLocked(next->durability, *next->layout, next->head()->image.get(), &adding);
    }
    if (!change.status.ok()) {
      all = false;
      continue;
    }
    for (size_t i = 0; i < decided->size(); ++i)
      items->push_back({&change.keys[i], std::move((*decided)[i]), &change, i, nullptr, false, {}});
  }
  // Now that nobody looks for names any more: looking may forget one that is expired.
  for (WriteItem& item : *items) item.name = names_.Find(*item.key);
  return all;
}

bool Store::HasRecordLocked(const WriteItem& item) const {
  return (item.name != nullptr && !item.name->recorded.empty()) || graves_.contains(*item.key);
}

bool Store::IsDurableLocked(absl::Span<const WriteItem> items) const {
  return std::any_of(items.begin(), items.end(), [this](const WriteItem& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return item.next.has_value() ? item.next->durability == Durability::kSync : HasRecordLocked(item);
  });
}

// Whether a name goes. (One that stays may move on while an older state of it is being recorded.)
bool Store::Forgets(absl::Span<const WriteItem> items) {
  return std::any_of(items.begin(), items.end(), [](const WriteItem& item) { return !item.next.has_value(); });
}

std::vector<Name*> Store::CompanionsLocked(absl::Span<const WriteItem> items) {
  absl::flat_hash_set<const Name*> own;
  for (const WriteItem& item : items) own.insert(item.name);
  for (const WriteItem& item : items) {
    if (item.name == nullptr) continue;
    std::vector<Name*> group = GroupLocked(*item.name);
    if (std::any_of(group.begin(), group.end(), [&](const Name* member) { return !own.contains(member); }))
      return group;
  }
  return {};
}

size_t Store::GroupSizeLocked(absl::Span<const WriteItem> items) {
  size_t size = items.size();
  absl::flat_hash_set<uint64_t> groups;
  for (const WriteItem& item : items) {
    const Name* name = item.name;
    if (name == nullptr || name->dirty == DirtyTicket{} || !groups.insert(name->dirty.group).second) continue;
    size += GroupLocked(*name).size();
  }
  return size;
}

absl::Status Store::TakeNamesLocked(absl::Span<WriteItem> items) {
  size_t new_names = 0;
  for (const WriteItem& item : items) new_names += item.name == nullptr && item.next.has_value();
  if (new_names > 0 && names_.size() + graves_.size() + new_names > options_.max_names) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_NAMES",
                 "the table of names is full; delete names or let them expire")
        .Meta("limit", options_.max_names);
  }
  for (WriteItem& item : items) {
    if (item.name != nullptr || !item.next.has_value()) continue;
    item.name = names_.Insert(*item.key);
    item.name->unborn = true;
    item.name->state.created = item.next->created;
    // From here on its layout is in use: it must not be deleted while the name's record is under way.
    item.name->state.layout = item.next->layout;
    ++layout_names_[item.next->layout.get()];
  }
  return absl::OkStatus();
}

absl::Status Store::CommitLocked(const Op& op, absl::Span<WriteItem> items) {
  for (WriteItem& item : items) {
    item.record = item.next.has_value() ? item.next->durability != Durability::kVolatile : HasRecordLocked(item);
    if (item.name != nullptr) item.name->reserved = item.name->recording = true;
    if (const auto grave = graves_.find(*item.key); grave != graves_.end()) grave->second.burying = true;
  }
  absl::Status committed = absl::OkStatus();
  {
    MutexUnlock unlock(&mu_);
    std::vector<NameChange> changes;
    for (WriteItem& item : items) {
      if (!item.record) continue;
      if (!item.next.has_value()) {
        changes.push_back({*item.key, std::nullopt});
        continue;
      }
      committed = images_->Persist(op, item.next->head()->image);
      if (!committed.ok()) break;
      item.run = DurableRun(*item.next);
      changes.push_back({*item.key, RecordOf(*item.key, *item.next, item.run)});
    }
    if (committed.ok()) committed = log_->Commit(changes, /*sync=*/true);
  }
  for (WriteItem& item : items) {
    if (const auto grave = graves_.find(*item.key); grave != graves_.end()) grave->second.burying = false;
    if (item.name != nullptr) item.name->reserved = item.name->recording = false;
    if (committed.ok() || item.name == nullptr || !item.name->unborn) continue;
    DropLayoutUseLocked(*item.name->state.layout);
    names_.Erase(item.name);
  }
  if (committed.ok()) flush_again_ = 0;  // the disk takes records
  changed_.SignalAll();
  return committed;
}

void Store::ForgetItemLocked(WriteItem* item) {
  const auto grave = graves_.find(*item->key);
  const bool was_unreadable = grave != graves_.end() && grave->second.kept;
  if (item->record && grave != graves_.end()) graves_.erase(grave);
  if (item->name != nullptr) {
    if (item->record) item->name->recorded.clear();
    ForgetLocked(item->name, TombstoneTable::Reason::kDeleted);
  } else if (was_unreadable && names_.Find(*item->key) == nullptr) {
    EraseGhostsLocked(tombstones_.Add(*item->key, TombstoneTable::Reason::kDeleted, nullptr));
  }
}

void Store::PublishItemsLocked(absl::Span<WriteItem> items) {
  const MonoTime now = clock_->Now();
  // Names that wait to be recorded, and those written together with them, now wait together: where the first of them
  // stood in the queue.
  uint64_t group = ids_.Next();
  MonoTime since = now;
  std::vector<Name*> members;
  if (items.size() > 1) {
    for (const WriteItem& item : items) {
      if (item.name == nullptr || item.record || item.name->dirty == DirtyTicket{}) continue;
      group = std::min(group, item.name->dirty.group);
      for (Name* member : GroupLocked(*item.name)) {
        since = std::min(since, member->dirty_since);
        members.push_back(member);
      }
    }
    for (Name* member : members) SetDirtyLocked(member, {group, member->dirty.own}, since);
  }
  for (WriteItem& item : items) {
    if (!item.next.has_value()) {
      ForgetItemLocked(&item);
      continue;
    }
    if (item.record) {
      item.name->recorded = std::move(item.run);
      item.name->durable_revision = item.next->revision;
      graves_.erase(*item.key);
    }
    PublishLocked(item.name, *std::move(item.next), item.record ? 0 : group, now);
    if (item.name->dirty.group == group && group != 0) item.name->dirty_since = since;
    if (item.index == 0 && item.change->info != nullptr)
      *item.change->info = InfoLocked(*item.name, *item.name->state.head());
  }
  // Now that nobody needs the items' names any more: looking may forget one that is expired.
  for (const WriteItem& item : items) {
    if (item.index == 0 && item.change->published != nullptr) item.change->published();
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
  std::vector<WriteItem> items;
  bool durable = false;
  for (;; durable = false) {
    RETURN_IF_ERROR(op.Check(*clock_));
    if (!must_wait(/*to_record=*/false)) {
      for (size_t i = 0; i < changes.size(); ++i) changes[i].status = refused_before[i];
      if (!DecideLocked(changes, &items) && all_or_none) {
        for (Change& change : changes) {
          if (change.status.ok()) {
            change.status = Error(absl::StatusCode::kAborted, "BATCH_ABORTED",
                                  "another item of the batch was refused, so nothing was done");
          }
        }
        return absl::OkStatus();
      }
      if (items.size() == 0) return absl::OkStatus();
      durable = IsDurableLocked(items);
      if (!durable && items.size() == 1 && !Forgets(items)) break;
      if (!must_wait(/*to_record=*/true)) {
        // What goes to disk together is bounded: this goes there now.
        durable = durable || GroupSizeLocked(items) > options_.max_children;
        if (!durable) break;
        const std::vector<Name*> companions = CompanionsLocked(items);
        if (companions.empty()) break;
        uint64_t written = 0;
        RETURN_IF_ERROR(RecordLocked(op, companions, &written));
        if (written > 0) continue;
      }
    }
    RETURN_IF_ERROR(WaitLocked(op));
  }
  RETURN_IF_ERROR(TakeNamesLocked(absl::MakeSpan(items)));
  if (durable) RETURN_IF_ERROR(CommitLocked(op, absl::MakeSpan(items)));
  PublishItemsLocked(absl::MakeSpan(items));
  return absl::OkStatus();
}

absl::Status Store::Write(const Op& op, Change change) {
  RETURN_IF_ERROR(Write(op, {&change, 1}, /*all_or_none=*/true));
  return change.status;
}

}  // namespace statepool
