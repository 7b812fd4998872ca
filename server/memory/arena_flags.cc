// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas' calls with flag words: what arenas.h says of them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/memory/arenas_internal.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

absl::Status CheckWord(const std::optional<FlagValue>& flag, absl::string_view field) {
  if (!flag.has_value() || (flag->word != FlagWords::kFailures && flag->word < FlagWords::kCount))
    return absl::OkStatus();
  return Invalid("INVALID_OPTION", absl::StrCat(field, ".word"),
                 absl::StrCat("word ", flag->word, " is not a worker's; 1..", FlagWords::kCount - 1, " are"));
}

}  // namespace

absl::StatusOr<Arenas::ArenaRef> Arenas::FindFlagged(const Op& op, absl::string_view id, const CallFlags& flags) const {
  RETURN_IF_ERROR(op.Check(*clock_));
  ArenaRef arena;
  {
    MutexLock lock(&mu_);
    absl::StatusOr<ArenaRef> found = Find(op, id);
    RETURN_IF_ERROR(found.status());
    arena = *std::move(found);
    if (arena->state == Arena::State::kWaiting) return NotConnected();
  }
  if (arena->words == nullptr) {
    return Invalid("INVALID_OPTION", flags.after.has_value() ? "after" : "done",
                   "the arena has no flag words; open one with_flags");
  }
  RETURN_IF_ERROR(CheckWord(flags.after, "after"));
  RETURN_IF_ERROR(CheckWord(flags.done, "done"));
  return arena;
}

// ----
// the calls

// How long it may wait for its word.
Op Arenas::WaitOf(const Op& op) const {
  Op wait = op;
  wait.deadline = std::min(op.deadline, After(clock_->Now(), options_.max_late_wait));
  return wait;
}

void Arenas::Store(const Op& op, absl::string_view id, std::vector<StoreItem> items, bool all_or_none,
                   const CallFlags& flags, Answered<StoreAnswer> answered) {
  const absl::StatusOr<ArenaRef> arena = FindFlagged(op, id, flags);
  if (!arena.ok()) return answered(arena.status());
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].attachment.empty()) continue;
    return answered(Invalid("INVALID_OPTION", absl::StrCat("items[", i, "].attachment"),
                            "a call that may wait for a word keeps no attachments: leave the words out"));
  }
  const auto answer_with = std::make_shared<Answered<StoreAnswer>>(std::move(answered));
  auto done = std::make_unique<Done>((*arena)->words, flags.done);
  const absl::StatusOr<bool> is_next =
      Enqueue(*arena, WaitOf(op), flags.after,
              [this, op, id = (*arena)->id, items = std::move(items), all_or_none, done = std::move(done),
               answer_with](absl::Status why) {
                absl::StatusOr<StoreAnswer> answer =
                    why.ok() ? StoreInTurn(op, id, items, all_or_none, Queue::kUnlimited, done.get()) : std::move(why);
                done->Set();
                (*answer_with)(std::move(answer));
              });
  if (!is_next.ok()) return (*answer_with)(is_next.status());
  if (*is_next) RunReady(*arena);
}

void Arenas::Load(const Op& op, absl::string_view id, std::vector<LoadItem> items, const CallFlags& flags,
                  Answered<LoadAnswer> answered) {
  const absl::StatusOr<ArenaRef> arena = FindFlagged(op, id, flags);
  if (!arena.ok()) return answered(arena.status());
  if (flags.done.has_value()) return LoadLate(op, *arena, std::move(items), flags, std::move(answered));
  const auto answer_with = std::make_shared<Answered<LoadAnswer>>(std::move(answered));
  const absl::StatusOr<bool> is_next = Enqueue(
      *arena, WaitOf(op), flags.after,
      [this, op, id = (*arena)->id, items = std::move(items), answer_with](absl::Status why) {
        (*answer_with)(why.ok() ? LoadInTurn(op, id, items, /*hold=*/nullptr, Queue::kUnlimited) : std::move(why));
      });
  if (!is_next.ok()) return (*answer_with)(is_next.status());
  if (*is_next) RunReady(*arena);
}

