// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The operations on sequences and snapshots; those that go by tokens are in store_history.cc. A write is prepared: it
// validates, makes its image if it has one, and says in a closure what becomes of its names. Store::Write does the
// rest, for one or for a batch.
#include <algorithm>
#include <deque>
#include <type_traits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "server/core/error.h"
#include "server/core/store.h"
#include "server/core/store_errors.h"

namespace statepool {
namespace {

bool KnowsRequest(const NameState& state, absl::string_view id) {
  return !id.empty() && std::any_of(state.requests.begin(), state.requests.end(),
                                    [&](const AnsweredRequest& answered) { return answered.id == id; });
}

// The body hash of a request that writes bytes: of those that came, not of the checksum that was claimed for them.
uint64_t HashWithData(uint64_t body_hash, Checksum data) {
  const uint64_t both[2] = {body_hash, data};
  return HashLeaf({reinterpret_cast<const char*>(both), sizeof both});
}

// Opaque to callers: which list it belongs to, and the last name told.
std::string PageToken(const ListRequest& request, absl::string_view last) {
  const std::string list = absl::StrCat(static_cast<int>(request.kind), ":", request.name_prefix);
  return absl::StrCat(ChecksumToHex(HashLeaf(list)), last);
}
bool ParsePageToken(const ListRequest& request, std::string* last) {
  if (request.page_token.size() <= 16) return false;
  *last = request.page_token.substr(16);
  return request.page_token == PageToken(request, *last) && absl::StartsWith(*last, request.name_prefix);
}

// The names that an item of a batch writes.
using NameWritten = std::pair<NameKind, absl::string_view>;
std::vector<NameWritten> NamesWritten(const BatchItem& item) {
  struct Visitor {
    std::vector<NameWritten> operator()(const CreateRequest& r) { return {{NameKind::kSequence, r.sequence}}; }
    std::vector<NameWritten> operator()(const SetItem& r) { return {{NameKind::kSequence, r.request.sequence}}; }
    std::vector<NameWritten> operator()(const RollbackRequest& r) { return {{NameKind::kSequence, r.sequence}}; }
    std::vector<NameWritten> operator()(const SnapshotRequest& r) { return {{NameKind::kSnapshot, r.snapshot}}; }
    std::vector<NameWritten> operator()(const RestoreRequest& r) { return {{NameKind::kSequence, r.sequence}}; }
    std::vector<NameWritten> operator()(const RemoveRangeRequest& r) { return {{NameKind::kSequence, r.sequence}}; }
    std::vector<NameWritten> operator()(const RenumberRequest& r) { return {{NameKind::kSequence, r.sequence}}; }
    std::vector<NameWritten> operator()(const DeleteRequest& r) { return {{r.key.kind, r.key.name}}; }
    std::vector<NameWritten> operator()(const ForkRequest& r) {
      // A child that stands twice is that item's own error.
      const absl::flat_hash_set<absl::string_view> children(r.children.begin(), r.children.end());
      std::vector<NameWritten> names;
      for (absl::string_view child : children) names.emplace_back(NameKind::kSequence, child);
      return names;
    }
  };
  return std::visit(Visitor(), item);
}

template <typename Request>
struct AnswerToImpl {
  using Type = NameInfo;
};
template <>
struct AnswerToImpl<ForkRequest> {
  using Type = ForkAnswer;
};
template <>
struct AnswerToImpl<DeleteRequest> {
  using Type = bool;
};
template <>
struct AnswerToImpl<RemoveRangeRequest> {
  using Type = RemoveRangeAnswer;
};
template <typename Request>
using AnswerTo = typename AnswerToImpl<std::remove_cvref_t<Request>>::Type;

}  // namespace

// ---- reads

absl::StatusOr<Pin> Store::ReadImage(const Op& op, const ImageRef& image, VersionId version, Revision durable_revision,
                                     const Device* on) {
  absl::StatusOr<Pin> pin = images_->Read(op, image, on);
  return pin.ok() ? std::move(pin) : WhyUnread(pin.status(), *image, version, durable_revision);
}

absl::Status Store::WhyUnread(const absl::Status& status, const Image& image, VersionId version,
                              Revision durable_revision) const {
  if (absl::IsDataLoss(status)) {
    return Error(
               absl::StatusCode::kDataLoss, "CORRUPT",
               absl::StrCat("the bytes of this version are damaged (", status.message(), "); compute the state again"))
        .Field("name")
        .Meta("version_id", version);
  }
  if (!absl::IsUnavailable(images_->loss(image))) return status;
  const std::string way_out =
      durable_revision == 0
          ? "no version of this name is durable: compute the state again and set it"
          : absl::StrCat(
                "revision ", durable_revision,
                " of this name is durable: go back to it with Rollback, or compute the state again and set it");
  Error lost(absl::StatusCode::kUnavailable, "DEVICE_FAILED", absl::StrCat(status.message(), "; ", way_out));
  for (const auto& [key, value] : GetErrorDetail(status).metadata) lost.Meta(key, value);
  return lost.Field("name").Meta("version_id", version).Meta("durable_revision", durable_revision);
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
  absl::StatusOr<Pin> pin = ReadImage(op, image, answer.info.version.id, answer.info.durable_revision, nullptr);
  RETURN_IF_ERROR(pin.status());
  answer.pin = *std::move(pin);
  answer.image = image->info().id;
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
  answer.image = found->version()->image->info().id;
  return answer;
}

absl::StatusOr<std::vector<absl::StatusOr<GetAnswer>>> Store::GetMany(const Op& op, absl::Span<const Source> sources,
                                                                      MayRead may_read, PinPlace place) {
  RETURN_IF_ERROR(op.Check(*clock_));
  std::vector<absl::StatusOr<GetAnswer>> answers;
  std::vector<ImageRef> images(sources.size());
  answers.reserve(sources.size());
  {
    MutexLock lock(&mu_);
    for (size_t i = 0; i < sources.size(); ++i) {
      absl::StatusOr<Found> found = ResolveLocked(sources[i], "name");
      if (!found.ok()) {
        answers.push_back(found.status());
        continue;
      }
      UseLocked(found->name);
      images[i] = found->version()->image;
      answers.push_back(GetAnswer{InfoLocked(*found->name, *found->version()), nullptr, images[i]->info().id});
    }
  }
  RETURN_IF_ERROR(may_read(absl::MakeSpan(answers)));
  std::vector<size_t> wanted;
  std::vector<ImageRef> wanted_images;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (!answers[i].ok()) continue;
    wanted.push_back(i);
    wanted_images.push_back(images[i]);
  }
  std::vector<absl::StatusOr<Pin>> pins = images_->ReadMany(op, wanted_images, place);
  for (size_t k = 0; k < wanted.size(); ++k) {
    absl::StatusOr<GetAnswer>& answer = answers[wanted[k]];
    const Image& image = *wanted_images[k];
    if (!pins[k].ok()) {
      answer = WhyUnread(pins[k].status(), image, answer->info.version.id, answer->info.durable_revision);
      continue;
    }
    answer->pin = *std::move(pins[k]);
    answer->info.version.tier = images_->tier(image);
  }
  return answers;
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
  AddHistory(name->state.ring, &info);
  return info;
}

