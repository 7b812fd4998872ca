// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What arenas.cc, arena_flags.cc, arena_parts.cc and arena_advance.cc share. For them alone.
#ifndef STATEPOOL_SERVER_MEMORY_ARENAS_INTERNAL_H_
#define STATEPOOL_SERVER_MEMORY_ARENAS_INTERNAL_H_

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/memory/arenas.h"

namespace statepool {

inline absl::Status TooManyItems(size_t items, size_t limit) {
  return Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(items, " items in one call"))
      .Field("items")
      .Meta("limit", limit);
}
inline absl::Status RowOutOfRange(absl::string_view field, uint32_t row, uint32_t rows) {
  return Error(absl::StatusCode::kInvalidArgument, "ROW_OUT_OF_RANGE",
               absl::StrCat("row ", row, " of an arena whose rows are 0..", rows - 1))
      .Field(field)
      .Meta("limit", rows);
}

// What is wrong with what an item says of the steps that hold.
absl::Status BadAcceptedLength(uint32_t length, uint32_t limit);
absl::Status BadPath(uint32_t limit);
absl::Status LengthAndPath();
absl::Status AdvancedElsewhere();
absl::Status StatusOf(StoreOutcome outcome, const StoreItem& item, uint32_t limit);

// What is wrong with the list itself: then nothing is done.
template <typename Item>
absl::Status CheckItems(absl::Span<const Item> items, uint32_t rows, size_t limit) {
  if (items.empty()) return Invalid("MISSING_FIELD", "items", "name at least one row");
  if (items.size() > limit) return TooManyItems(items.size(), limit);
  std::vector<bool> named(rows, false);
  for (size_t i = 0; i < items.size(); ++i) {
    const uint32_t row = items[i].row;
    if (row >= rows) return RowOutOfRange(absl::StrCat("items[", i, "].row"), row, rows);
    if (named[row]) {
      return Invalid("DUPLICATE_ROW", absl::StrCat("items[", i, "].row"),
                     absl::StrCat("row ", row, " is named twice in one call"));
    }
    named[row] = true;
  }
  return absl::OkStatus();
}

// Load or Store before the arena's socket connected.
absl::Status NotConnected();
// A Load with `done` that may not have all of its states pinned.
absl::Status LoadTooLarge(uint64_t limit);

struct Arenas::Arena {
  enum class State { kWaiting, kLeased, kEnded };
  // The call with a request_id that moved a row, or found it where it was to be: the last one that touched it.
  struct MovedBy {
    std::string request_id{};  // empty: there is none
    bool is_store = false;
    // Of an Advance:
    uint32_t from_row = 0;
    AcceptedSteps steps{};
    // Of a Store: which one, and what it stored; no checksum: nothing, it skipped the row.
    std::string sequence{};
    uint64_t body_hash = 0;
    std::optional<Checksum> stored{};

    bool Is(absl::string_view id) const { return !request_id.empty() && request_id == id; }
    bool IsAdvance(uint32_t from, AcceptedSteps path) const { return !is_store && from_row == from && steps == path; }
  };
  // What a row was last loaded from or stored as.
  struct Row {
    bool loaded = false;
    NameKey key;
    Revision revision = 0;
    VersionId holds = 0;  // the version whose state was left in the row; 0: none, though it may have a base
    PartAssemblies::Ref stored_with{};  // the version that it was last stored as a part of, in the place of all these
    MovedBy moved_by{};
  };

  std::string id, token;
  TenantId tenant = kDefaultTenant;
  Device* device = nullptr;
  LayoutRef layout;
  std::shared_ptr<const ArenaShape> shape;
  std::shared_ptr<FlagWords> words;  // null: it has none
  uint64_t memory_bytes = 0;         // of the budget
  uint64_t bytes = 0;                // with the slots reserved: as max_bytes counts
  MonoTime token_expires = 0;

  // Set once, read by copies under way.
  std::atomic<bool> ended{false};

