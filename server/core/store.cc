// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/store.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/error.h"

#define RETURN_IF_ERROR(expression) \
  if (absl::Status s = (expression); !s.ok()) return s

namespace statepool {
namespace {

absl::Status Invalid(absl::string_view reason, absl::string_view field, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, reason, message).Field(field);
}

absl::Status LayoutMismatch(absl::StatusCode code, const Layout& expected, const Layout& actual) {
  return Error(code, "LAYOUT_MISMATCH", "the name holds a state of another layout; states of two layouts never mix")
      .Field("layout")
      .Meta("expected", expected.fingerprint())
      .Meta("actual", actual.fingerprint());
}

std::string PositionsOf(const Ring& ring) {
  return absl::StrJoin(ring.rbegin(), ring.rend(), ",",
                       [](std::string* out, const VersionRef& v) { absl::StrAppend(out, v->position); });
}

absl::Status ValidateRequestId(const RequestId& request) {
  if (request.id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return Invalid("INVALID_OPTION", "request_id",
                 absl::StrCat("a request_id has at most ", kMaxRequestIdBytes, " bytes"));
}

}  // namespace

absl::Status Store::ValidateKey(const NameKey& key, absl::string_view field) {
  RETURN_IF_ERROR(ValidateName(key.name, field));
  Hash128 hash;
  if (key.kind == NameKind::kPrefix && !Hash128FromHex(key.name, &hash)) {
    return Invalid("INVALID_NAME", field,
                   "the name of a prefix is 32 lower-case hex digits, as PublishPrefix and MatchPrefix give it");
  }
  return absl::OkStatus();
}

Store::Store(StoreOptions options, ImageStore* images, NameLog* log, const Clock* clock)
    : options_(std::move(options)),
      images_(images),
      log_(log),
      clock_(clock),
      ids_(log->epoch()),
      layouts_(options_.max_layouts, options_.max_layout_bytes, log),
      hasher_(log->hash_key(), options_.prefix_key_bits) {}

Store::~Store() { images_->Detach(); }

absl::StatusOr<LayoutRegistry::Entry> Store::RegisterLayout(const Op& op, LayoutRef layout, absl::string_view alias) {
  RETURN_IF_ERROR(op.Check(*clock_));
  return layouts_.Register(op.tenant, std::move(layout), alias);
}

// ---- finding

Name* Store::FindLocked(const NameKey& key) {
  Name* name = names_.Find(key);
  if (name == nullptr || name->unborn) return nullptr;
  if (!IsExpired(*name)) return name;
  if (!name->busy()) {
    ForgetLocked(name, TombstoneTable::Reason::kExpired);
    ++evictions_["expired"];
  }
  return nullptr;
}

absl::Status Store::MissLocked(const NameKey& key, absl::string_view field) {
  std::string reason, why;
  absl::StatusCode code = absl::StatusCode::kNotFound;
  const Name* name = names_.Find(key);
  std::optional<TombstoneTable::Reason> stone = tombstones_.Find(key);
  if (name != nullptr && !name->unborn) stone = TombstoneTable::Reason::kExpired;  // but still being recorded
  if (stone.has_value()) {
    switch (*stone) {
      case TombstoneTable::Reason::kDeleted: reason = "DELETED", why = "it was deleted"; break;
      case TombstoneTable::Reason::kExpired: reason = "EXPIRED", why = "its time was over"; break;
      case TombstoneTable::Reason::kEvicted: reason = "EVICTED", why = "it made room for others"; break;
      case TombstoneTable::Reason::kNotDurable:
        reason = "NOT_DURABLE_AT_RESTART", why = "it was not on disk when the daemon stopped; compute the state again";
        break;
      case TombstoneTable::Reason::kCorrupt:
        reason = "CORRUPT", why = "its record on disk can't be read; compute the state again";
        code = absl::StatusCode::kDataLoss;
        break;
    }
  } else if (tombstones_.uncertain()) {
    reason = "UNKNOWN_SINCE_RESTART",
    why = "it may never have been, or was lost when the daemon last ended without an orderly stop";
  } else if (tombstones_.overflowed()) {
    reason = "UNKNOWN", why = "it may never have been, or went too long ago to tell why";
  } else if (key.kind == NameKind::kPrefix) {
    reason = "NEVER_PUBLISHED", why = "it was never published";
  } else {
    reason = "NEVER_CREATED", why = "it was never made";
  }
  ++misses_[reason];
  static constexpr absl::string_view kKinds[] = {"", "sequence", "snapshot", "prefix"};
  Error error(code, reason, absl::StrCat("no ", kKinds[static_cast<int>(key.kind)], " '", key.name, "': ", why));
  error.Field(field);
  if (reason == "UNKNOWN_SINCE_RESTART" || reason == "NOT_DURABLE_AT_RESTART")
    error.Meta("incarnation", options_.incarnation);
  return error;
}

absl::StatusOr<Store::Found> Store::ResolveLocked(const Source& source, absl::string_view field) {
  RETURN_IF_ERROR(ValidateKey(source.key, field));
  if (source.position.has_value()) RETURN_IF_ERROR(ValidatePosition(*source.position, "position"));
  Name* name = FindLocked(source.key);
  if (name == nullptr) return MissLocked(source.key, field);
  const NameState& state = name->state;
  if (!source.layout.empty()) {
    absl::StatusOr<LayoutRef> layout = layouts_.Find(source.key.tenant, source.layout);
    RETURN_IF_ERROR(layout.status());
    if ((*layout)->fingerprint() != state.layout->fingerprint()) {
      ++misses_["LAYOUT_MISMATCH"];
      return LayoutMismatch(absl::StatusCode::kNotFound, **layout, *state.layout);
    }
  }
  if (!source.position.has_value()) return Found{name, state.ring.size() - 1};
  for (size_t i = state.ring.size(); i-- > 0;) {
    if (state.ring[i]->position == *source.position) return Found{name, i};
  }
  ++misses_["POSITION_MISMATCH"];
  return Error(absl::StatusCode::kNotFound, "POSITION_MISMATCH",
               absl::StrCat("'", source.key.name, "' has no version at position ", *source.position, "; it has ",
                            PositionsOf(state.ring)))
      .Field("position")
      .Meta("positions", PositionsOf(state.ring));
}

VersionInfo Store::InfoOf(const Version& version) const {
  const ImageInfo& image = version.image->info();
  return {version.id,
          version.parent,
          version.position,
          version.exactness,
          image.checksum,
          image.attachment_bytes,
          images_->tier(*version.image)};
}

NameInfo Store::InfoLocked(const Name& name, const Version& version) const {
  NameInfo info;
  info.key = name.key;
  info.layout = name.state.layout;
  info.version = InfoOf(version);
  info.revision = name.state.revision;
  info.durable_revision = name.durable_revision;
  info.durability = name.state.durability;
  info.max_history = name.state.max_history;
  info.ttl = name.state.ttl;
  if (const MonoTime deadline = name.Deadline(); deadline != kNever) {
    info.expire_time = name.state.expire_at <= deadline
                           ? name.state.expire_time
                           : clock_->WallNow() + absl::Nanoseconds(deadline - clock_->Now());
  }
  info.create_time = name.state.create_time;
  return info;
}

// ---- deciding

absl::Status Store::ApplyOptions(const NameOptions& options, NameState* state) const {
  if (options.durability.has_value()) state->durability = *options.durability;
  if (options.max_history.has_value()) {
    if (*options.max_history < 1 || *options.max_history > options_.max_history) {
      return Invalid("INVALID_OPTION", "options.max_history", absl::StrCat("must be 1..", options_.max_history));
    }
    state->max_history = *options.max_history;
  }
  if (options.ttl.has_value() || options.expire_time.has_value() || options.never_expire) {
    state->ttl = absl::InfiniteDuration();
    state->expire_time = absl::InfiniteFuture();
    state->expire_at = kNever;
  }
  if (options.ttl.has_value()) {
    if (*options.ttl <= absl::ZeroDuration() || *options.ttl > options_.max_ttl) {
      return Invalid("INVALID_OPTION", "options.ttl",
                     absl::StrCat("must be more than 0 and at most ", absl::FormatDuration(options_.max_ttl)));
    }
    state->ttl = *options.ttl;
  }
  if (options.expire_time.has_value()) {
    const absl::Duration left = *options.expire_time - clock_->WallNow();
    if (left <= absl::ZeroDuration() || left > options_.max_ttl) {
      return Invalid("INVALID_OPTION", "options.expire_time",
                     absl::StrCat("must be in the future, at most ", absl::FormatDuration(options_.max_ttl), " away"));
    }
    state->expire_time = *options.expire_time;
    state->expire_at = After(clock_->Now(), left);
  }
  return absl::OkStatus();
}

absl::Status Store::CheckIfRevision(const Name* name, const std::optional<uint64_t>& if_revision) {
  const Revision revision = name == nullptr ? 0 : name->state.revision;
  if (!if_revision.has_value() || *if_revision == revision) return absl::OkStatus();
  return Error(absl::StatusCode::kAborted, "REVISION_MISMATCH",
               absl::StrCat("if_revision is ", *if_revision, ", the name's revision is ", revision,
                            revision == 0 ? " (it does not exist)" : "", "; read it again before you write"))
      .Field("if_revision")
      .Meta("revision", revision);
}

absl::StatusOr<const AnsweredRequest*> Store::FindAnswered(const NameState& state, const RequestId& request) {
  if (request.id.empty()) return nullptr;
  for (const AnsweredRequest& answered : state.requests) {
    if (answered.id != request.id) continue;
    if (answered.body_hash == request.body_hash) return &answered;
    return Invalid("REQUEST_ID_REUSED", "request_id",
                   "this request_id belongs to an earlier, different request; choose a new one");
  }
  return nullptr;
}

NameInfo Store::ReplayLocked(const Name& name, const AnsweredRequest& answered) const {
  NameInfo info = InfoLocked(name, *name.state.head());
  info.revision = answered.revision;
  if (info.version.id != answered.version) {
    info.version = VersionInfo{};
    info.version.tier = Tier::kCold;
    for (const VersionRef& version : name.state.ring) {
      if (version->id == answered.version) info.version = InfoOf(*version);
    }
  }
  info.version.id = answered.version;
  info.version.position = answered.position;
  info.version.checksum = answered.checksum;
  info.replayed = true;
  return info;
}

NameState Store::NewState(LayoutRef layout) const {
  NameState state;
  state.layout = std::move(layout);
  state.create_time = clock_->WallNow();
  state.durability = options_.default_durability;
  state.max_history = options_.default_max_history;
  state.ttl = options_.default_ttl;
  return state;
}

VersionRef Store::NewVersion(VersionId parent, int64_t position, Exactness exactness, ImageRef image) {
  return std::make_shared<const Version>(Version{ids_.Next(), parent, position, exactness, std::move(image)});
}

void Store::Advance(const RequestId& request, NameState* state) {
  if (state->ring.size() > state->max_history) {
    state->ring.erase(state->ring.begin(), state->ring.end() - state->max_history);
  }
  state->revision = ids_.Next();
  if (state->created == 0) state->created = state->revision;
  if (request.id.empty()) return;
  if (state->requests.size() >= kMaxRequestIds) state->requests.erase(state->requests.begin());
  const Version& head = *state->head();
  state->requests.push_back(
      {request.id, request.body_hash, state->revision, head.id, head.position, head.image->info().checksum});
}

// ---- writing

absl::Status Store::Write(const Op& op, absl::Span<const NameKey> keys, Decide decide, NameInfo* info) {
  MutexLock lock(&mu_);
  std::vector<NameState> states;
  bool sync = false;
  for (;;) {
    RETURN_IF_ERROR(op.Check(*clock_));
    const auto must_wait = [&](bool to_record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      for (const NameKey& key : keys) {
        if (MustWaitLocked(key, to_record)) return true;
      }
      return false;
    };
    if (!must_wait(false)) {
      absl::StatusOr<std::vector<NameState>> decided = decide();
      if (!decided.ok()) return decided.status();
      if (decided->empty()) return absl::OkStatus();
      states = *std::move(decided);
      sync = std::any_of(states.begin(), states.end(),
                         [](const NameState& s) { return s.durability == Durability::kSync; });
      if (!sync || !must_wait(true)) break;
    }
    RETURN_IF_ERROR(WaitLocked(op));
  }

  std::vector<Name*> names;
  names.reserve(keys.size());
  size_t new_names = 0;
  for (const NameKey& key : keys) {
    names.push_back(names_.Find(key));
    if (names.back() == nullptr) ++new_names;
  }
  if (new_names > 0 && names_.size() + graves_.size() + new_names > options_.max_names) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_NAMES",
                 "the table of names is full; delete names or let them expire")
        .Meta("limit", options_.max_names);
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    if (names[i] == nullptr) {
      names[i] = names_.Insert(keys[i]);
      names[i]->unborn = true;
    }
  }

  std::vector<Ring> runs(sync ? keys.size() : 0);
  if (sync) {
    for (Name* name : names) name->reserved = name->recording = true;
    absl::Status committed = absl::OkStatus();
    {
      MutexUnlock unlock(&mu_);
      std::vector<NameChange> changes;
      for (size_t i = 0; i < keys.size() && committed.ok(); ++i) {
        committed = images_->Persist(op, states[i].head()->image);
        runs[i] = DurableRun(states[i]);
        changes.push_back({keys[i], RecordOf(keys[i], states[i], runs[i])});
      }
      if (committed.ok()) committed = log_->Commit(changes, /*sync=*/true);
    }
    for (Name* name : names) {
      name->reserved = name->recording = false;
      if (!committed.ok() && name->unborn) names_.Erase(name);
    }
    changed_.SignalAll();
    if (!committed.ok()) return committed;
  }

  const Revision group = states.front().revision;
  const MonoTime now = clock_->Now();
  for (size_t i = 0; i < keys.size(); ++i) {
    if (sync) {
      names[i]->recorded = std::move(runs[i]);
      names[i]->durable_revision = states[i].revision;
      graves_.erase(keys[i]);
    }
    PublishLocked(names[i], std::move(states[i]), group, now);
  }
  if (info != nullptr) *info = InfoLocked(*names.front(), *names.front()->state.head());
  return absl::OkStatus();
}