absl::StatusOr<ListAnswer> Store::List(const Op& op, const ListRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  if (request.page_size > options_.max_page_size) {
    return Invalid("INVALID_OPTION", "page_size", absl::StrCat("at most ", options_.max_page_size));
  }
  std::string after;
  if (!request.page_token.empty() && !ParsePageToken(request, &after)) {
    return Invalid("INVALID_OPTION", "page_token", "it does not belong to this list; start again without it");
  }
  const size_t page_size = request.page_size == 0 ? std::min(100u, options_.max_page_size) : request.page_size;
  ListAnswer answer;
  MutexLock lock(&mu_);
  auto it = after.empty() ? names_.From({op.tenant, request.kind, request.name_prefix})
                          : names_.After({op.tenant, request.kind, after});
  for (; it != names_.end(); ++it) {
    const NameTable::View view = it->view();
    if (view.tenant != op.tenant || view.kind != request.kind || !absl::StartsWith(view.name, request.name_prefix))
      break;
    const Name* name = it->name();
    std::optional<RestingName> resting;
    if (name == nullptr) resting = it->folded()->Unpack();
    if (name != nullptr ? name->unborn || IsExpired(*name) : clock_->Now() >= resting->Deadline()) continue;
    if (answer.names.size() == page_size) {
      answer.next_page_token = PageToken(request, answer.names.back().key.name);
      break;
    }
    answer.names.push_back(name != nullptr ? InfoLocked(*name, *name->state.head())
                                           : InfoOfResting(*resting, /*with_history=*/false));
  }
  return answer;
}

template <typename Answer, typename Request>
absl::StatusOr<Answer> Store::Run(const Op& op, const Request& request) {
  Answer answer{};
  absl::StatusOr<Change> change = Prepare(op, request, &answer);
  RETURN_IF_ERROR(change.status());
  RETURN_IF_ERROR(Write(op, *std::move(change)));
  return answer;
}

