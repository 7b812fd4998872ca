// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The operations on sequences and snapshots. Each validates, decides the next state of its names in a closure, and
// leaves the rest to Store::Write.
#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {
namespace {

absl::Status ValidateRequestId(const RequestId& request) {
  if (request.id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return Invalid("INVALID_OPTION", "request_id",
                 absl::StrCat("a request_id has at most ", kMaxRequestIdBytes, " bytes"));
}

}  // namespace

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
      const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, &info);
      RETURN_IF_ERROR(replayed.status());
      if (*replayed) return std::vector<NameState>();
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
      const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, &info);
      RETURN_IF_ERROR(replayed.status());
      if (*replayed) return std::vector<NameState>();
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
              const NameInfo info = InfoOfAnswered(*child, *answered);
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
  if (const FoldedName* folded = names_.FindFolded(key); folded != nullptr) {
    const RestingName name = folded->Unpack();
    if (clock_->Now() < name.Deadline()) return InfoOfResting(name, /*with_history=*/true);
  }
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
    const NameTable::View view = it->view();
    if (view.tenant != op.tenant || view.kind != request.kind || !absl::StartsWith(view.name, request.name_prefix))
      break;
    const Name* name = it->name();
    std::optional<RestingName> resting;
    if (name == nullptr) resting = it->folded()->Unpack();
    if (name != nullptr ? name->unborn || IsExpired(*name) : clock_->Now() >= resting->Deadline()) continue;
    if (answer.names.size() == page_size) {
      answer.next_page_token = answer.names.back().key.name;
      break;
    }
    answer.names.push_back(name != nullptr ? InfoLocked(*name, *name->state.head())
                                           : InfoOfResting(*resting, /*with_history=*/false));
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
          const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, &info);
          RETURN_IF_ERROR(replayed.status());
          if (*replayed) return std::vector<NameState>();
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
          const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, &info);
          RETURN_IF_ERROR(replayed.status());
          if (*replayed) return std::vector<NameState>();
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
          const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, &info);
          RETURN_IF_ERROR(replayed.status());
          if (*replayed) return std::vector<NameState>();
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

}  // namespace statepool
