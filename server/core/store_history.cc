// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The operations that go by a sequence's tokens: back to a position or by tokens, out with a range, and another
// numbering. The arithmetic is in history.h.
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/history.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {
namespace {

size_t RollbackTokensOf(const Ring& ring) {
  std::vector<int64_t> positions;  // newest first
  for (auto version = ring.rbegin(); version != ring.rend(); ++version) positions.push_back((*version)->position);
  return RollbackTokens(positions);
}

absl::Status HistoryTooShort(const NameKey& key, int64_t tokens, size_t available) {
  return Error(absl::StatusCode::kFailedPrecondition, "HISTORY_TOO_SHORT",
               absl::StrCat("'", key.name, "' can go back by ", available, " tokens, not by ", tokens,
                            ": single steps lead no farther. Older versions are found by their positions (Describe)"))
      .Field("tokens")
      .Meta("available", static_cast<uint64_t>(available));
}

}  // namespace

template <typename Request>
absl::StatusOr<std::optional<Store::Found>> Store::FindOrReplayLocked(const Source& source, const Request& request,
                                                                      NameInfo* answer) {
  if (const Name* name = FindLocked(source.key); name != nullptr) {
    const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, answer);
    RETURN_IF_ERROR(replayed.status());
    if (*replayed) return std::nullopt;
  }
  absl::StatusOr<Found> found = ResolveLocked(source, "sequence");
  RETURN_IF_ERROR(found.status());
  RETURN_IF_ERROR(CheckIfRevision(found->name, request.if_revision));
  return *std::move(found);
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const RollbackRequest& request, NameInfo* answer) {
  Source source{{op.tenant, NameKind::kSequence, request.sequence}, std::nullopt, ""};
  if (!request.tokens.has_value()) source.position = request.position;
  RETURN_IF_ERROR(ValidateKey(source.key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  if (request.tokens.has_value() && (*request.tokens < 0 || request.position != 0)) {
    return Invalid("INVALID_OPTION", "tokens",
                   "say where to go back to by a position, or by how many tokens: 0 or more, without a position");
  }
  return Change{{source.key},
                [this, source, &request, answer]()
                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
                      absl::StatusOr<std::optional<Found>> found = FindOrReplayLocked(source, request, answer);
                      RETURN_IF_ERROR(found.status());
                      if (!found->has_value()) return std::vector<Next>();
                      size_t index = (*found)->index;
                      NameState state = (*found)->name->state;
                      if (request.tokens.has_value()) {
                        const size_t available = RollbackTokensOf(state.ring);
                        if (static_cast<uint64_t>(*request.tokens) > available)
                          return HistoryTooShort(source.key, *request.tokens, available);
                        index -= static_cast<size_t>(*request.tokens);
                      }
                      state.ring.resize(index + 1);
                      GiveRevision(request.request, &state);
                      return One(std::move(state));
                    },
                answer,
                absl::OkStatus()};
}

absl::StatusOr<std::vector<Store::Next>> Store::RemoveAbsentLocked(const NameKey& key,
                                                                   const RemoveRangeRequest& request, absl::Status miss,
                                                                   RemoveRangeAnswer* answer) {
  const auto grave = graves_.find(key);
  // A record that nobody can read is a sequence too, as for Delete; where it is, nobody knows.
  if (grave != graves_.end() && grave->second.kept && request.range.HasAllOf(kMaxPosition)) {
    answer->done = answer->deleted = true;
    return One(std::nullopt);
  }
  if (!request.allow_missing || !absl::IsNotFound(miss)) return miss;
  answer->done = answer->missing = true;
  // What is left on disk of an earlier name goes before the answer: it may have tokens of the range.
  if (grave == graves_.end() || grave->second.kept || request.range.empty()) return std::vector<Next>();
  return One(std::nullopt);
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const RemoveRangeRequest& request,
                                             RemoveRangeAnswer* answer) {
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  return Change{{key},
                [this, key, &request, answer]()
                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
                      *answer = RemoveRangeAnswer{};
                      const absl::StatusOr<std::optional<Found>> found =
                          FindOrReplayLocked({key, std::nullopt, ""}, request, &answer->info);
                      if (!found.ok() && FindLocked(key) == nullptr)
                        return RemoveAbsentLocked(key, request, found.status(), answer);
                      RETURN_IF_ERROR(found.status());
                      answer->done = !found->has_value();  // what is remembered was done
                      if (answer->done) return std::vector<Next>();
                      const Name& name = *(*found)->name;
                      const int64_t position = name.state.head()->position;
                      if (request.range.HasAllOf(position)) {
                        answer->done = answer->deleted = true;
                        return One(std::nullopt);
                      }
                      answer->info = InfoLocked(name, *name.state.head());
                      answer->done = !request.range.HasLastOf(position);
                      if (answer->done) return std::vector<Next>();
                      NameState state = name.state;
                      while (!state.ring.empty() && state.ring.back()->position != request.range.begin())
                        state.ring.pop_back();
                      answer->done = !state.ring.empty();
                      if (!answer->done) return std::vector<Next>();
                      GiveRevision(request.request, &state);
                      return One(std::move(state));
                    },
                &answer->info,
                absl::OkStatus()};
}