absl::StatusOr<NameInfo> Store::Create(const Op& op, const CreateRequest& request) {
  return Run<NameInfo>(op, request);
}
absl::StatusOr<NameInfo> Store::Set(const Op& op, const SetRequest& request, const StateBytes& bytes) {
  return Run<NameInfo>(op, SetItem{request, bytes});
}
absl::StatusOr<ForkAnswer> Store::Fork(const Op& op, const ForkRequest& request) {
  return Run<ForkAnswer>(op, request);
}
absl::StatusOr<NameInfo> Store::Rollback(const Op& op, const RollbackRequest& request) {
  return Run<NameInfo>(op, request);
}
absl::StatusOr<RemoveRangeAnswer> Store::RemoveRange(const Op& op, const RemoveRangeRequest& request) {
  return Run<RemoveRangeAnswer>(op, request);
}
absl::StatusOr<NameInfo> Store::Renumber(const Op& op, const RenumberRequest& request) {
  return Run<NameInfo>(op, request);
}
absl::StatusOr<NameInfo> Store::Snapshot(const Op& op, const SnapshotRequest& request) {
  return Run<NameInfo>(op, request);
}
absl::StatusOr<NameInfo> Store::Restore(const Op& op, const RestoreRequest& request) {
  return Run<NameInfo>(op, request);
}
absl::StatusOr<bool> Store::Delete(const Op& op, const DeleteRequest& request) {
  absl::StatusOr<bool> deleted = Run<bool>(op, request);
  if (deleted.ok() || request.allow_missing || !absl::IsNotFound(deleted.status())) return deleted;
  // A miss; but after any Delete nothing of the name is left on disk. A name that was made meanwhile stays.
  const absl::Status buried = Run<bool>(op, DeleteRequest{request.key, 0, true}).status();
  return buried.ok() || ReasonOf(buried) == "REVISION_MISMATCH" ? deleted : buried;
}

// ---- writes

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const CreateRequest& request, NameInfo* answer) {
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  absl::StatusOr<LayoutRef> layout = layouts_.Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  const NameState fresh = NewState(*layout);
  // With no image yet it only looks.
  const auto decide = [this, key, &request, fresh, answer](const ImageRef& image)
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
    if (const Name* name = FindLocked(key); name != nullptr) {
      const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, answer);
      RETURN_IF_ERROR(replayed.status());
      if (*replayed) return std::vector<Next>();
      return NameExists(*name, "sequence", "choose another name, or delete it first");
    }
    NameState state = fresh;
    RETURN_IF_ERROR(ApplyOptions(request.options, &state));  // a retry may come when its expire_time is over
    if (image != nullptr) {
      state.ring.push_back(NewVersion(0, 0, Exactness::kExact, image));
      GiveRevision(request.request, &state);
    }
    return One(std::move(state));
  };
  {
    MutexLock lock(&mu_);
    absl::StatusOr<std::vector<Next>> look = decide(nullptr);
    RETURN_IF_ERROR(look.status());
    if (look->empty()) return Change{};
  }
  StateBytes initial;
  initial.initial = true;
  absl::StatusOr<ImageRef> image = images_->Write(op, *layout, initial);
  NoticeDeleted(op, **layout);
  RETURN_IF_ERROR(image.status());
  return Change{{key},
                [decide, image = *image]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return decide(image); },
                answer,
                absl::OkStatus()};
}