  // Guarded by Arenas::mu_.
  State state = State::kWaiting;
  bool busy = false;     // a call, or whoever frees it, has its turn
  uint32_t waiting = 0;  // calls that wait for theirs
  bool process_gone = false;
  bool unmapped = false;    // as its worker says, of memory whose device can't tell
  MonoTime free_at = 0;     // when the keeper looks again: the memory was still mapped
  MonoTime reserve_at = 0;  // when there may be room again
  std::vector<std::unique_ptr<ImageWriter>> reserve;
  // How many more that were in it are held by versions in parts: they are not reserved anew as long.
  std::shared_ptr<std::atomic<uint32_t>> held = std::make_shared<std::atomic<uint32_t>>(0);
  uint32_t flagged = 0;           // calls with flag words that wait, are ready or run
  std::deque<FlaggedCall> ready;  // those whose words are reached, but for the one that runs
  bool running = false;           // a thread runs them, or will
  uint32_t late_failures = 0;     // what its word says
  std::vector<uint32_t> spoiled;  // rows that have lost their base; whoever has the turn next takes note of it

  // Whoever has the turn.
  std::vector<Row> rows;
  std::unique_ptr<SharedExtent> memory;
  std::unique_ptr<RowCopier> copier;        // null: the CPU copies
  std::unique_ptr<RowCopier> store_copier;  // of shape->store_plan; null, too, if that has nothing

  bool is_of_parts() const { return shape->tp_size > 1; }
  // Slots kept for a Store: of ranks each has a share of them, and takes the others' too (TakeReserved).
  uint32_t reserve_max() const { return (shape->rows + shape->tp_size - 1) / shape->tp_size; }
  bool lacks_reserve() const { return reserve.size() + held->load() < reserve_max(); }

  // Whether nothing need be copied for this item. REQUIRES: the turn.
  bool Holds(const LoadItem& item, const NameInfo& info) const {
    const Row& row = rows[item.row];
    return item.row_unmodified && row.loaded && row.holds == info.version.id;
  }
};

// The one call that runs on an arena, until this goes.
class Arenas::Turn {
 public:
  Turn(Arenas* arenas, ArenaRef arena) : arenas_(arenas), arena_(std::move(arena)) {}
  ~Turn() { arenas_->GiveBack(arena_.get()); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Arenas* const arenas_;
  const ArenaRef arena_;
};

// The word that a call sets when it touches its rows no more: at the latest when this goes. For one thread at a time.
class Arenas::Done {
 public:
  Done(std::shared_ptr<FlagWords> words, std::optional<FlagValue> done) : words_(std::move(words)), done_(done) {}
  ~Done() { Set(); }
  Done(const Done&) = delete;
  Done& operator=(const Done&) = delete;

  void Set() {
    if (done_.has_value()) words_->Set(*done_);
    done_.reset();
  }

 private:
  const std::shared_ptr<FlagWords> words_;
  std::optional<FlagValue> done_;
};

// Pinned states, and the items that they are for.
struct Arenas::Found {
  std::vector<size_t> items;
  std::vector<absl::StatusOr<GetAnswer>> states;  // parallel
};

// A Load that is answered before its copy.
struct Arenas::LateLoad {
  LateLoad(Arenas* arenas, ArenaRef arena, std::vector<LoadItem> items, const CallFlags& flags)
      : arenas(arenas), arena(std::move(arena)), items(std::move(items)), done(this->arena->words, flags.done) {}
  ~LateLoad();  // sets `done`, and lets go of the pins. REQUIRES: mu_ is not held
  LateLoad(const LateLoad&) = delete;
  LateLoad& operator=(const LateLoad&) = delete;

  Arenas* const arenas;
  const ArenaRef arena;
  std::vector<LoadItem> items;
  Found found;
  uint64_t pinned_bytes = 0;  // as the limit counts
  Op op;                      // of the copy
  Done done;
};

// An Advance that is answered before it moves.
struct Arenas::LateAdvance {
  LateAdvance(ArenaRef arena, const CallFlags& flags) : arena(std::move(arena)), done(this->arena->words, flags.done) {}
  LateAdvance(const LateAdvance&) = delete;
  LateAdvance& operator=(const LateAdvance&) = delete;

  const ArenaRef arena;
  std::vector<AdvanceMove> moves;
  std::string request_id;
  Op op;  // of the move
  Done done;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_ARENAS_INTERNAL_H_