void Store::SetHeadCounts(const NameState* old_state, const NameState* new_state) const {
  if (new_state != nullptr) new_state->head()->image->AddHead();
  if (old_state != nullptr) old_state->head()->image->DropHead();
}

void Store::PublishLocked(Name* name, NameState state, Revision dirty_group, MonoTime now) {
  const bool is_new = name->state.ring.empty();
  SetHeadCounts(is_new ? nullptr : &name->state, &state);
  if (is_new) {
    if (const TombstoneTable::PrefixPlace ghost = tombstones_.Remove(name->key); ghost != nullptr)
      prefixes_.Erase(*ghost);
  } else if (name->state.prefix != nullptr) {
    prefixes_.Erase(*name->state.prefix);
  }
  if (state.prefix != nullptr) prefixes_.Insert(*state.prefix);
  name->state = std::move(state);
  name->unborn = false;
  name->last_used = now;
  ScheduleExpiryLocked(name);
  // A record of SYNC was committed before; VOLATILE has none to come.
  if (name->state.durability != Durability::kWriteBehind) {
    SetDirtyLocked(name, {}, 0);
    name->dirty_next = {};
    return;
  }
  const DirtyTicket ticket{dirty_group, name->state.revision};
  if (name->dirty == DirtyTicket{}) SetDirtyLocked(name, ticket, now);
  if (name->recording && name->dirty_next == DirtyTicket{}) {
    name->dirty_next = ticket;
    name->dirty_next_since = now;
  }
}