absl::Status Store::ValidateSet(const SetRequest& request, absl::string_view attachment) const {
  RETURN_IF_ERROR(ValidateKey({kDefaultTenant, NameKind::kSequence, request.sequence}, "sequence"));
  RETURN_IF_ERROR(ValidatePosition(request.position, "position"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  if (attachment.size() > options_.max_attachment_bytes) {
    return Invalid("INVALID_OPTION", "attachment",
                   absl::StrCat("an attachment has at most ", options_.max_attachment_bytes, " bytes"));
  }
  if (request.select.has_value() && !request.if_revision.has_value()) {
    return Invalid("MISSING_FIELD", "if_revision",
                   "a Set of a part must name the revision that it changes, or it could mix two writers' states");
  }
  return absl::OkStatus();
}

absl::StatusOr<Store::SetLook> Store::LookAtSetLocked(const NameKey& key, const SetRequest& request,
                                                      const RequestId& request_id, const LayoutRef& layout,
                                                      NameInfo* answer) {
  Name* name = FindLocked(key);
  if (name != nullptr) {
    const absl::StatusOr<bool> replayed = ReplayLocked(*name, request_id, answer);
    RETURN_IF_ERROR(replayed.status());
    if (*replayed) return SetLook{.replayed = true, .name = name};
  }
  RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
  if (name == nullptr && (request.layout.empty() || request.select.has_value())) {
    absl::Status miss = MissLocked(key, "sequence");
    if (ReasonOf(miss) != "NEVER_CREATED" || request.select.has_value()) return miss;
    return Invalid("MISSING_FIELD", "layout", "a Set that makes a sequence must name its layout");
  }
  if (name != nullptr && layout != nullptr && name->state.layout->fingerprint() != layout->fingerprint()) {
    return LayoutMismatch(absl::StatusCode::kFailedPrecondition, *name->state.layout, *layout);
  }
  NameState wanted;
  wanted.durability = name != nullptr ? name->state.durability : options_.default_durability;
  RETURN_IF_ERROR(ApplyOptions(request.options, &wanted));
  return SetLook{false, name, name != nullptr ? name->state.layout : layout, wanted.durability};
}

// What the name's state becomes.
absl::StatusOr<std::vector<Store::Next>> Store::DecideSetLocked(const NameKey& key, const SetRequest& request,
                                                                const RequestId& request_id, const LayoutRef& layout,
                                                                const ImageRef& image, Exactness exactness,
                                                                NameInfo* answer) {
  const absl::StatusOr<SetLook> look = LookAtSetLocked(key, request, request_id, layout, answer);
  RETURN_IF_ERROR(look.status());
  if (look->replayed) return std::vector<Next>();
  const Name* const name = look->name;
  NameState state = name != nullptr ? name->state : NewState(layout);
  RETURN_IF_ERROR(ApplyOptions(request.options, &state));
  state.ring.push_back(NewVersion(name != nullptr ? name->state.head()->id : 0, request.position, exactness, image));
  GiveRevision(request_id, &state);
  return One(std::move(state));
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const SetItem& item, NameInfo* answer) {
  const SetRequest& request = item.request;
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateSet(request, item.bytes.attachment));
  LayoutRef layout;
  if (!request.layout.empty()) {
    absl::StatusOr<LayoutRef> found = layouts_.Find(op.tenant, request.layout);
    RETURN_IF_ERROR(found.status());
    layout = *found;
  }
  RequestId request_id = request.request;
  std::optional<Checksum> data_checksum;
  const auto hash_data = [&] {
    data_checksum =
        item.bytes.image != nullptr ? item.bytes.image->info().checksum : ChecksumOfPieces(item.bytes.pieces);
    request_id.body_hash = HashWithData(request_id.body_hash, *data_checksum);
  };
  if (request.select.has_value()) hash_data();
  // A first look, so that a refused request costs no copy, and to know the layout and the head of a name that exists:
  // not for an image that is there, of a layout that was told.
  // Hashing what came costs a pass over it, so a request_id that nobody knows waits for the hash that the copy makes.
  // But whoever finds it unknown and whoever refuses must see one state of the name: else a retry that meets its first
  // attempt is refused for what that one did.
  VersionRef base;
  Revision durable_revision = 0;
  for (bool looked = item.bytes.image != nullptr && layout != nullptr && !request.select.has_value(); !looked;) {
    {
      MutexLock lock(&mu_);
      const Name* name = FindLocked(key);
      looked = data_checksum.has_value() || name == nullptr || !KnowsRequest(name->state, request.request.id);
      if (looked) {
        const absl::StatusOr<SetLook> look =
            LookAtSetLocked(key, request, data_checksum.has_value() ? request_id : RequestId{}, layout, answer);
        RETURN_IF_ERROR(look.status());
        if (look->replayed) return Change{};
        WriteBehind::Adding adding;
        RETURN_IF_ERROR(AdmitLocked(look->durability, *look->layout, nullptr, &adding));
        layout = look->layout;
        if (request.select.has_value()) base = name->state.head();
        if (name != nullptr) durable_revision = name->durable_revision;
      }
    }
    if (!looked) hash_data();
  }

  StateBytes bytes = item.bytes;
  std::vector<ByteRange> ranges;
  Pin pin;
  Exactness exactness = request.exactness.value_or(Exactness::kExact);
  if (request.select.has_value()) {
    absl::StatusOr<std::vector<ByteRange>> selected = RangesOf(*layout, *request.select);
    RETURN_IF_ERROR(selected.status());
    ranges = *std::move(selected);
    if (BytesOf(ranges) < layout->state_bytes()) {
      exactness = request.exactness.value_or(Exactness::kEdited);
      if (exactness == Exactness::kExact) {
        return Invalid("INVALID_OPTION", "exactness", "a state of which a part was replaced is EDITED or LOSSY");
      }
      absl::StatusOr<Pin> read = ReadImage(op, base->image, base->id, durable_revision, nullptr);
      RETURN_IF_ERROR(read.status());
      pin = *std::move(read);
      if (bytes.attachment.empty()) bytes.attachment = pin->attachment();  // it, too, is left as it was
      bytes.base = pin.get();
      bytes.ranges = ranges;
      if (bytes.expected_checksum.has_value() && *bytes.expected_checksum != *data_checksum) {
        return ChecksumMismatch(*bytes.expected_checksum, *data_checksum);
      }
      bytes.expected_checksum.reset();
    }
  }
  if (bytes.image != nullptr && bytes.image->info().layout->fingerprint() != layout->fingerprint()) {
    return Error(absl::StatusCode::kFailedPrecondition, "GRANT_UNKNOWN",
                 "the slot was granted for another layout than the name has")
        .Field("grant");
  }
  absl::StatusOr<ImageRef> image = bytes.image;
  if (bytes.image == nullptr) image = images_->Write(op, layout, bytes);
  NoticeDeleted(op, *layout);
  RETURN_IF_ERROR(image.status());
  if (!data_checksum.has_value()) request_id.body_hash = HashWithData(request_id.body_hash, (*image)->info().checksum);
  return Change{{key},
                [this, key, &request, request_id, layout, image = *image, exactness, answer]()
                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                      return DecideSetLocked(key, request, request_id, layout, image, exactness, answer);
                    },
                answer,
                absl::OkStatus()};
}