// Answers, and then copies.
void Arenas::LoadLate(const Op& op, const ArenaRef& arena, std::vector<LoadItem> items, const CallFlags& flags,
                      Answered<LoadAnswer> answered) {
  auto late = std::make_unique<LateLoad>(this, arena, std::move(items), flags);
  absl::StatusOr<LoadAnswer> answer = Prepare(op, late.get());
  if (!answer.ok() || late->found.items.empty()) {
    late.reset();
    return answered(std::move(answer));
  }
  const Op copy = late->op;
  // Before the answer: the order is that of the calls, and who may not wait is told.
  const absl::StatusOr<bool> is_next = Enqueue(
      arena, copy, flags.after, [this, late = std::move(late)](absl::Status why) { Copy(late.get(), std::move(why)); });
  if (!is_next.ok()) return answered(is_next.status());
  answered(std::move(answer));
  if (*is_next) RunReady(arena);
}

// What is answered: with the states pinned.
absl::StatusOr<LoadAnswer> Arenas::Prepare(const Op& op, LateLoad* late) {
  Arena* const arena = late->arena.get();
  std::vector<LoadItem>& items = late->items;
  RETURN_IF_ERROR(CheckItems(absl::MakeConstSpan(items), arena->shape->rows, arena->shape->rows));
  late->op.tenant = op.tenant;
  late->op.deadline = WaitOf(op).deadline;
  LoadAnswer answer;
  answer.rows.resize(items.size());
  std::vector<size_t> wanted;
  for (size_t i = 0; i < items.size(); ++i) {
    answer.rows[i].status = items[i].refused;
    if (items[i].refused.ok()) wanted.push_back(i);
  }
  if (wanted.empty()) return answer;
  absl::StatusOr<Found> found = FindStates(op, arena, items, &wanted, late, &answer);
  RETURN_IF_ERROR(found.status());
  late->found = *std::move(found);
  for (size_t k = 0; k < late->found.items.size(); ++k) {
    LoadItem& item = items[late->found.items[k]];
    LoadedRow& row = answer.rows[late->found.items[k]];
    const GetAnswer& state = *late->found.states[k];
    row.info = state.info;
    row.copied = true;
    if (item.with_attachment) row.attachment = std::string(state.pin->attachment());
    item.row_unmodified = item.with_attachment = false;  // to the copy
  }
  return answer;
}

absl::Status Arenas::ReservePins(LateLoad* late, uint64_t bytes) {
  MutexLock lock(&mu_);
  const uint64_t pinned = stats_.flag_pinned_bytes;
  if (pinned > 0 && pinned + bytes > options_.max_pinned_bytes) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MUCH_PINNED",
                 "Loads that were answered before their copies have too much pinned; retry later, or without `done`")
        .Meta("limit", options_.max_pinned_bytes)
        .RetryAfter(absl::Milliseconds(20));
  }
  stats_.flag_pinned_bytes += bytes;
  late->pinned_bytes = bytes;
  return absl::OkStatus();
}

// `status`: whether it may.
void Arenas::Copy(LateLoad* late, absl::Status status) {
  Arena* const arena = late->arena.get();
  if (status.ok()) {
    ArenaRef taken;
    status = Take(late->op, arena->id, Queue::kUnlimited, &taken);
    if (status.ok()) {
      const Turn turn(this, taken);
      LoadAnswer answered;
      answered.rows.resize(late->items.size());
      status = CopyIntoRows(late->op, arena, late->items, late->found.items, absl::MakeSpan(late->found.states),
                            /*hold=*/nullptr, &answered);
    }
  }
  if (!status.ok()) {
    std::vector<uint32_t> rows;
    for (const size_t i : late->found.items) rows.push_back(late->items[i].row);
    Spoil(arena, rows, status);
  }
  late->done.Set();
}

