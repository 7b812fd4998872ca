// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Rows that are moved to the states after their accepted tokens: Advance, and Stores that do it too.
#include <algorithm>
#include <utility>

#include "server/core/name.h"
#include "server/memory/arenas_internal.h"

namespace statepool {
namespace {

constexpr uint64_t kTaskBytes = 1 << 20;  // what a thread moves before it looks who else waits

std::string FieldOf(size_t i, absl::string_view field) { return absl::StrCat("items[", i, "].", field); }

// Whether the row is to be moved, or is where it is to be.
bool IsMoved(const AdvancedRow& row) {
  return row.status.ok() && (row.outcome == AdvanceOutcome::kMoved || row.outcome == AdvanceOutcome::kInPlace);
}

// Whether the state is where it is to be already.
bool IsInPlace(const AdvanceMove& move) { return move.from_row == move.to_row && move.steps.bits() == 1; }

// Of a row that another call with this request_id has moved.
absl::Status MovedByAnother() {
  return Invalid("REQUEST_ID_REUSED", "request_id",
                 "this request_id has moved the row already, for something else: each Advance, and each Store that "
                 "advances, needs one of its own");
}

absl::Status RowTwice(size_t i, absl::string_view field, uint32_t row) {
  return Invalid("DUPLICATE_ROW", FieldOf(i, field),
                 absl::StrCat("row ", row, " is written by one item, and written or read by another"));
}

// What is wrong with the whole request: then nothing is done.
absl::Status CheckRequest(const AdvanceRequest& request, const ArenaShape& shape) {
  const std::vector<AdvanceItem>& items = request.items;
  if (items.empty()) return Invalid("MISSING_FIELD", "items", "name at least one row");
  if (items.size() > shape.rows) return TooManyItems(items.size(), shape.rows);
  if (absl::Status status = ValidateRequestId(request.request_id); !status.ok()) return status;
  if (request.rules.verified_length > shape.max_accepted()) {
    return Invalid(
        "INVALID_OPTION", "verified_length",
        absl::StrCat("a row of this arena holds ", shape.max_accepted(), " steps, so not more are verified"));
  }
  std::vector<AdvanceMove> rows;
  for (size_t i = 0; i < items.size(); ++i) {
    const uint32_t to = items[i].to_row.value_or(items[i].row);
    if (items[i].row >= shape.rows) return RowOutOfRange(FieldOf(i, "row"), items[i].row, shape.rows);
    if (to >= shape.rows) return RowOutOfRange(FieldOf(i, "to_row"), to, shape.rows);
    rows.push_back({items[i].row, to});
  }
  if (const std::optional<RowClash> clash = FindRowClash(rows)) {
    const AdvanceItem& item = items[clash->item];
    return clash->is_to_row && item.to_row.has_value() ? RowTwice(clash->item, "to_row", *item.to_row)
                                                       : RowTwice(clash->item, "row", item.row);
  }
  return absl::OkStatus();
}

// What becomes of each row, as the answer says it, and how; parallel to the items.
std::vector<AdvanceMove> MovesOf(const AdvanceRequest& request, const ArenaShape& shape, AdvanceAnswer* answer) {
  const uint32_t limit = shape.max_accepted();
  std::vector<AdvanceMove> moves;
  for (const AdvanceItem& item : request.items) {
    const uint32_t to_row = item.to_row.value_or(item.row);
    const Accepted accepted = AcceptedOf(item.accepted_length, item.path, to_row != item.row, limit, request.rules);
    moves.push_back({item.row, to_row, accepted.steps});
    AdvancedRow& row = answer->rows.emplace_back();
    row.outcome = accepted.outcome;
    switch (accepted.outcome) {
      case AdvanceOutcome::kNoLength:
        row.status = Invalid("MISSING_FIELD", "accepted_length", "say how many tokens hold, or which: `path`");
        break;
      case AdvanceOutcome::kLengthAndPath: row.status = LengthAndPath(); break;
      case AdvanceOutcome::kBadLength: row.status = BadAcceptedLength(*item.accepted_length, limit); break;
      case AdvanceOutcome::kBadPath: row.status = BadPath(limit); break;
      case AdvanceOutcome::kMoved:
      case AdvanceOutcome::kInPlace:
      case AdvanceOutcome::kSkippedNone:
      case AdvanceOutcome::kSkippedOutOfRange:
      case AdvanceOutcome::kSkippedAll: break;
    }
  }
  return moves;
}

}  // namespace

absl::Status BadAcceptedLength(uint32_t length, uint32_t limit) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_ACCEPTED_LENGTH",
               absl::StrCat("the accepted length is 1..", limit, ", not ", length))
      .Field("accepted_length")
      .Meta("limit", limit);
}