absl::StatusOr<std::optional<NameInfo>> Store::ReplayOfSet(const Op& op, const SetRequest& request, Checksum checksum) {
  MutexLock lock(&mu_);
  const Name* name = FindLocked({op.tenant, NameKind::kSequence, request.sequence});
  if (name == nullptr || !KnowsRequest(name->state, request.request.id)) return std::nullopt;
  RequestId request_id = request.request;
  request_id.body_hash = HashWithData(request_id.body_hash, checksum);
  NameInfo answer;
  const absl::StatusOr<bool> replayed = ReplayLocked(*name, request_id, &answer);
  RETURN_IF_ERROR(replayed.status());
  return answer;
}

absl::StatusOr<LayoutRef> Store::LayoutOfSet(const Op& op, const SetRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  RETURN_IF_ERROR(ValidateSet(request, ""));
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  LayoutRef layout;
  if (!request.layout.empty()) {
    absl::StatusOr<LayoutRef> found = layouts_.Find(op.tenant, request.layout);
    RETURN_IF_ERROR(found.status());
    layout = *found;
  }
  MutexLock lock(&mu_);
  const Name* name = FindLocked(key);
  // It may be the retry of a request that was answered: its bytes will tell.
  if (name != nullptr && KnowsRequest(name->state, request.request.id))
    return layout != nullptr ? layout : name->state.layout;
  NameInfo ignored;
  const absl::StatusOr<SetLook> look = LookAtSetLocked(key, request, RequestId{}, layout, &ignored);
  RETURN_IF_ERROR(look.status());
  WriteBehind::Adding adding;
  RETURN_IF_ERROR(AdmitLocked(look->durability, *look->layout, nullptr, &adding));
  return look->layout;
}

absl::StatusOr<PendingSet> Store::BeginSet(const Op& op, SetRequest request, LayoutRef layout, std::string attachment,
                                           std::optional<Checksum> expected_checksum) {
  RETURN_IF_ERROR(ValidateSet(request, attachment));
  if (request.select.has_value()) {
    return Invalid("INVALID_OPTION", "select", "a stream writes a whole state; send a part with Set");
  }
  PendingSet set;
  set.layout = std::move(layout);
  absl::StatusOr<std::unique_ptr<ImageWriter>> writer =
      images_->BeginWrite(op, set.layout, attachment.size(), /*on=*/nullptr);
  NoticeDeleted(op, *set.layout);
  RETURN_IF_ERROR(writer.status());
  set.request = std::move(request);
  set.attachment = std::move(attachment);
  set.expected_checksum = expected_checksum;
  set.writer = *std::move(writer);
  return set;
}