void Store::ScheduleExpiryLocked(Name* name) {
  const MonoTime deadline = name->Deadline();
  if (name->expiry_entry <= deadline && name->expiry_entry != kNever) return;  // looked at again in time
  if (name->expiry_entry != kNever) expiry_.erase({name->expiry_entry, name});
  name->expiry_entry = deadline;
  if (deadline != kNever) expiry_.insert({deadline, name});
}

void Store::SetDirtyLocked(Name* name, DirtyTicket ticket, MonoTime since) {
  if (name->dirty != DirtyTicket{}) dirty_.erase(name->dirty);
  name->dirty = ticket;
  name->dirty_since = since;
  if (ticket != DirtyTicket{}) dirty_.emplace(ticket, name);
}

void Store::ForgetLocked(Name* name, std::optional<TombstoneTable::Reason> reason) {
  SetHeadCounts(&name->state, nullptr);
  SetDirtyLocked(name, {}, 0);
  if (name->expiry_entry != kNever) expiry_.erase({name->expiry_entry, name});
  if (!name->recorded.empty()) graves_[name->key].versions = std::move(name->recorded);
  if (reason.has_value()) {
    EraseGhostsLocked(tombstones_.Add(name->key, *reason, name->state.prefix));
  } else if (name->state.prefix != nullptr) {
    prefixes_.Erase(*name->state.prefix);
  }
  names_.Erase(name);
}

