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
  std::vector<bool> written(shape.rows, false);
  for (size_t i = 0; i < items.size(); ++i) {
    const uint32_t to = items[i].to_row.value_or(items[i].row);
    if (items[i].row >= shape.rows) return RowOutOfRange(FieldOf(i, "row"), items[i].row, shape.rows);
    if (to >= shape.rows) return RowOutOfRange(FieldOf(i, "to_row"), to, shape.rows);
    if (written[to]) return RowTwice(i, items[i].to_row.has_value() ? "to_row" : "row", to);
    written[to] = true;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    const bool is_copied = items[i].to_row.has_value() && *items[i].to_row != items[i].row;
    if (is_copied && written[items[i].row]) return RowTwice(i, "row", items[i].row);
  }
  return absl::OkStatus();
}

// What is to be moved, and what the answer says of each row.
std::vector<AdvanceMove> MovesOf(const AdvanceRequest& request, const ArenaShape& shape, AdvanceAnswer* answer) {
  const uint32_t limit = shape.max_accepted();
  std::vector<AdvanceMove> moves;
  for (const AdvanceItem& item : request.items) {
    const Accepted accepted = AcceptedOf(item.accepted_length, item.path, limit, request.rules);
    AdvancedRow& row = answer->rows.emplace_back();
    row.outcome = accepted.outcome;
    switch (accepted.outcome) {
      case AdvanceOutcome::kInPlace:
        if (item.to_row.value_or(item.row) == item.row) break;
        row.outcome = AdvanceOutcome::kMoved;
        [[fallthrough]];
      case AdvanceOutcome::kMoved: moves.push_back({item.row, item.to_row.value_or(item.row), accepted.steps}); break;
      case AdvanceOutcome::kNoLength:
        row.status = Invalid("MISSING_FIELD", "accepted_length", "say how many tokens hold, or which: `path`");
        break;
      case AdvanceOutcome::kLengthAndPath: row.status = LengthAndPath(); break;
      case AdvanceOutcome::kBadLength: row.status = BadAcceptedLength(*item.accepted_length, limit); break;
      case AdvanceOutcome::kBadPath: row.status = BadPath(limit); break;
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
  std::vector<AdvanceMove> moves = MovesOf(request, *arena->shape, &answer);
  std::erase_if(moves, [&](const AdvanceMove& move) { return arena->WasAdvancedBy(move.to_row, request.request_id); });
  RETURN_IF_ERROR(MoveRows(op, arena.get(), moves, &answer.copy_time));
  for (const AdvanceMove& move : moves) arena->rows[move.to_row].advanced_by = request.request_id;
  return answer;
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
    row.advanced_by.clear();
  }
  *copy_time += absl::Nanoseconds(clock_->Now() - start);
  return absl::IsCancelled(status) ? Gone(arena->id) : status;
}

// Of a Store: rows that were stored, and ask for it. `advanced_to` is parallel to `stored`.
absl::Status Arenas::AdvanceStored(const Op& op, Arena* arena, absl::Span<const StoreItem> items,
                                   absl::Span<const size_t> stored, absl::Span<const AcceptedSteps> advanced_to,
                                   StoreAnswer* answer) {
  std::vector<AdvanceMove> moves;
  std::vector<size_t> advanced;  // indexes of items
  for (size_t k = 0; k < stored.size(); ++k) {
    const StoreItem& item = items[stored[k]];
    if (!item.advance || !answer->rows[stored[k]].status.ok()) continue;
    advanced.push_back(stored[k]);
    if (advanced_to[k].bits() != 1) moves.push_back({item.row, item.row, advanced_to[k]});
  }
  RETURN_IF_ERROR(MoveRows(op, arena, moves, &answer->copy_time));
  for (const size_t i : advanced) {
    Arena::Row& row = arena->rows[items[i].row];
    row.holds = answer->rows[i].info.version.id;  // 0: a version whose parts are not all there
    row.advanced_by = items[i].set.request.id;
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
    late->moves = MovesOf(request, *(*arena)->shape, &*answer);
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
  // Before the answer: the order is that of the calls, and who may not wait is told.
  const absl::StatusOr<bool> is_next =
      Enqueue(*arena, wait, flags.after,
              [this, late = std::move(late)](absl::Status why) { Move(late.get(), std::move(why)); });
  if (!is_next.ok()) return answered(is_next.status());
  answered(std::move(answer));
  if (*is_next) RunReady(*arena);
}

// `status`: whether it may.
void Arenas::Move(LateAdvance* late, absl::Status status) {
  Arena* const arena = late->arena.get();
  if (status.ok()) {
    ArenaRef taken;
    status = Take(late->op, arena->id, Queue::kUnlimited, &taken);
    if (status.ok()) {
      const Turn turn(this, taken);
      std::erase_if(late->moves,
                    [&](const AdvanceMove& move) { return arena->WasAdvancedBy(move.to_row, late->request_id); });
      absl::Duration copy_time;
      status = MoveRows(late->op, arena, late->moves, &copy_time);
      for (const AdvanceMove& move : late->moves) arena->rows[move.to_row].advanced_by = late->request_id;
    }
  }
  if (!status.ok()) {
    std::vector<uint32_t> rows;
    for (const AdvanceMove& move : late->moves) rows.push_back(move.to_row);
    Spoil(arena, rows, status);
  }
  late->done.Set();
}

}  // namespace statepool
