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

constexpr size_t kMatchBatchMax = 1024;

absl::Status ValidateTokens(const StoreOptions& options, absl::Span<const uint32_t> tokens, absl::string_view extra_key,
                            absl::string_view salt) {
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
  if (salt.size() > options.max_extra_key_bytes) {
    return Invalid("INVALID_OPTION", "salt",
                   absl::StrCat("at most ", options.max_extra_key_bytes, " bytes; hash what is longer"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PublishAnswer> Store::PublishPrefix(const Op& op, const PublishRequest& request) {
  RETURN_IF_ERROR(ValidateTokens(options_, request.tokens, request.extra_key, request.salt));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  const Hash128 root = hasher_.Root(op.tenant, (*layout)->fingerprint(), request.extra_key, request.salt);
  const auto place = std::make_shared<const PrefixIndex::Place>(PrefixIndex::Locate(hasher_, root, request.tokens));
  const NameKey key{op.tenant, NameKind::kPrefix, Hash128ToHex(place->key)};
  NameState fresh = NewState(*layout);
  RETURN_IF_ERROR(ApplyOptions(request.options, &fresh));
  PublishAnswer answer;
  RETURN_IF_ERROR(Write(
      op, Change{{key},
                 [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
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
                               absl::StrCat("the source is at position ", position, ", the prefix has ",
                                            request.tokens.size(), " tokens; a state is valid at exactly one position"))
                             .Field("tokens")
                             .Meta("positions", PositionsOf(found->name->state.ring)));
                   }
                   const bool same = name != nullptr && name->state.prefix->locator.check == place->locator.check &&
                                     name->state.prefix->length == place->length;
                   // Published already. Only a stronger durability is still to do: the name's own version is recorded
                   // then, and nothing else of it changes.
                   if (same && request.options.durability.value_or(name->state.durability) <= name->state.durability) {
                     UseLocked(name);
                     answer.info = InfoLocked(*name, *name->state.head());
                     answer.already_published = true;
                     return std::vector<Next>();
                   }
                   NameState state =
                       same ? name->state : fresh;  // another prefix under this key: a collision, the newer one wins
                   if (same) state.durability = *request.options.durability;
                   state.max_history = 1;
                   state.prefix = place;
                   if (!same) state.ring.push_back(found->version());
                   answer.already_published = same;
                   GiveRevision({}, &state);
                   return One(std::move(state));
                 },
                 &answer.info,
                 absl::OkStatus(),
                 UseOf(request.source.key)}));
  return answer;
}

absl::StatusOr<MatchAnswer> Store::MatchPrefix(const Op& op, const MatchRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  RETURN_IF_ERROR(ValidateTokens(options_, request.tokens, request.extra_key, request.salt));
  if (request.max_results > options_.max_results) {
    return Invalid("INVALID_OPTION", "max_results", absl::StrCat("at most ", options_.max_results));
  }
  const int64_t max_position = request.max_position.value_or(static_cast<int64_t>(request.tokens.size()) - 1);
  RETURN_IF_ERROR(ValidatePosition(max_position, "max_position"));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  const Hash128 root = hasher_.Root(op.tenant, (*layout)->fingerprint(), request.extra_key, request.salt);
  const std::vector<Hash128> stems = PrefixIndex::Stems(hasher_, root, request.tokens);
  const size_t max_results = std::max(1u, request.max_results);

  // Batches, longest first: what is published at lengths of these tokens; then, without the lock, which of it really
  // has these tokens. Mostly the first is the answer, however many lengths are published below it.
  struct Published {
    NameKey key;
    uint64_t length;
    uint64_t check;
  };
  std::string tombstone_reason;
  size_t batch_size = std::max<size_t>(max_results, 4);
  // The next batch of at most *longest tokens. *longest becomes what is left, 0 at the end.
  const auto next_batch = [&](uint64_t* longest) {
    std::vector<Published> batch;
    {
      MutexLock lock(&mu_);
      const std::vector<PrefixIndex::Candidate> candidates =
          prefixes_.Find(hasher_, stems, request.tokens, *longest, batch_size);
      *longest = candidates.size() < batch_size ? 0 : candidates.back().length - 1;
      for (const PrefixIndex::Candidate& candidate : candidates) {
        NameKey key{op.tenant, NameKind::kPrefix, Hash128ToHex(candidate.key)};
        if (const Name* name = FindLocked(key); name != nullptr) {
          const PrefixIndex::Place& place = *name->state.prefix;
          if (place.length == candidate.length)
            batch.push_back({std::move(key), candidate.length, place.locator.check});
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
    batch_size = std::max(batch_size, std::min(2 * batch_size, kMatchBatchMax));
    std::vector<uint64_t> lengths;
    for (auto it = batch.rbegin(); it != batch.rend(); ++it) lengths.push_back(it->length);
    const std::vector<uint64_t> checks = hasher_.Checks(root, request.tokens, lengths);
    auto check = checks.rbegin();
    std::erase_if(batch, [&](const Published& p) { return p.check != *check++; });  // a collision of keys
    return batch;
  };

  MatchAnswer answer;
  uint64_t longest = std::min<uint64_t>(static_cast<uint64_t>(max_position), request.tokens.size());
  while (longest > 0 && answer.matches.size() < max_results) {
    const std::vector<Published> batch = next_batch(&longest);
    MutexLock lock(&mu_);
    for (const Published& published : batch) {
      if (answer.matches.size() == max_results) break;
      Name* name = FindLocked(published.key);
      if (name == nullptr || name->state.prefix->locator.check != published.check) continue;  // gone meanwhile
      UseLocked(name);
      answer.matches.push_back(InfoLocked(*name, *name->state.head()));
    }
  }
  // The nearest beyond what was asked for: the shortest of those.
  if (answer.matches.empty()) longest = request.tokens.size();
  while (answer.matches.empty() && static_cast<int64_t>(longest) > max_position) {
    for (const Published& published : next_batch(&longest)) {
      const auto length = static_cast<int64_t>(published.length);
      if (length > max_position) answer.nearest_published_position = length;
    }
  }

  MutexLock lock(&mu_);
  if (!answer.matches.empty()) {
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