void Store::EraseGhostsLocked(const std::vector<TombstoneTable::PrefixPlace>& gone) {
  for (const TombstoneTable::PrefixPlace& place : gone) prefixes_.Erase(*place);
}

// ---- operations

absl::StatusOr<NameInfo> Store::Create(const Op& op, const CreateRequest& request) {
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  NameState fresh = NewState(*layout);
  RETURN_IF_ERROR(ApplyOptions(request.options, &fresh));
  NameInfo info;
  // With no image yet it only looks.
  const auto decide = [&](const ImageRef& image)
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
    if (const Name* name = FindLocked(key); name != nullptr) {
      absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name->state, request.request);
      RETURN_IF_ERROR(answered.status());
      if (*answered != nullptr) {
        info = ReplayLocked(*name, **answered);
        return std::vector<NameState>();
      }
      return absl::Status(
          Error(absl::StatusCode::kAlreadyExists, "NAME_EXISTS",
                absl::StrCat("a sequence '", key.name, "' exists; choose another name, or delete it first"))
              .Field("sequence")
              .Meta("revision", name->state.revision));
    }
    NameState state = fresh;
    if (image == nullptr) return std::vector<NameState>{std::move(state)};
    state.ring.push_back(NewVersion(0, 0, Exactness::kExact, image));
    Advance(request.request, &state);
    return std::vector<NameState>{std::move(state)};
  };
  {
    MutexLock lock(&mu_);
    absl::StatusOr<std::vector<NameState>> look = decide(nullptr);
    RETURN_IF_ERROR(look.status());
    if (look->empty()) return info;
  }
  StateBytes initial;
  initial.initial = true;
  absl::StatusOr<ImageRef> image = images_->Write(op, *layout, initial);
  RETURN_IF_ERROR(image.status());
  RETURN_IF_ERROR(Write(
      op, {key}, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return decide(*image); }, &info));
  return info;
}