absl::StatusOr<NameInfo> Store::FinishSet(const Op& op, PendingSet* set) {
  RETURN_IF_ERROR(op.Check(*clock_));
  absl::StatusOr<ImageRef> image = set->writer->Finish(set->expected_checksum, set->attachment);
  RETURN_IF_ERROR(image.status());
  const SetRequest& request = set->request;
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RequestId request_id = request.request;
  request_id.body_hash = HashWithData(request_id.body_hash, (*image)->info().checksum);
  NameInfo info;
  RETURN_IF_ERROR(Write(op, Change{{key},
                                   [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                                     return DecideSetLocked(key, request, request_id, set->layout, *image,
                                                            request.exactness.value_or(Exactness::kExact), &info);
                                   },
                                   &info,
                                   absl::OkStatus()}));
  return info;
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const ForkRequest& request, ForkAnswer* out) {
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
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
  Change change;
  change.keys = std::move(keys);
  change.decide = [this, keys = change.keys, &request, out]()
                      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
    ForkAnswer& answer = *out;
    answer = ForkAnswer{};
    // A retry: all children are there and remember this request.
    std::vector<std::pair<const Name*, const AnsweredRequest*>> children;
    for (const NameKey& key : keys) {
      const Name* child = FindLocked(key);
      absl::StatusOr<const AnsweredRequest*> answered = nullptr;
      if (child != nullptr) answered = FindAnswered(child->state, request.request);
      RETURN_IF_ERROR(answered.status());
      children.emplace_back(child, *answered);
      answer.replayed = answer.replayed || *answered != nullptr;
    }
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto& [child, answered] = children[i];
      if (child != nullptr && answered == nullptr)
        return NameExists(*child, absl::StrCat("children[", i, "]"), "no child was made");
      if (child == nullptr && answer.replayed) {
        return absl::Status(Error(absl::StatusCode::kAborted, "REVISION_MISMATCH",
                                  absl::StrCat("this Fork was answered before, and '", keys[i].name,
                                               "' is gone since; use a new request_id"))
                                .Field(absl::StrCat("children[", i, "]"))
                                .Meta("revision", uint64_t{0}));
      }
      if (child == nullptr) continue;
      answer.revisions.push_back(answered->revision);
      if (i > 0) continue;
      const NameInfo info = InfoOfAnswered(*child, *answered);
      answer.version = info.version;
      answer.state_bytes = info.layout->state_bytes();
      answer.durability = info.durability;
    }
    if (answer.replayed) return std::vector<Next>();

    absl::StatusOr<Found> found = ResolveLocked(request.source, "source");
    RETURN_IF_ERROR(found.status());
    const Name* source = found->name;
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
    std::vector<Next> states(keys.size(), child);
    for (Next& state : states) {
      GiveRevision(request.request, &*state);
      answer.revisions.push_back(state->revision);
    }
    answer.version = InfoOf(*found->version());
    answer.state_bytes = source->state.layout->state_bytes();
    answer.durability = child.durability;
    return states;
  };
  change.published = UseOf(request.source.key, request.children.size());
  return change;
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const SnapshotRequest& request, NameInfo* answer) {
  const NameKey key{op.tenant, NameKind::kSnapshot, request.snapshot};
  RETURN_IF_ERROR(ValidateKey(key, "snapshot"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  return Change{{key},
                [this, key, &request, answer]()
                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
                      if (const Name* name = FindLocked(key); name != nullptr) {
                        const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, answer);
                        RETURN_IF_ERROR(replayed.status());
                        if (*replayed) return std::vector<Next>();
                        return NameExists(*name, "snapshot", "snapshots never change; delete it first");
                      }
                      absl::StatusOr<Found> found = ResolveLocked(request.source, "source");
                      RETURN_IF_ERROR(found.status());
                      NameState state = NewState(found->name->state.layout);
                      state.durability = found->name->state.durability;
                      RETURN_IF_ERROR(ApplyOptions(request.options, &state));
                      state.max_history = 1;
                      state.ring.push_back(found->version());
                      GiveRevision(request.request, &state);
                      return One(std::move(state));
                    },
                answer,
                absl::OkStatus(),
                UseOf(request.source.key)};
}