absl::Status BadPath(uint32_t limit) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
               absl::StrCat("a path is steps of the row, 0..", limit - 1, ", each larger than the one before it"))
      .Field("path")
      .Meta("limit", limit);
}

absl::Status LengthAndPath() {
  return Invalid("INVALID_OPTION", "path", "contradicts accepted_length: give the one or the other");
}

absl::Status AdvancedElsewhere() {
  return Invalid("REQUEST_ID_REUSED", "request_id",
                 "the version is there already, and this row was not moved when it was stored, or something else was "
                 "done to it since: Load the row, or Advance it by a call of its own");
}

absl::Status StatusOf(StoreOutcome outcome, const StoreItem& item, uint32_t limit) {
  switch (outcome) {
    case StoreOutcome::kStored:
    case StoreOutcome::kSkipped: break;
    case StoreOutcome::kLengthAndPath: return LengthAndPath();
    case StoreOutcome::kBadLength: return BadAcceptedLength(item.accepted_length.value_or(1), limit);
    case StoreOutcome::kBadPath: return BadPath(limit);
    case StoreOutcome::kTreeOfWindows:
      return Invalid("INVALID_OPTION", "path",
                     "tensors with num_spec columns are stored along a chain, 0, 1 and so on; Advance the row along "
                     "this path, and store it then with accepted length 1, or open the arena without num_spec");
  }
  return absl::OkStatus();
}

absl::StatusOr<AdvanceAnswer> Arenas::Advance(const Op& op, absl::string_view id, const AdvanceRequest& request) {
  return AdvanceInTurn(op, id, request, Queue::kLimited);
}

absl::StatusOr<AdvanceAnswer> Arenas::AdvanceInTurn(const Op& op, absl::string_view id, const AdvanceRequest& request,
                                                    Queue queue) {
  ArenaRef arena;
  RETURN_IF_ERROR(Take(op, id, queue, &arena));
  const Turn turn(this, arena);
  RETURN_IF_ERROR(CheckRequest(request, *arena->shape));
  AdvanceAnswer answer;
  const std::vector<AdvanceMove> planned = MovesOf(request, *arena->shape, &answer);
  std::vector<AdvanceMove> moves;
  for (size_t i = 0; i < planned.size(); ++i) {
    AdvancedRow& row = answer.rows[i];
    const Arena::MovedBy& moved_by = arena->rows[planned[i].to_row].moved_by;
    if (!row.status.ok()) continue;
    if (!moved_by.Is(request.request_id)) {
      if (IsMoved(row)) moves.push_back(planned[i]);
    } else if (!IsMoved(row) || !moved_by.IsAdvance(planned[i].from_row, planned[i].steps)) {
      row.status = MovedByAnother();
    }
  }
  RETURN_IF_ERROR(MoveRowsBy(op, arena.get(), moves, request.request_id, &answer.copy_time));
  return answer;
}

// MoveRows for an Advance: of rows that are where they are to be it is taken note alone.
absl::Status Arenas::MoveRowsBy(const Op& op, Arena* arena, absl::Span<const AdvanceMove> moves,
                                absl::string_view request_id, absl::Duration* copy_time) {
  std::vector<AdvanceMove> moved;
  for (const AdvanceMove& move : moves) {
    if (!IsInPlace(move)) moved.push_back(move);
  }
  RETURN_IF_ERROR(MoveRows(op, arena, moved, copy_time));
  for (const AdvanceMove& move : moves) {
    arena->rows[move.to_row].moved_by = {
        .request_id = std::string(request_id), .from_row = move.from_row, .steps = move.steps};
  }
  return absl::OkStatus();
}

