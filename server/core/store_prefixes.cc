// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Prefixes: publishing, matching, and letting go of those of least value.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {

namespace {

absl::Status ValidateTokens(const StoreOptions& options, absl::Span<const uint32_t> tokens,
                            absl::string_view extra_key) {
  if (tokens.empty()) return Invalid("MISSING_FIELD", "tokens", "a prefix has at least one token");
  if (tokens.size() > options.max_tokens) {
    return Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(tokens.size(), " tokens"))
        .Field("tokens")
        .Meta("limit", options.max_tokens);
  }
  if (extra_key.size() > options.max_extra_key_bytes) {
    return Invalid("INVALID_OPTION", "extra_key",
                   absl::StrCat("at most ", options.max_extra_key_bytes, " bytes; hash what is longer"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PublishAnswer> Store::PublishPrefix(const Op& op, const PublishRequest& request) {
  RETURN_IF_ERROR(ValidateTokens(options_, request.tokens, request.extra_key));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  const Hash128 root = hasher_.Root(op.tenant, (*layout)->fingerprint(), request.extra_key);
  const auto place = std::make_shared<const PrefixIndex::Place>(PrefixIndex::Locate(hasher_, root, request.tokens));
  const NameKey key{op.tenant, NameKind::kPrefix, Hash128ToHex(place->key)};
  NameState fresh = NewState(*layout);
  RETURN_IF_ERROR(ApplyOptions(request.options, &fresh));
  PublishAnswer answer;
  RETURN_IF_ERROR(Write(
      op, {key},
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
        Name* name = FindLocked(key);  // first: it may be the source, and finding may forget it
        absl::StatusOr<Found> found = ResolveLocked(request.source, "source");
        RETURN_IF_ERROR(found.status());
        if (name != nullptr && name != names_.Find(key)) name = nullptr;
        if (found->name->state.layout->fingerprint() != (*layout)->fingerprint()) {
          return LayoutMismatch(absl::StatusCode::kFailedPrecondition, **layout, *found->name->state.layout);
        }
        const int64_t position = found->version()->position;
        if (position != static_cast<int64_t>(request.tokens.size())) {
          return absl::Status(
              Error(absl::StatusCode::kFailedPrecondition, "POSITION_MISMATCH",
                    absl::StrCat("the source is at position ", position, ", the prefix has ", request.tokens.size(),
                                 " tokens; a state is valid at exactly one position"))
                  .Field("tokens")
                  .Meta("positions", PositionsOf(found->name->state.ring)));
        }
        const bool same = name != nullptr && name->state.prefix->locator.check == place->locator.check &&
                          name->state.prefix->length == place->length;
        // Published already. Only a stronger durability is still to do: the name's own version is recorded then.
        const bool strengthen =
            same && request.options.durability.value_or(name->state.durability) > name->state.durability;
        if (same && !strengthen) {
          UseLocked(name);
          answer.info = InfoLocked(*name, *name->state.head());
          answer.already_published = true;
          return std::vector<NameState>();
        }
        NameState state = same ? name->state : fresh;  // another prefix under this key: a collision, the newer one wins
        RETURN_IF_ERROR(ApplyOptions(request.options, &state));
        state.max_history = 1;
        state.prefix = place;
        if (!same) state.ring.push_back(found->version());
        answer.already_published = same;
        Advance({}, &state);
        UseLocked(found->name);
        return std::vector<NameState>{std::move(state)};
      },
      &answer.info));
  return answer;
}

absl::StatusOr<MatchAnswer> Store::MatchPrefix(const Op& op, const MatchRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  RETURN_IF_ERROR(ValidateTokens(options_, request.tokens, request.extra_key));
  if (request.max_results > options_.max_results) {
    return Invalid("INVALID_OPTION", "max_results", absl::StrCat("at most ", options_.max_results));
  }
  const int64_t max_position = request.max_position.value_or(static_cast<int64_t>(request.tokens.size()) - 1);
  RETURN_IF_ERROR(ValidatePosition(max_position, "max_position"));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  const Hash128 root = hasher_.Root(op.tenant, (*layout)->fingerprint(), request.extra_key);
  const std::vector<Hash128> stems = PrefixIndex::Stems(hasher_, root, request.tokens);
  const size_t max_results = std::max(1u, request.max_results);

  // What is published at lengths of these tokens; then, without the lock, which of it really has these tokens; then the
  // answer.
  struct Published {
    NameKey key;
    uint64_t length;
    uint64_t check;
  };
  std::vector<Published> published;  // longest first
  std::string tombstone_reason;
  {
    MutexLock lock(&mu_);
    for (const PrefixIndex::Candidate& candidate : prefixes_.Find(hasher_, stems, request.tokens)) {
      NameKey key{op.tenant, NameKind::kPrefix, Hash128ToHex(candidate.key)};
      if (const Name* name = FindLocked(key); name != nullptr) {
        const PrefixIndex::Place& place = *name->state.prefix;
        if (place.length == candidate.length)
          published.push_back({std::move(key), candidate.length, place.locator.check});
        continue;
      }
      const std::optional<TombstoneTable::Reason> stone = tombstones_.Find(key);
      if (!stone.has_value() || static_cast<int64_t>(candidate.length) > max_position || !tombstone_reason.empty())
        continue;
      static constexpr absl::string_view kReasons[] = {
          "", "DELETED", "EXPIRED", "EVICTED", "NOT_DURABLE_AT_RESTART", "CORRUPT"};
      tombstone_reason = std::string(kReasons[static_cast<int>(*stone)]);
    }
  }
  std::vector<uint64_t> lengths;
  for (auto it = published.rbegin(); it != published.rend(); ++it) lengths.push_back(it->length);
  std::vector<uint64_t> checks = hasher_.Checks(root, request.tokens, lengths);
  std::reverse(checks.begin(), checks.end());

  MatchAnswer answer;
  MutexLock lock(&mu_);
  for (size_t i = 0; i < published.size() && answer.matches.size() < max_results; ++i) {
    if (published[i].check != checks[i]) continue;  // a collision of keys
    if (static_cast<int64_t>(published[i].length) > max_position) {
      answer.nearest_published_position =
          static_cast<int64_t>(published[i].length);  // longest first: ends at the shortest
      continue;
    }
    Name* name = FindLocked(published[i].key);
    if (name == nullptr || name->state.prefix->locator.check != checks[i]) continue;  // gone meanwhile
    UseLocked(name);
    answer.matches.push_back(InfoLocked(*name, *name->state.head()));
  }
  if (!answer.matches.empty()) {
    answer.nearest_published_position = 0;
    ++prefix_hits_;
    return answer;
  }
  ++prefix_misses_;
  answer.miss_reason = answer.nearest_published_position > 0 ? "POSITION_MISMATCH"
                       : !tombstone_reason.empty()           ? tombstone_reason
                       : tombstones_.uncertain()             ? "UNKNOWN_SINCE_RESTART"
                       : tombstones_.overflowed()            ? "UNKNOWN"
                                                             : "NEVER_PUBLISHED";
  ++misses_[answer.miss_reason];
  return answer;
}

bool Store::EvictPrefix() {
  MutexLock lock(&mu_);
  const MonoTime now = clock_->Now();
  auto worst = names_.end();
  double worst_value = 0;
  for (auto it = names_.From({kDefaultTenant, NameKind::kPrefix, ""}); it != names_.end(); ++it) {
    if (it->view().kind != NameKind::kPrefix) continue;
    int64_t position;
    MonoTime last_used;
    uint32_t forks;
    uint64_t state_bytes;
    if (const Name* name = it->name(); name != nullptr) {
      if (name->unborn || name->busy()) continue;
      const VersionRef& head = name->state.head();
      // Only a prefix that alone needs bytes of the cold store frees any by going.
      const bool alone = head.use_count() == 1 + static_cast<long>(name->recorded.size()) && head->image->heads() == 1;
      if (!alone || !images_->persisted(*head->image)) continue;
      position = head->position, last_used = name->last_used, forks = name->forks;
      state_bytes = name->state.layout->state_bytes();
    } else {  // it is alone, and persisted
      const RestingName resting = it->folded()->Unpack();
      position = resting.versions.back().position, last_used = resting.last_used, forks = resting.forks;
      state_bytes = resting.state.layout->state_bytes();
    }
    const double idle_seconds = static_cast<double>(now - last_used) * 1e-9;
    const double value =
        static_cast<double>(position) * (1 + forks) / static_cast<double>(state_bytes) / (1 + idle_seconds);
    if (worst == names_.end() || value < worst_value) worst = it, worst_value = value;
  }
  if (worst == names_.end()) return false;
  ForgetLocked(names_.Unfold(*worst), TombstoneTable::Reason::kEvicted);
  ++evictions_["prefix_value"];
  return BuryLocked().ok();
}

}  // namespace statepool
