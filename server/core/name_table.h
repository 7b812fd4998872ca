// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The Store's tables: names in order, folded ones (folded_name.h) among them, and what is remembered of names that are
// gone. Not thread-safe: the Store's lock guards them.
#ifndef STATEPOOL_SERVER_CORE_NAME_TABLE_H_
#define STATEPOOL_SERVER_CORE_NAME_TABLE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/name.h"
#include "server/core/prefix_index.h"

namespace statepool {

// Versions of a name, oldest first, the head last. Most names have one.
using Ring = absl::InlinedVector<VersionRef, 1>;

// What a name says. A write makes a new one and puts it in place of the old one.
struct NameState {
  LayoutRef layout;
  Ring ring;  // never empty
  Revision revision = 0;
  Revision created = 0;  // the revision that made the name
  absl::Time create_time;
  absl::Duration ttl = absl::InfiniteDuration();    // idle time
  absl::Time expire_time = absl::InfiniteFuture();  // absolute, for people and the record
  MonoTime expire_at = kNever;                      // the same on the monotonic clock
  Durability durability = Durability::kWriteBehind;
  uint32_t max_history = 1;
  std::vector<AnsweredRequest> requests;             // oldest first
  std::shared_ptr<const PrefixIndex::Place> prefix;  // prefixes only

  const VersionRef& head() const { return ring.back(); }
};

// When a name that says this expires, if it was last used at `last_used`.
inline MonoTime DeadlineOf(const NameState& state, MonoTime last_used) {
  if (state.ttl == absl::InfiniteDuration()) return state.expire_at;
  return std::min(state.expire_at, After(last_used, state.ttl));
}

// Where a name stands in the queue of unrecorded changes. Children of one fork share `group`, so that they are recorded
// together.
struct DirtyTicket {
  Revision group = 0, own = 0;  // 0: not in the queue
  friend auto operator<=>(const DirtyTicket&, const DirtyTicket&) = default;
};

struct Name {
  explicit Name(NameKey k) : key(std::move(k)) {}

  const NameKey key;
  NameState state;

  Revision durable_revision = 0;  // of the newest record on disk
  Ring recorded;                  // the versions of that record: kept until another record takes its place

  bool unborn = false;     // made by a write whose record is under way: nobody but its writer sees it
  bool reserved = false;   // a writer's record is under way: other writers wait
  bool recording = false;  // a record of it is under way (a writer's, or of the write-behind)

  MonoTime last_used = 0;
  MonoTime expiry_entry = kNever;  // its entry in the expiry index; at or before the real deadline
  DirtyTicket dirty;               // of its first unrecorded change; the record will have the newest
  MonoTime dirty_since = 0;
  MonoTime changed = 0;    // its newest unrecorded change
  ImageId waits_for = 0;   // the image that WriteBehind counts for it
  DirtyTicket dirty_next;  // while `recording`: of the first change that this record does not have
  MonoTime dirty_next_since = 0;
  uint32_t forks = 0;  // of a prefix: how often it was forked

  std::list<Name*>::iterator place;  // among the table's unfolded names

  MonoTime Deadline() const { return DeadlineOf(state, last_used); }
  bool busy() const { return reserved || recording; }
};

class FoldedName;
struct FoldedDeleter {
  void operator()(const FoldedName* name) const;
};
using FoldedPtr = std::unique_ptr<const FoldedName, FoldedDeleter>;

// Ordered by (tenant, kind, name). A name's address is stable until it is erased or folded.
class NameTable {
 public:
  struct View {
    TenantId tenant;
    NameKind kind;
    absl::string_view name;
    friend bool operator<(const View& a, const View& b) {
      if (a.tenant != b.tenant) return a.tenant < b.tenant;
      return a.kind != b.kind ? a.kind < b.kind : a.name < b.name;
    }
  };

  // A name, folded or not; belongs to the table. Eight bytes, of which the lowest bit tells.
  class Entry {
   public:
    explicit Entry(Name* name) : pointer_(reinterpret_cast<uintptr_t>(name)) {}
    explicit Entry(const FoldedName* folded) : pointer_(reinterpret_cast<uintptr_t>(folded) | kFolded) {}

    Name* name() const {                                                        // null: it is folded
      return pointer_ & kFolded ? nullptr : reinterpret_cast<Name*>(pointer_);  // NOLINT: a tagged pointer
    }
    const FoldedName* folded() const {                                                                // null: it is not
      return pointer_ & kFolded ? reinterpret_cast<const FoldedName*>(pointer_ - kFolded) : nullptr;  // NOLINT
    }
    View view() const;
    friend bool operator==(const Entry&, const Entry&) = default;

   private:
    static constexpr uintptr_t kFolded = 1;
    uintptr_t pointer_;
  };