// All or nothing, but for a lease that ends and a device that fails. REQUIRES: the turn.
absl::Status Arenas::MoveRows(const Op& op, Arena* arena, absl::Span<const AdvanceMove> moves,
                              absl::Duration* copy_time) {
  if (moves.empty()) return absl::OkStatus();
  const AdvancePlan& plan = arena->shape->advance_plan;
  char* const memory = arena->memory->data();
  const MonoTime start = clock_->Now();
  absl::Status status;
  if (arena->copier != nullptr) {
    status = arena->copier->Advance(moves, memory);
  } else {
    const size_t parts = plan.parts().size();
    const size_t parts_each = std::clamp<uint64_t>(kTaskBytes * parts / std::max<uint64_t>(plan.bytes(), 1), 1, parts);
    const size_t tasks_each = (parts + parts_each - 1) / parts_each;
    Op begun;  // what has begun is finished
    begun.tenant = op.tenant;
    const auto run = [&](size_t task) {
      const size_t first = task % tasks_each * parts_each, last = std::min(first + parts_each, parts);
      for (size_t part = first; part < last; ++part) plan.Move(memory, moves[task / tasks_each], part);
    };
    const size_t tasks = moves.size() * tasks_each;
    status = copies_->Run(begun, &arena->ended, moves.size() * plan.bytes(), tasks, run);
    if (absl::IsResourceExhausted(status)) {  // it has not begun; its queue is no reason to leave a stored row behind
      for (size_t task = 0; task < tasks; ++task) run(task);
      status = absl::OkStatus();
    }
  }
  for (const AdvanceMove& move : moves) {
    Arena::Row& row = arena->rows[move.to_row];
    if (!status.ok()) row = {};
    row.holds = 0;
    row.moved_by = {};
  }
  *copy_time += absl::Nanoseconds(clock_->Now() - start);
  return absl::IsCancelled(status) ? Gone(arena->id) : status;
}

// Whether it was this very Store, an earlier attempt of it, that advanced the item's row: then the answer is the first
// one's. The row has the state no more, and the sequence knows it by its checksum. Errors: REQUEST_ID_REUSED. REQUIRES:
// the item asks for it.
absl::StatusOr<bool> Arenas::AnswerAdvanced(const Op& op, const Arena& arena, const StoreItem& item,
                                            StoredRow* answer) {
  const Arena::MovedBy& moved_by = arena.rows[item.row].moved_by;
  if (!moved_by.Is(item.set.request.id)) return false;
  if (!moved_by.is_store) return MovedByAnother();
  if (moved_by.sequence != item.set.sequence) return false;  // each has request_ids of its own
  if (moved_by.body_hash != item.set.request.body_hash) return RequestIdReused();
  if (!moved_by.stored.has_value()) {
    answer->skipped = true;
    return true;
  }
  const absl::StatusOr<std::optional<NameInfo>> info = store_->ReplayOfSet(op, item.set, *moved_by.stored);
  RETURN_IF_ERROR(info.status());
  if (!info->has_value()) {
    return Invalid("REQUEST_ID_REUSED", "request_id",
                   "the sequence does not remember this request any more, and the row was advanced by it; to store the "
                   "row as it is now, give another request_id");
  }
  answer->info = **info;
  return true;
}

// Whether this Store made its version before, of this very state.
bool Arenas::IsReplay(const Op& op, const SetRequest& request, const Image& image) const {
  const absl::StatusOr<std::optional<NameInfo>> info = store_->ReplayOfSet(op, request, image.info().checksum);
  return info.ok() && info->has_value();
}

// Of a Store: rows that were stored, or skipped by `align`, and ask for it.
absl::Status Arenas::AdvanceStored(const Op& op, Arena* arena, absl::Span<const StoreItem> items,
                                   absl::Span<const ToStore> to_store, const std::vector<bool>& answered,
                                   StoreAnswer* answer) {
  std::vector<AdvanceMove> moves;
  std::vector<size_t> advanced;  // indexes of items
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].advance || answered[i] || !answer->rows[i].status.ok() || !to_store[i].steps) continue;
    advanced.push_back(i);
    if (to_store[i].steps->bits() != 1) moves.push_back({items[i].row, items[i].row, *to_store[i].steps});
  }
  RETURN_IF_ERROR(MoveRows(op, arena, moves, &answer->copy_time));
  for (const size_t i : advanced) {
    const StoredRow& stored = answer->rows[i];
    Arena::Row& row = arena->rows[items[i].row];
    // A state of align mode may be one that the row has passed.
    if (to_store[i].length == to_store[i].steps->last() + 1) row.holds = stored.info.version.id;
    row.moved_by = {.request_id = items[i].set.request.id,
                    .is_store = true,
                    .sequence = items[i].set.sequence,
                    .body_hash = items[i].set.request.body_hash};
    if (!stored.skipped) row.moved_by.stored = stored.info.version.checksum;
  }
  return absl::OkStatus();
}

