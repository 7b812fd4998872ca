// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/name_table.h"

#include <xxhash.h>

#include <cassert>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/core/folded_name.h"

namespace statepool {

NameTable::View NameTable::Entry::view() const {
  const Name* name = this->name();
  return name != nullptr ? ViewOf(name->key) : folded()->view();
}

uint64_t NameTable::Hash::Of(const View& view) {
  const uint64_t seed = uint64_t{view.tenant} << 8 | static_cast<uint64_t>(view.kind);
  return XXH3_64bits_withSeed(view.name.data(), view.name.size(), seed);
}

NameTable::~NameTable() {
  for (const Entry& entry : names_) {
    delete entry.name();
    FoldedDeleter()(entry.folded());
  }
}

Name* NameTable::Insert(NameKey key) {
  ++counts_[static_cast<int>(key.kind)];
  auto* name = new Name(std::move(key));
  names_.insert(Entry(name));
  const bool inserted = PartOf(ViewOf(name->key)).insert(Entry(name)).second;
  assert(inserted);
  (void)inserted;
  name->place = unfolded_.insert(unfolded_.end(), name);
  return name;
}

void NameTable::InsertRecovered(FoldedPtr folded) {
  const size_t before = names_.size();
  const Entry entry(folded.release());
  ++counts_[static_cast<int>(entry.view().kind)];
  names_.insert(names_.end(), entry);
  assert(names_.size() == before + 1);
  (void)before;
}

void NameTable::RecoveryDone() {
  for (Index& part : index_)
    part.reserve(names_.size() / kIndexParts);  // one by one they would be hashed again and again
  for (const Entry& entry : names_) PartOf(entry.view()).insert(entry);
}

void NameTable::Erase(Name* name) {
  --counts_[static_cast<int>(name->key.kind)];
  unfolded_.erase(name->place);
  PartOf(ViewOf(name->key)).erase(Entry(name));
  names_.erase(Entry(name));
  delete name;
}

// An entry's key stays the same, so its places in the set and the index do, too: hence the casts.
void NameTable::Replace(const View& view, Entry by) {
  const_cast<Entry&>(*names_.find(view)) = by;
  const_cast<Entry&>(*Look(view)) = by;
}

Name* NameTable::Unfold(Entry entry) {
  if (entry.folded() == nullptr) return entry.name();
  const FoldedPtr folded(entry.folded());
  Name* name = unfolder_(*folded).release();
  name->place = unfolded_.insert(unfolded_.end(), name);
  Replace(folded->view(), Entry(name));
  return name;
}

void NameTable::Fold(Name* name, FoldedPtr folded) {
  unfolded_.erase(name->place);
  Replace(ViewOf(name->key), Entry(folded.release()));
  delete name;
}

bool NameTable::IndexIsWhole() const {
  size_t entries = 0;
  for (const Index& part : index_) entries += part.size();
  return entries == names_.size() && std::all_of(names_.begin(), names_.end(), [this](const Entry& entry) {
           const Entry* found = Look(entry.view());
           return found != nullptr && *found == entry;
         });
}

uint64_t TombstoneTable::HashOf(const NameKey& key) {
  const std::string text = absl::StrCat(key.tenant, ":", static_cast<int>(key.kind), ":", key.name);
  return XXH3_64bits(text.data(), text.size());
}

void TombstoneTable::Put(uint64_t hash, Reason reason, PrefixPlace prefix, std::vector<PrefixPlace>* gone) {
  Stone& stone = stones_[hash];
  if (stone.prefix != nullptr) {
    gone->push_back(std::move(stone.prefix));
    --prefixes_;
  }
  if (prefix != nullptr) ++prefixes_;
  stone = {reason, next_serial_++, std::move(prefix)};
  order_.emplace_back(hash, stone.serial);
  while (order_.size() > kLimit) {
    const auto [oldest, serial] = order_.front();
    order_.pop_front();
    const auto it = stones_.find(oldest);
    if (it == stones_.end() || it->second.serial != serial) continue;  // was removed or renewed
    if (it->second.prefix != nullptr) {
      gone->push_back(std::move(it->second.prefix));
      --prefixes_;
    }
    stones_.erase(it);
    overflowed_ = true;
  }
}

std::vector<TombstoneTable::PrefixPlace> TombstoneTable::Add(const NameKey& key, Reason reason, PrefixPlace prefix) {
  std::vector<PrefixPlace> gone;
  Put(HashOf(key), reason, std::move(prefix), &gone);
  return gone;
}

TombstoneTable::PrefixPlace TombstoneTable::Remove(const NameKey& key) {
  const auto it = stones_.find(HashOf(key));
  if (it == stones_.end()) return nullptr;
  PrefixPlace prefix = std::move(it->second.prefix);
  if (prefix != nullptr) --prefixes_;
  stones_.erase(it);
  return prefix;
}

std::optional<TombstoneTable::Reason> TombstoneTable::Find(const NameKey& key) const {
  const auto it = stones_.find(HashOf(key));
  if (it == stones_.end()) return std::nullopt;
  return it->second.reason;
}

// Saved form: flags u8 (1 uncertain, 2 overflowed), then for each tombstone, oldest first, its hash u64, reason u8, and
// 1 and six u64 of its prefix's place, or 0. Little-endian, as memory is.
std::string TombstoneTable::Save() const {
  std::string out(1, static_cast<char>((uncertain_ ? 1 : 0) | (overflowed_ ? 2 : 0)));
  const auto put = [&out](uint64_t v) { out.append(reinterpret_cast<const char*>(&v), sizeof v); };
  for (const auto& [hash, serial] : order_) {
    const auto it = stones_.find(hash);
    if (it == stones_.end() || it->second.serial != serial) continue;
    put(hash);
    out.push_back(static_cast<char>(it->second.reason));
    out.push_back(it->second.prefix != nullptr ? 1 : 0);
    if (const PrefixPlace& p = it->second.prefix; p != nullptr) {
      for (uint64_t v :
           {p->key.high, p->key.low, p->locator.stem_high, p->locator.stem_low, p->locator.check, p->length})
        put(v);
    }
  }
  return out;
}

std::vector<TombstoneTable::PrefixPlace> TombstoneTable::Load(absl::string_view saved) {
  std::vector<PrefixPlace> gone, loaded;
  const auto take = [&saved](uint64_t* v) {
    if (saved.size() < sizeof *v) return false;
    std::memcpy(v, saved.data(), sizeof *v);
    saved.remove_prefix(sizeof *v);
    return true;
  };
  if (saved.empty() || (saved[0] & ~3) != 0) {
    uncertain_ = true;
    return loaded;
  }
  uncertain_ = uncertain_ || (saved[0] & 1) != 0;
  overflowed_ = overflowed_ || (saved[0] & 2) != 0;
  saved.remove_prefix(1);
  while (!saved.empty()) {
    uint64_t hash;
    if (!take(&hash) || saved.size() < 2) {
      uncertain_ = true;
      break;
    }
    const auto reason = static_cast<Reason>(saved[0]);
    const char prefixes = saved[1];
    saved.remove_prefix(2);
    // What Save can't have written must not get in: a reason is an index elsewhere, and a name has one stone.
    if (reason < Reason::kDeleted || reason > Reason::kCorrupt || (prefixes != 0 && prefixes != 1) ||
        stones_.contains(hash) || order_.size() == kLimit) {
      uncertain_ = true;
      break;
    }
    PrefixPlace prefix;
    if (prefixes == 1) {
      PrefixIndex::Place p;
      if (!take(&p.key.high) || !take(&p.key.low) || !take(&p.locator.stem_high) || !take(&p.locator.stem_low) ||
          !take(&p.locator.check) || !take(&p.length)) {
        uncertain_ = true;
        break;
      }
      prefix = std::make_shared<const PrefixIndex::Place>(p);
      loaded.push_back(prefix);
    }
    Put(hash, reason, std::move(prefix), &gone);
  }
  assert(gone.empty());  // what was saved fits
  return loaded;
}

}  // namespace statepool