absl::StatusOr<GetAnswer> Store::Get(const Op& op, const Source& source) {
  RETURN_IF_ERROR(op.Check(*clock_));
  GetAnswer answer;
  ImageRef image;
  {
    MutexLock lock(&mu_);
    absl::StatusOr<Found> found = ResolveLocked(source, "name");
    RETURN_IF_ERROR(found.status());
    UseLocked(found->name);
    answer.info = InfoLocked(*found->name, *found->version());
    image = found->version()->image;
  }
  absl::StatusOr<Pin> pin = images_->Read(op, image);
  if (absl::IsDataLoss(pin.status())) {
    return absl::Status(Error(absl::StatusCode::kDataLoss, "CORRUPT",
                              absl::StrCat("the bytes of this version are damaged (", pin.status().message(),
                                           "); compute the state again"))
                            .Field("name")
                            .Meta("version_id", answer.info.version.id));
  }
  RETURN_IF_ERROR(pin.status());
  answer.pin = *std::move(pin);
  answer.info.version.tier = images_->tier(*image);
  return answer;
}

std::optional<absl::StatusOr<GetAnswer>> Store::TryGet(const Op& op, const Source& source) {
  if (absl::Status s = op.Check(*clock_); !s.ok()) return s;
  MutexLock lock(&mu_);
  absl::StatusOr<Found> found = ResolveLocked(source, "name");
  if (!found.ok()) return found.status();
  GetAnswer answer;
  answer.pin = images_->TryRead(found->version()->image);
  if (answer.pin == nullptr) return std::nullopt;
  UseLocked(found->name);
  answer.info = InfoLocked(*found->name, *found->version());
  return answer;
}

absl::StatusOr<NameInfo> Store::Set(const Op& op, const SetRequest& request, const StateBytes& bytes) {
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidatePosition(request.position, "position"));
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  if (bytes.attachment.size() > options_.max_attachment_bytes) {
    return Invalid("INVALID_OPTION", "attachment",
                   absl::StrCat("an attachment has at most ", options_.max_attachment_bytes, " bytes"));
  }
  LayoutRef layout;
  if (!request.layout.empty()) {
    absl::StatusOr<LayoutRef> found = layouts_.Find(op.tenant, request.layout);
    RETURN_IF_ERROR(found.status());
    layout = *found;
  }
  NameInfo info;
  // What the name's state becomes; everything that can be refused is refused here. With no image yet it only looks.
  const auto decide = [&](const ImageRef& image)
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
    Name* name = FindLocked(key);
    if (name != nullptr) {
      absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name->state, request.request);
      RETURN_IF_ERROR(answered.status());
      if (*answered != nullptr) {
        info = ReplayLocked(*name, **answered);
        return std::vector<NameState>();
      }
    }
    RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
    if (name == nullptr && request.layout.empty()) {
      absl::Status miss = MissLocked(key, "sequence");
      if (ReasonOf(miss) != "NEVER_CREATED") return miss;
      return Invalid("MISSING_FIELD", "layout", "a Set that makes a sequence must name its layout");
    }
    if (name != nullptr && layout != nullptr && name->state.layout->fingerprint() != layout->fingerprint()) {
      return LayoutMismatch(absl::StatusCode::kFailedPrecondition, *name->state.layout, *layout);
    }
    NameState state = name != nullptr ? name->state : NewState(layout);
    RETURN_IF_ERROR(ApplyOptions(request.options, &state));
    if (image == nullptr) return std::vector<NameState>{std::move(state)};
    state.ring.push_back(
        NewVersion(name != nullptr ? name->state.head()->id : 0, request.position, request.exactness, image));
    Advance(request.request, &state);
    return std::vector<NameState>{std::move(state)};
  };
  {
    // A first look, so that a refused request costs no copy, and to know the layout of a name that exists.
    MutexLock lock(&mu_);
    absl::StatusOr<std::vector<NameState>> look = decide(nullptr);
    RETURN_IF_ERROR(look.status());
    if (look->empty()) return info;
    layout = look->front().layout;
  }
  absl::StatusOr<ImageRef> image = images_->Write(op, layout, bytes);
  RETURN_IF_ERROR(image.status());
  RETURN_IF_ERROR(Write(
      op, {key}, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return decide(*image); }, &info));
  return info;
}