absl::StatusOr<Store::Change> Store::Prepare(const Op& op, const RestoreRequest& request, NameInfo* answer) {
  const Source source{{op.tenant, NameKind::kSnapshot, request.snapshot}, std::nullopt, ""};
  const NameKey key{op.tenant, NameKind::kSequence, request.sequence};
  RETURN_IF_ERROR(ValidateKey(source.key, "snapshot"));
  RETURN_IF_ERROR(ValidateKey(key, "sequence"));
  RETURN_IF_ERROR(ValidateRequestId(request.request.id));
  return Change{
      {key},
      [this, key, source, &request, answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
        Name* name = FindLocked(key);
        if (name != nullptr) {
          const absl::StatusOr<bool> replayed = ReplayLocked(*name, request.request, answer);
          RETURN_IF_ERROR(replayed.status());
          if (*replayed) return std::vector<Next>();
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
        GiveRevision(request.request, &state);
        return One(std::move(state));
      },
      answer,
      absl::OkStatus(),
      UseOf(source.key)};
}

absl::StatusOr<Store::Change> Store::Prepare(const Op&, const DeleteRequest& request, bool* answer) {
  RETURN_IF_ERROR(ValidateKey(request.key, "name"));
  return Change{{request.key},
                [this, &request, answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
                  const Name* name = FindLocked(request.key);
                  const auto grave = graves_.find(request.key);
                  *answer = false;
                  if (name != nullptr && request.created != 0 && name->state.created != request.created)
                    return std::vector<Next>();
                  // A record that nobody can read is a name too.
                  *answer = name != nullptr || (grave != graves_.end() && grave->second.kept);
                  if (name != nullptr) RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
                  if (!*answer && !request.allow_missing) return MissLocked(request.key, "name");
                  // What is left on disk of an earlier name goes before the answer.
                  if (!*answer && grave == graves_.end()) return std::vector<Next>();
                  return One(std::nullopt);
                },
                nullptr,
                absl::OkStatus()};
}

absl::StatusOr<DeleteManyAnswer> Store::DeleteMany(const Op& op, const DeleteManyRequest& request) {
  constexpr size_t kNamesPerHold = 1000;  // then others have the lock; and so many go in one commit
  if (request.name_prefix.empty() && !request.all)
    return Invalid("MISSING_FIELD", "name_prefix", "say which names, or `all`");
  if (request.keep.size() > options_.max_children) {
    return absl::Status(
        Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(request.keep.size(), " names to keep"))
            .Field("keep")
            .Meta("limit", options_.max_children));
  }
  for (size_t i = 0; i < request.keep.size(); ++i)
    RETURN_IF_ERROR(ValidateKey({op.tenant, request.kind, request.keep[i]}, absl::StrCat("keep[", i, "]")));
  const absl::flat_hash_set<absl::string_view> keep(request.keep.begin(), request.keep.end());
  DeleteManyAnswer answer;
  absl::flat_hash_set<ImageId> seen_images;
  // What is deleted is what was counted: names made before this, but for those whose record was under way when they
  // would have been counted. Nobody has seen these yet, and they may come to nothing.
  const Revision made_before = ids_.Next();
  absl::flat_hash_set<Revision> unborn;
  // The next names that match, a hold of the lock at a time.
  std::string after;
  bool more = true;
  const auto matches = [&](const NameTable::View& view) {
    return view.tenant == op.tenant && view.kind == request.kind && absl::StartsWith(view.name, request.name_prefix);
  };
  const auto next_names = [&](bool count) ABSL_LOCKS_EXCLUDED(mu_) {
    std::vector<DeleteRequest> names;
    MutexLock lock(&mu_);
    auto it = after.empty() ? names_.From({op.tenant, request.kind, request.name_prefix})
                            : names_.After({op.tenant, request.kind, after});
    for (size_t looked = 0; it != names_.end() && looked < kNamesPerHold; ++it, ++looked) {
      if (!matches(it->view())) break;
      after = std::string(it->view().name);
      if (keep.contains(after)) continue;
      const Name* name = it->name();
      std::optional<RestingName> resting;
      if (name == nullptr) resting = it->folded()->Unpack();
      const NameState& state = name != nullptr ? name->state : resting->state;
      if (state.created > made_before) continue;
      if (count && name != nullptr && name->unborn) unborn.insert(state.created);
      if (name != nullptr ? name->unborn || IsExpired(*name) : clock_->Now() >= resting->Deadline()) continue;
      if (unborn.contains(state.created)) continue;
      names.push_back({{op.tenant, request.kind, after}, std::nullopt, true, state.created});
      if (!count) continue;
      const ImageId image = name != nullptr ? state.head()->image->info().id : resting->versions.back().image;
      if (seen_images.insert(image).second) answer.state_bytes += state.layout->state_bytes();
    }
    more = it != names_.end() && matches(it->view());
    return names;
  };
  while (more) {
    RETURN_IF_ERROR(op.Check(*clock_));
    for (DeleteRequest& name : next_names(/*count=*/true)) {
      ++answer.matched;
      if (answer.names.size() < DeleteManyAnswer::kNamesTold) answer.names.push_back(std::move(name.key.name));
    }
  }
  if (request.if_count.has_value() && *request.if_count != answer.matched) {
    return Error(absl::StatusCode::kAborted, "COUNT_MISMATCH",
                 absl::StrCat("if_count is ", *request.if_count, ", and ", answer.matched,
                              " names match; nothing was deleted; look at a preview again"))
        .Field("if_count")
        .Meta("count", answer.matched);
  }
  if (request.preview) return answer;
  after.clear();
  for (more = true; more;) {
    const std::vector<DeleteRequest> deletes = next_names(/*count=*/false);
    std::vector<Change> changes;
    std::deque<bool> deleted(deletes.size());
    for (size_t i = 0; i < deletes.size(); ++i) {
      absl::StatusOr<Change> change = Prepare(op, deletes[i], &deleted[i]);
      RETURN_IF_ERROR(change.status());
      changes.push_back(*std::move(change));
    }
    RETURN_IF_ERROR(Write(op, absl::MakeSpan(changes), /*all_or_none=*/false));
    answer.deleted += static_cast<uint64_t>(std::count(deleted.begin(), deleted.end(), true));
  }
  return answer;
}