Ring Store::RenumberedRing(const Ring& ring, const TokenRange& range, const Renumbering& change) {
  const auto keeps_place = [&](const VersionRef& version) {
    return range.HasLastOf(version->position) && change.PositionOf(version->position).has_value();
  };
  auto first = ring.end();
  while (first != ring.begin() && keeps_place(*(first - 1))) --first;
  Ring renumbered;
  for (auto it = first; it != ring.end(); ++it) {
    const Version& old = **it;
    const Exactness exactness = old.exactness == Exactness::kLossy ? Exactness::kLossy : Exactness::kEdited;
    renumbered.push_back(NewVersion(old.id, *change.PositionOf(old.position), exactness, old.image));
  }
  return renumbered;
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const RenumberRequest& request, NameInfo* answer) {
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  if (request.change.divide < 1) return Invalid("INVALID_OPTION", "divide", "the divisor is 1 or more");
  if (request.change.divide > 1 && request.change.add != 0)
    return Invalid("INVALID_OPTION", "change", "add and divide exclude each other");
  return Change{
      {key},
      [this, key, &request, answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
        const absl::StatusOr<std::optional<Found>> found = FindOrReplayLocked({key, std::nullopt, ""}, request, answer);
        RETURN_IF_ERROR(found.status());
        if (!found->has_value()) {
          if (request.with_history) AddHistory(FindLocked(key)->state.ring, answer);
          return std::vector<Next>();
        }
        const Name& name = *(*found)->name;
        *answer = InfoLocked(name, *name.state.head());
        if (request.with_history) AddHistory(name.state.ring, answer);
        const int64_t position = name.state.head()->position;
        if (!request.range.HasLastOf(position)) return std::vector<Next>();
        const std::optional<int64_t> renumbered = request.change.PositionOf(position);
        if (!renumbered.has_value()) {
          return absl::Status(Error(absl::StatusCode::kInvalidArgument, "INVALID_POSITION",
                                    absl::StrCat("'", key.name, "' is at position ", position, ", and ",
                                                 request.change.add, " more is outside 1..2^53: nothing changed"))
                                  .Field("add")
                                  .Meta("position", static_cast<uint64_t>(position)));
        }
        if (*renumbered == position) return std::vector<Next>();
        NameState state = name.state;
        state.ring = RenumberedRing(name.state.ring, request.range, request.change);
        GiveRevision(request.request, &state);
        return One(std::move(state));
      },
      answer,
      absl::OkStatus(),
      [this, key, &request, answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        if (!request.with_history) return;
        if (const Name* name = names_.Find(key); name != nullptr) AddHistory(name->state.ring, answer);
      }};
}

}  // namespace statepool