absl::StatusOr<ForkAnswer> Store::Fork(const Op& op, const ForkRequest& request) {
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  if (request.children.empty()) return Invalid("MISSING_FIELD", "children", "name at least one child");
  if (request.children.size() > options_.max_children) {
    return absl::Status(Error(absl::StatusCode::kInvalidArgument, "TOO_MANY",
                              absl::StrCat(request.children.size(), " children in one Fork"))
                            .Field("children")
                            .Meta("limit", options_.max_children));
  }
  std::vector<NameKey> keys;
  keys.reserve(request.children.size());
  absl::flat_hash_set<absl::string_view> distinct;
  for (size_t i = 0; i < request.children.size(); ++i) {
    const std::string& child = request.children[i];
    const auto field = [i] { return absl::StrCat("children[", i, "]"); };
    if (absl::Status s = ValidateName(child, "children"); !s.ok()) return ValidateName(child, field());
    if (!distinct.insert(child).second)
      return Invalid("DUPLICATE_NAME", field(), absl::StrCat("'", child, "' stands twice in the request"));
    keys.push_back({op.tenant, NameKind::kSequence, child});
  }
  ForkAnswer answer;
  RETURN_IF_ERROR(Write(
      op, keys,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
        answer = ForkAnswer{};
        // A retry: all children are there and remember this request.
        for (size_t i = 0; i < keys.size(); ++i) {
          Name* child = FindLocked(keys[i]);
          const AnsweredRequest* answered = nullptr;
          if (child != nullptr) {
            absl::StatusOr<const AnsweredRequest*> found = FindAnswered(child->state, request.request);
            RETURN_IF_ERROR(found.status());
            answered = *found;
          }
          if (child != nullptr && (answered == nullptr || answer.revisions.size() < i)) {
            return absl::Status(Error(absl::StatusCode::kAlreadyExists, "NAME_EXISTS",
                                      absl::StrCat("a sequence '", keys[i].name, "' exists; no child was made"))
                                    .Field(absl::StrCat("children[", i, "]"))
                                    .Meta("revision", child->state.revision));
          }
          if (answered != nullptr) {
            answer.revisions.push_back(answered->revision);
            answer.replayed = true;
            if (i == 0) {
              const NameInfo info = ReplayLocked(*child, *answered);
              answer.version = info.version;
              answer.state_bytes = info.layout->state_bytes();
              answer.durability = info.durability;
            }
          } else if (answer.replayed) {
            return absl::Status(Error(absl::StatusCode::kAborted, "REVISION_MISMATCH",
                                      absl::StrCat("this Fork was answered before, and '", keys[i].name,
                                                   "' is gone since; use a new request_id"))
                                    .Field(absl::StrCat("children[", i, "]"))
                                    .Meta("revision", uint64_t{0}));
          }
        }
        if (answer.replayed) return std::vector<NameState>();

        absl::StatusOr<Found> found = ResolveLocked(request.source, "source");
        RETURN_IF_ERROR(found.status());
        Name* source = found->name;
        NameState child = NewState(source->state.layout);
        if (source->key.kind == NameKind::kSequence) {
          child.durability = source->state.durability;
          child.max_history = source->state.max_history;
          child.ttl = source->state.ttl;
          child.expire_time = source->state.expire_time;
          child.expire_at = source->state.expire_at;
        }
        child.ring.assign(source->state.ring.begin(), source->state.ring.begin() + found->index + 1);
        RETURN_IF_ERROR(ApplyOptions(request.options, &child));
        std::vector<NameState> states(keys.size(), child);
        for (NameState& state : states) {
          Advance(request.request, &state);
          answer.revisions.push_back(state.revision);
        }
        answer.version = InfoOf(*found->version());
        answer.state_bytes = source->state.layout->state_bytes();
        answer.durability = child.durability;
        UseLocked(source);
        if (source->key.kind == NameKind::kPrefix) source->forks += static_cast<uint32_t>(keys.size());
        return states;
      },
      nullptr));
  return answer;
}

absl::StatusOr<NameInfo> Store::Describe(const Op& op, const NameKey& key) {
  RETURN_IF_ERROR(op.Check(*clock_));
  RETURN_IF_ERROR(ValidateKey(key, "name"));
  MutexLock lock(&mu_);
  const Name* name = FindLocked(key);
  if (name == nullptr) return MissLocked(key, "name");
  NameInfo info = InfoLocked(*name, *name->state.head());
  for (auto version = name->state.ring.rbegin(); version != name->state.ring.rend(); ++version) {
    info.history.push_back(InfoOf(**version));
  }
  return info;
}

absl::StatusOr<ListAnswer> Store::List(const Op& op, const ListRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  if (request.page_size > options_.max_page_size) {
    return Invalid("INVALID_OPTION", "page_size", absl::StrCat("at most ", options_.max_page_size));
  }
  if (!request.page_token.empty() && !absl::StartsWith(request.page_token, request.name_prefix)) {
    return Invalid("INVALID_OPTION", "page_token", "it does not belong to this list; start again without it");
  }
  const size_t page_size = request.page_size == 0 ? std::min(100u, options_.max_page_size) : request.page_size;
  ListAnswer answer;
  MutexLock lock(&mu_);
  auto it = request.page_token.empty() ? names_.From({op.tenant, request.kind, request.name_prefix})
                                       : names_.After({op.tenant, request.kind, request.page_token});
  for (; it != names_.end(); ++it) {
    const Name& name = **it;
    if (name.key.tenant != op.tenant || name.key.kind != request.kind ||
        !absl::StartsWith(name.key.name, request.name_prefix))
      break;
    if (name.unborn || IsExpired(name)) continue;
    if (answer.names.size() == page_size) {
      answer.next_page_token = answer.names.back().key.name;
      break;
    }
    answer.names.push_back(InfoLocked(name, *name.state.head()));
  }
  return answer;
}