 private:
  static View ViewOf(const NameKey& key) { return {key.tenant, key.kind, key.name}; }
  static View ViewOf(const Entry& entry) { return entry.view(); }
  static View ViewOf(const View& view) { return view; }
  struct Less {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return ViewOf(a) < ViewOf(b);
    }
  };
  struct Hash {
    using is_transparent = void;
    static uint64_t Of(const View& view);
    template <typename A>
    size_t operator()(const A& a) const {
      return Of(ViewOf(a));
    }
  };
  struct Equal {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      const View x = ViewOf(a), y = ViewOf(b);
      return x.name == y.name && x.kind == y.kind && x.tenant == y.tenant;
    }
  };
  using Set = absl::btree_set<Entry, Less>;
  using Index = absl::flat_hash_set<Entry, Hash, Equal>;

 public:
  using const_iterator = Set::const_iterator;
  // Makes the objects of a folded name again. Called before the packed bytes go.
  using Unfolder = std::function<std::unique_ptr<Name>(const FoldedName&)>;

  explicit NameTable(Unfolder unfolder) : unfolder_(std::move(unfolder)) {}
  ~NameTable();
  NameTable(const NameTable&) = delete;
  NameTable& operator=(const NameTable&) = delete;

  // Unfolds what it finds.
  Name* Find(const NameKey& key) {
    const Entry* entry = Look(ViewOf(key));
    return entry == nullptr ? nullptr : Unfold(*entry);
  }
  // Null also if the name is folded: then it is recorded and idle.
  Name* FindUnfolded(const NameKey& key) const {
    const Entry* entry = Look(ViewOf(key));
    return entry == nullptr ? nullptr : entry->name();
  }
  // Null also if the name is not folded.
  const FoldedName* FindFolded(const NameKey& key) const {
    const Entry* entry = Look(ViewOf(key));
    return entry == nullptr ? nullptr : entry->folded();
  }
  Name* Unfold(Entry entry);  // or gives what is not folded
  // Puts `folded` in the place of `name`, which goes. REQUIRES: the same key.
  void Fold(Name* name, FoldedPtr folded);

  // REQUIRES: absent.
  Name* Insert(NameKey key);
  void Erase(Name* name);
  // At recovery: every name, best in order; then RecoveryDone, before anything is looked for.
  void InsertRecovered(FoldedPtr folded);
  void RecoveryDone();
  size_t size() const { return names_.size(); }
  uint64_t count(NameKind kind) const { return counts_[static_cast<int>(kind)]; }

  // Folding and unfolding leave iterators as they are.
  const_iterator begin() const { return names_.begin(); }
  const_iterator end() const { return names_.end(); }
  // The first name after (tenant, kind, name).
  const_iterator After(const View& view) const { return names_.upper_bound(view); }
  const_iterator From(const View& view) const { return names_.lower_bound(view); }

  // The names that are not folded, in a round: each call gives the next. REQUIRES: there is one.
  size_t unfolded() const { return unfolded_.size(); }
  Name* NextUnfolded() {
    unfolded_.splice(unfolded_.end(), unfolded_, unfolded_.begin());
    return unfolded_.back();
  }

  bool IndexIsWhole() const;  // for CheckInvariants: the index has every name once, as it is

 private:
  // Finding a name in order would touch some twenty others, most of them far from any cache. So there is an index by
  // hash, in many parts: none is so large that its growing would be felt.
  static constexpr size_t kIndexParts = 256;
  const Index& PartOf(const View& view) const { return index_[Hash::Of(view) >> 56]; }
  Index& PartOf(const View& view) { return index_[Hash::Of(view) >> 56]; }
  const Entry* Look(const View& view) const {
    const Index& part = PartOf(view);
    const auto it = part.find(view);
    return it == part.end() ? nullptr : &*it;
  }
  void Replace(const View& view, Entry by);

  const Unfolder unfolder_;
  Set names_;
  std::array<Index, kIndexParts> index_;
  std::list<Name*> unfolded_;
  uint64_t counts_[4] = {};
};

// Why a name is gone. A bounded table, oldest out first; after that the answer is UNKNOWN.
class TombstoneTable {
 public:
  enum class Reason : uint8_t { kDeleted = 1, kExpired, kEvicted, kNotDurable, kCorrupt };
  static constexpr size_t kLimit = 65'536;

  // Remembers why `key` is gone. A prefix stays findable in the index as long as its tombstone lasts, so `prefix` comes
  // back, from here or from Remove or Load, when it is time to erase it there.
  using PrefixPlace = std::shared_ptr<const PrefixIndex::Place>;
  [[nodiscard]] std::vector<PrefixPlace> Add(const NameKey& key, Reason reason, PrefixPlace prefix);
  // The name exists again.
  [[nodiscard]] PrefixPlace Remove(const NameKey& key);
  std::optional<Reason> Find(const NameKey& key) const;

  // Something may be missing here: names were lost in a crash, or older tombstones made room.
  void SetUncertain() { uncertain_ = true; }
  bool uncertain() const { return uncertain_; }
  bool overflowed() const { return overflowed_; }

  std::string Save() const;
  // Gives the prefixes whose tombstones were loaded. Anything unreadable makes the table uncertain.
  [[nodiscard]] std::vector<PrefixPlace> Load(absl::string_view saved);
  size_t size() const { return stones_.size(); }
  size_t prefixes() const { return prefixes_; }

 private:
  struct Stone {
    Reason reason;
    uint64_t serial;  // of its entry in order_: an older entry of the same name is stale
    PrefixPlace prefix;
  };
  static uint64_t HashOf(const NameKey& key);
  void Put(uint64_t hash, Reason reason, PrefixPlace prefix, std::vector<PrefixPlace>* gone);

  // By HashOf: two names with one hash are too rare to matter for a reason.
  absl::flat_hash_map<uint64_t, Stone> stones_;
  std::deque<std::pair<uint64_t, uint64_t>> order_;  // (hash, serial), oldest first
  uint64_t next_serial_ = 1;
  size_t prefixes_ = 0;
  bool uncertain_ = false;
  bool overflowed_ = false;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_NAME_TABLE_H_