// ----
// with flag words

void Arenas::Advance(const Op& op, absl::string_view id, AdvanceRequest request, const CallFlags& flags,
                     Answered<AdvanceAnswer> answered) {
  const absl::StatusOr<ArenaRef> arena = FindFlagged(op, id, flags);
  if (!arena.ok()) return answered(arena.status());
  const Op wait = WaitOf(op);
  if (!flags.done.has_value()) {
    const auto answer_with = std::make_shared<Answered<AdvanceAnswer>>(std::move(answered));
    const absl::StatusOr<bool> is_next =
        Enqueue(*arena, wait, flags.after,
                [this, op, id = (*arena)->id, request = std::move(request), answer_with](absl::Status why) {
                  (*answer_with)(why.ok() ? AdvanceInTurn(op, id, request, Queue::kUnlimited) : std::move(why));
                });
    if (!is_next.ok()) return (*answer_with)(is_next.status());
    if (*is_next) RunReady(*arena);
    return;
  }
  // Answers, and then moves.
  auto late = std::make_unique<LateAdvance>(*arena, flags);
  absl::StatusOr<AdvanceAnswer> answer = AdvanceAnswer();
  if (absl::Status status = CheckRequest(request, *(*arena)->shape); status.ok()) {
    const std::vector<AdvanceMove> planned = MovesOf(request, *(*arena)->shape, &*answer);
    for (size_t i = 0; i < planned.size(); ++i) {
      const AdvancedRow& row = answer->rows[i];
      const bool takes_note = IsMoved(row) && !request.request_id.empty();  // of one in place, too
      if (takes_note || (row.status.ok() && row.outcome == AdvanceOutcome::kMoved)) late->moves.push_back(planned[i]);
    }
  } else {
    answer = std::move(status);
  }
  if (late->moves.empty()) {
    late.reset();
    return answered(std::move(answer));
  }
  late->request_id = std::move(request.request_id);
  late->op.tenant = op.tenant;
  late->op.deadline = wait.deadline;
  const Op move = late->op;  // which outlives the call, and what cancels it
  // Before the answer: the order is that of the calls, and who may not wait is told.
  const absl::StatusOr<bool> is_next =
      Enqueue(*arena, move, flags.after,
              [this, late = std::move(late)](absl::Status why) { Move(late.get(), std::move(why)); });
  if (!is_next.ok()) return answered(is_next.status());
  answered(std::move(answer));
  if (*is_next) RunReady(*arena);
}

// `status`: whether it may.
void Arenas::Move(LateAdvance* late, absl::Status status) {
  Arena* const arena = late->arena.get();
  std::vector<uint32_t> refused;  // rows
  if (status.ok()) {
    ArenaRef taken;
    status = Take(late->op, arena->id, Queue::kUnlimited, &taken);
    if (status.ok()) {
      const Turn turn(this, taken);
      std::erase_if(late->moves, [&](const AdvanceMove& move) {
        const Arena::MovedBy& moved_by = arena->rows[move.to_row].moved_by;
        if (!moved_by.Is(late->request_id)) return false;
        if (!moved_by.IsAdvance(move.from_row, move.steps)) refused.push_back(move.to_row);
        return true;
      });
      absl::Duration copy_time;
      status = MoveRowsBy(late->op, arena, late->moves, late->request_id, &copy_time);
    }
  }
  if (!refused.empty()) Spoil(arena, refused, MovedByAnother());
  if (!status.ok()) {
    std::vector<uint32_t> rows;
    for (const AdvanceMove& move : late->moves) {
      if (!IsInPlace(move)) rows.push_back(move.to_row);
    }
    Spoil(arena, rows, status);
  }
  late->done.Set();
}

}  // namespace statepool