absl::StatusOr<bool> Store::Delete(const Op& op, const DeleteRequest& request) {
  RETURN_IF_ERROR(ValidateKey(request.key, "name"));
  MutexLock lock(&mu_);
  for (;;) {
    RETURN_IF_ERROR(op.Check(*clock_));
    if (!MustWaitLocked(request.key, /*to_record=*/true)) break;
    RETURN_IF_ERROR(WaitLocked(op));
  }
  Name* name = FindLocked(request.key);
  if (name != nullptr) RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
  // What is on disk: this name's record, or that of an earlier name of the same key.
  const auto grave = graves_.find(request.key);
  if ((name != nullptr && !name->recorded.empty()) || grave != graves_.end()) {
    if (name != nullptr) name->reserved = name->recording = true;
    if (grave != graves_.end()) grave->second.burying = true;
    absl::Status committed;
    {
      MutexUnlock unlock(&mu_);
      const NameChange change{request.key, std::nullopt};
      committed = log_->Commit({&change, 1}, /*sync=*/true);
    }
    if (name != nullptr) name->reserved = name->recording = false;
    if (grave != graves_.end()) grave->second.burying = false;
    changed_.SignalAll();
    if (!committed.ok()) return committed;
    const bool was_unreadable = grave != graves_.end() && grave->second.kept;
    if (grave != graves_.end()) graves_.erase(grave);
    if (name == nullptr && was_unreadable) {
      EraseGhostsLocked(tombstones_.Add(request.key, TombstoneTable::Reason::kDeleted, nullptr));
      return true;
    }
    if (name != nullptr) name->recorded.clear();
  }
  if (name == nullptr) {
    if (request.allow_missing) return false;
    return MissLocked(request.key, "name");
  }
  ForgetLocked(name, TombstoneTable::Reason::kDeleted);
  return true;
}

absl::StatusOr<NameInfo> Store::Rollback(const Op& op, const RollbackRequest& request) {
  const Source source{{op.tenant, NameKind::kSequence, request.sequence}, request.position, ""};
  RETURN_IF_ERROR(ValidateKey(source.key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  NameInfo info;
  RETURN_IF_ERROR(Write(
      op, {source.key},
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
        if (const Name* name = FindLocked(source.key); name != nullptr) {
          absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name->state, request.request);
          RETURN_IF_ERROR(answered.status());
          if (*answered != nullptr) {
            info = ReplayLocked(*name, **answered);
            return std::vector<NameState>();
          }
        }
        absl::StatusOr<Found> found = ResolveLocked(source, "sequence");
        RETURN_IF_ERROR(found.status());
        RETURN_IF_ERROR(CheckIfRevision(found->name, request.if_revision));
        NameState state = found->name->state;
        state.ring.resize(found->index + 1);
        Advance(request.request, &state);
        return std::vector<NameState>{std::move(state)};
      },
      &info));
  return info;
}

absl::StatusOr<NameInfo> Store::Snapshot(const Op& op, const SnapshotRequest& request) {
  const NameKey key{op.tenant, NameKind::kSnapshot, request.snapshot};
  RETURN_IF_ERROR(ValidateKey(key, "snapshot"));
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  NameInfo info;
  RETURN_IF_ERROR(Write(
      op, {key},
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
        if (const Name* name = FindLocked(key); name != nullptr) {
          absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name->state, request.request);
          RETURN_IF_ERROR(answered.status());
          if (*answered != nullptr) {
            info = ReplayLocked(*name, **answered);
            return std::vector<NameState>();
          }
          return absl::Status(
              Error(absl::StatusCode::kAlreadyExists, "NAME_EXISTS",
                    absl::StrCat("a snapshot '", key.name, "' exists and snapshots never change; delete it first"))
                  .Field("snapshot")
                  .Meta("revision", name->state.revision));
        }
        absl::StatusOr<Found> found = ResolveLocked(request.source, "source");
        RETURN_IF_ERROR(found.status());
        NameState state = NewState(found->name->state.layout);
        state.durability = found->name->state.durability;
        RETURN_IF_ERROR(ApplyOptions(request.options, &state));
        state.max_history = 1;
        state.ring.push_back(found->version());
        Advance(request.request, &state);
        UseLocked(found->name);
        return std::vector<NameState>{std::move(state)};
      },
      &info));
  return info;
}