// After a call that failed when it was answered already.
void Arenas::Spoil(Arena* arena, absl::Span<const uint32_t> rows, const absl::Status& why) {
  spdlog::debug("arena {}: a call that was answered failed: {}", arena->id, std::string(why.message()));
  MutexLock lock(&mu_);
  arena->spoiled.insert(arena->spoiled.end(), rows.begin(), rows.end());
  arena->words->Set({FlagWords::kFailures, ++arena->late_failures});
  ++stats_.late_failures;
}

Arenas::LateLoad::~LateLoad() {
  done.Set();
  found.states.clear();
  MutexLock lock(&arenas->mu_);
  arenas->stats_.flag_pinned_bytes -= pinned_bytes;
}

// ----
// their order

// `call` is called once: by RunReady, when `after` is reached, or else by the waiter's thread with why it is not. True:
// the caller is to call RunReady. Errors: QUEUE_FULL, DRAINING; `call` is destroyed.
absl::StatusOr<bool> Arenas::Enqueue(const ArenaRef& arena, const Op& op, const std::optional<FlagValue>& after,
                                     FlaggedCall call) {
  {
    MutexLock lock(&mu_);
    if (arena->flagged >= options_.max_arena_flag_waits) {
      const uint32_t limit = options_.max_arena_flag_waits;
      return absl::Status(
          Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                absl::StrCat(limit, " calls of this arena wait for flag words already; retry later, or without words"))
              .Meta("limit", limit)
              .RetryAfter(absl::Milliseconds(20)));
    }
    if (arena->flagged++ == 0 && (!after.has_value() || arena->words->Reached(*after))) {
      ++runners_;
      arena->running = true;
      arena->ready.push_back(std::move(call));
      return true;
    }
  }
  const absl::Status waits = waiter_.Wait(arena->words, after, op, &arena->ended,
                                          [this, arena, call = std::move(call)](absl::Status why) mutable {
                                            Reached(arena, std::move(why), std::move(call));
                                          });
  if (waits.ok()) return false;
  MutexLock lock(&mu_);
  --arena->flagged;
  return waits;
}

// On the waiter's thread.
void Arenas::Reached(const ArenaRef& arena, absl::Status why, FlaggedCall call) {
  if (!why.ok()) {
    call(absl::IsAborted(why) ? Gone(arena->id) : std::move(why));
    MutexLock lock(&mu_);
    --arena->flagged;
    return;
  }
  MutexLock lock(&mu_);
  arena->ready.push_back(std::move(call));
  if (arena->running) return;
  arena->running = true;
  ++runners_;
  Schedule(arena);
}

// REQUIRES: this thread has taken `running`.
void Arenas::Schedule(const ArenaRef& arena) {
  const bool taken = run_ != nullptr && run_([this, arena] { RunReady(arena); }).ok();
  if (!taken) unscheduled_.push_back(arena);  // the keeper tries again
}

void Arenas::ScheduleAgain() {
  std::vector<ArenaRef> left;
  left.swap(unscheduled_);
  for (const ArenaRef& arena : left) Schedule(arena);
}

// Runs what is ready, until nothing is. REQUIRES: the caller is the one that `running` tells of.
void Arenas::RunReady(const ArenaRef& arena) {
  for (;;) {
    FlaggedCall call;
    {
      MutexLock lock(&mu_);
      if (arena->ready.empty()) {
        arena->running = false;
        --runners_;
        turns_.SignalAll();
        return;
      }
      call = std::move(arena->ready.front());
      arena->ready.pop_front();
    }
    call(absl::OkStatus());
    call = nullptr;
    MutexLock lock(&mu_);
    --arena->flagged;
  }
}

void Arenas::GoOnWith(Run run) {
  MutexLock lock(&mu_);
  run_ = std::move(run);
}

void Arenas::DrainFlags() {
  waiter_.Drain();
  std::vector<ArenaRef> left;
  {
    MutexLock lock(&mu_);
    run_ = nullptr;
    left.swap(unscheduled_);
  }
  for (const ArenaRef& arena : left) RunReady(arena);
}

}  // namespace statepool