absl::StatusOr<absl::Time> Store::Touch(const Op& op, const NameKey& key, absl::string_view field) {
  RETURN_IF_ERROR(op.Check(*clock_));
  RETURN_IF_ERROR(ValidateKey(key, field));
  MutexLock lock(&mu_);
  Name* name = FindLocked(key);
  if (name == nullptr) return MissLocked(key, field);
  UseLocked(name);
  return ExpireTimeOf(name->state, name->Deadline());
}

absl::StatusOr<NameInfo> Store::SetTtl(const Op& op, const SetTtlRequest& request) {
  RETURN_IF_ERROR(ValidateKey(request.key, "name"));
  NameInfo info;
  RETURN_IF_ERROR(Write(op, Change{{request.key},
                                   [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::StatusOr<std::vector<Next>> {
                                     const Name* name = FindLocked(request.key);
                                     if (name == nullptr) return MissLocked(request.key, "name");
                                     RETURN_IF_ERROR(CheckIfRevision(name, request.if_revision));
                                     NameState state = name->state;
                                     RETURN_IF_ERROR(ApplyOptions(request.options, &state));
                                     return One(std::move(state));
                                   },
                                   &info,
                                   absl::OkStatus()}));
  return info;
}

// ---- batches

absl::StatusOr<std::vector<BatchResult>> Store::Batch(const Op& op, absl::Span<const BatchItem> items,
                                                      bool all_or_none) {
  RETURN_IF_ERROR(op.Check(*clock_));
  if (items.empty()) return Invalid("MISSING_FIELD", "items", "a batch has at least one item");
  if (items.size() > options_.max_batch) {
    return absl::Status(
        Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(items.size(), " items in one batch"))
            .Field("items")
            .Meta("limit", options_.max_batch));
  }
  // Which names they write stands in them; so a name that two of them write is found before any work is done.
  absl::flat_hash_set<std::pair<NameKind, absl::string_view>> distinct;
  size_t names = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    for (const auto& [kind, name] : NamesWritten(items[i])) {
      ++names;
      if (distinct.insert({kind, name}).second) continue;
      return Invalid("DUPLICATE_NAME", absl::StrCat("items[", i, "]"),
                     absl::StrCat("'", name, "' is written twice in the batch"));
    }
  }
  if (names > options_.max_children) {
    return absl::Status(
        Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(names, " names written in one batch"))
            .Field("items")
            .Meta("limit", options_.max_children));
  }

  std::vector<BatchResult> results(items.size());
  std::vector<Change> changes(items.size());
  bool refused = false;
  for (size_t i = 0; i < items.size() && !(refused && all_or_none); ++i) {
    absl::StatusOr<Change> change =
        std::visit([&](const auto& item) ABSL_LOCKS_EXCLUDED(
                       mu_) { return Prepare(op, item, &results[i].answer.emplace<AnswerTo<decltype(item)>>()); },
                   items[i]);
    refused = refused || !change.ok();
    if (change.ok()) {
      changes[i] = *std::move(change);
    } else {
      changes[i].status = change.status();
    }
  }
  RETURN_IF_ERROR(Write(op, absl::MakeSpan(changes), all_or_none));
  for (size_t i = 0; i < items.size(); ++i) results[i].status = std::move(changes[i].status);
  return results;
}

}  // namespace statepool