absl::StatusOr<NameInfo> Store::Restore(const Op& op, const RestoreRequest& request) {
  const Source source{{op.tenant, NameKind::kSnapshot, request.snapshot}, std::nullopt, ""};
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(source.key, "snapshot"));
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request));
  NameInfo info;
  RETURN_IF_ERROR(Write(
      op, {key},
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<NameState>> {
        Name* name = FindLocked(key);
        if (name != nullptr) {
          absl::StatusOr<const AnsweredRequest*> answered = FindAnswered(name->state, request.request);
          RETURN_IF_ERROR(answered.status());
          if (*answered != nullptr) {
            info = ReplayLocked(*name, **answered);
            return std::vector<NameState>();
          }
        }
        absl::StatusOr<Found> found = ResolveLocked(source, "snapshot");
        RETURN_IF_ERROR(found.status());
        RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
        if (name != nullptr && name->state.layout->fingerprint() != found->name->state.layout->fingerprint()) {
          return LayoutMismatch(absl::StatusCode::kFailedPrecondition, *name->state.layout, *found->name->state.layout);
        }
        NameState state = name != nullptr ? name->state : NewState(found->name->state.layout);
        RETURN_IF_ERROR(ApplyOptions(request.options, &state));
        state.ring.push_back(found->version());
        Advance(request.request, &state);
        UseLocked(found->name);
        return std::vector<NameState>{std::move(state)};
      },
      &info));
  return info;
}

// ---- prefixes

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

// ---- housekeeping

void Store::ReapExpired() {
  constexpr int kNamesPerHold = 1000;  // then others have the lock
  MutexLock lock(&mu_);
  const MonoTime now = clock_->Now();
  for (int looked = 1; !expiry_.empty() && expiry_.begin()->first <= now; ++looked) {
    if (looked % kNamesPerHold == 0) MutexUnlock unlock(&mu_);
    if (expiry_.empty()) break;
    Name* name = expiry_.begin()->second;
    expiry_.erase(expiry_.begin());
    name->expiry_entry = kNever;
    if (IsExpired(*name) && !name->busy()) {
      ForgetLocked(name, TombstoneTable::Reason::kExpired);
      ++evictions_["expired"];
      continue;
    }
    // Used since, or busy: looked at again at its deadline, or soon.
    name->expiry_entry = name->busy() ? After(now, absl::Milliseconds(100)) : name->Deadline();
    if (name->expiry_entry != kNever) expiry_.insert({name->expiry_entry, name});
  }
}

bool Store::EvictPrefix() {
  MutexLock lock(&mu_);
  const MonoTime now = clock_->Now();
  Name* worst = nullptr;
  double worst_value = 0;
  for (auto it = names_.From({kDefaultTenant, NameKind::kPrefix, ""}); it != names_.end(); ++it) {
    Name* name = it->get();
    if (name->key.kind != NameKind::kPrefix || name->unborn || name->busy()) continue;
    const VersionRef& head = name->state.head();
    // Only a prefix that alone needs bytes of the cold store frees any by going.
    const bool alone = head.use_count() == 1 + static_cast<long>(name->recorded.size()) && head->image->heads() == 1;
    if (!alone || !images_->persisted(*head->image)) continue;
    const double idle_seconds = static_cast<double>(now - name->last_used) * 1e-9;
    const double tokens = static_cast<double>(head->position);
    const double value =
        tokens * (1 + name->forks) / static_cast<double>(name->state.layout->state_bytes()) / (1 + idle_seconds);
    if (worst == nullptr || value < worst_value) worst = name, worst_value = value;
  }
  if (worst == nullptr) return false;
  ForgetLocked(worst, TombstoneTable::Reason::kEvicted);
  ++evictions_["prefix_value"];
  return BuryLocked().ok();
}

Store::Counts Store::counts() const {
  MutexLock lock(&mu_);
  return {names_.count(NameKind::kSequence), names_.count(NameKind::kSnapshot), names_.count(NameKind::kPrefix)};
}

StoreStats Store::stats() const {
  constexpr int kNamesPerHold = 1000;  // then others have the lock
  MutexLock lock(&mu_);
  StoreStats stats;
  stats.sequences = names_.count(NameKind::kSequence);
  stats.snapshots = names_.count(NameKind::kSnapshot);
  stats.prefixes = names_.count(NameKind::kPrefix);
  stats.dirty_names = dirty_.size();
  stats.flush_lag =
      dirty_.empty() ? absl::ZeroDuration() : absl::Nanoseconds(clock_->Now() - dirty_.begin()->second->dirty_since);
  stats.flush_status = flush_status_;
  stats.prefix_hits = prefix_hits_;
  stats.prefix_misses = prefix_misses_;
  stats.misses = misses_;
  stats.evictions = evictions_;
  absl::flat_hash_set<ImageId> images;
  int looked = 0;
  for (auto it = dirty_.begin(); it != dirty_.end();) {
    const DirtyTicket ticket = it->first;
    const Image& image = *it->second->state.head()->image;
    if (!images_->persisted(image) && images.insert(image.info().id).second)
      stats.dirty_bytes += image.bytes() + image.info().attachment_bytes;
    if (++looked % kNamesPerHold == 0) MutexUnlock unlock(&mu_);
    it = dirty_.upper_bound(ticket);
  }
  return stats;
}

}  // namespace statepool
