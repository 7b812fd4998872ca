// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/handlers.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/checksum.h"
#include "server/core/error.h"
#include "server/core/range_reader.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "server/rpc/requests.h"

namespace statepool {
namespace {

constexpr uint32_t kDefaultPageSize = 100;
// What an item of a batch may have in the answer beside its bytes and its attachment: its name, or an error with it.
constexpr uint64_t kBesideStateBytes = 2048;

template <typename Request>
absl::StatusOr<Source> ToSource(const Request& in) {
  absl::StatusOr<NameKey> key = ToNameKey(in.source(), "source");
  if (!key.ok()) return key.status();
  Source source{*std::move(key), std::nullopt, ""};
  if (in.has_position()) source.position = in.position();
  return source;
}

absl::Status Answer(const absl::StatusOr<NameInfo>& info, v1::NameInfo* out) {
  if (info.ok()) FillNameInfo(*info, out);
  return info.status();
}

}  // namespace

absl::Status Handlers::GetCapabilities(const Op&, const v1::GetCapabilitiesRequest&, v1::Capabilities* out) {
  out->set_version(identity_.version);
  out->set_commit(identity_.commit);
  out->set_incarnation(identity_.incarnation);
  out->set_epoch(store_->epoch());
  for (v1::DeviceInfo& device : devices_()) *out->add_devices() = std::move(device);
  out->set_copy_mode(leases_ != nullptr ? "direct" : arenas_ != nullptr ? "isolated" : "inline");
  if (leases_ != nullptr) {
    out->set_max_leases(leases_->options().max_leases);
    out->set_max_pins(leases_->options().max_pins);
    out->set_max_pinned_bytes(leases_->options().max_pinned_bytes);
    out->set_max_granted_bytes(leases_->options().max_granted_bytes);
  }
  if (arenas_ != nullptr) {
    out->set_arena_socket(identity_.arena_socket);
    out->set_max_arenas(arenas_->options().max_arenas);
    out->set_max_arena_bytes(arenas_->options().max_bytes);
    out->set_max_arena_rows(arenas_->options().max_rows);
    out->set_max_arena_steps(arenas_->options().max_steps);
    out->set_max_flag_waits(arenas_->options().max_flag_waits);
    out->set_max_arena_flag_waits(arenas_->options().max_arena_flag_waits);
    out->set_max_flag_pinned_bytes(arenas_->options().max_pinned_bytes);
  }

  const StoreOptions& options = store_->options();
  out->set_default_durability(ToProto(options.default_durability));
  *out->mutable_flush_interval() = ToProto(options.write_behind.flush_interval);
  out->set_max_dirty_bytes(store_->max_dirty_bytes());
  *out->mutable_max_lag() = ToProto(options.write_behind.max_lag);
  out->set_throttles(options.write_behind.lag_policy == LagPolicy::kThrottle);
  if (options.default_ttl != absl::InfiniteDuration()) *out->mutable_default_ttl() = ToProto(options.default_ttl);
  if (options.max_ttl != absl::InfiniteDuration()) *out->mutable_max_ttl() = ToProto(options.max_ttl);
  out->set_default_max_history(options.default_max_history);
  out->set_max_message_bytes(identity_.max_message_bytes);
  out->set_max_bytes_in_flight(identity_.max_bytes_in_flight);
  out->set_max_state_bytes(identity_.max_state_bytes);
  out->set_max_name_bytes(kMaxNameBytes);
  out->set_max_attachment_bytes(options.max_attachment_bytes);
  out->set_max_extra_key_bytes(options.max_extra_key_bytes);
  out->set_max_history(options.max_history);
  out->set_max_children(options.max_children);
  out->set_max_tokens(options.max_tokens);
  out->set_max_page_size(options.max_page_size);
  out->set_max_layouts(options.max_layouts);
  out->set_max_names(options.max_names);
  out->set_max_batch(options.max_batch);
  out->set_max_stream_state_bytes(identity_.max_stream_state_bytes);
  out->set_max_uploads(identity_.max_uploads);
  out->set_max_upload_bytes(identity_.max_upload_bytes);
  *out->mutable_upload_timeout() = ToProto(identity_.upload_timeout);
  *out->mutable_stream_timeout() = ToProto(identity_.stream_timeout);

  const statepool::Store::Counts counts = store_->counts();
  out->set_sequences(counts.sequences);
  out->set_snapshots(counts.snapshots);
  out->set_prefixes(counts.prefixes);
  return absl::OkStatus();
}

absl::Status Handlers::RegisterLayout(const Op& op, const v1::RegisterLayoutRequest& in, v1::LayoutInfo* out) {
  absl::StatusOr<LayoutRef> layout = ToLayout(in);
  if (!layout.ok()) return layout.status();
  if (in.validate_only()) {
    FillLayoutInfo({*layout, {}}, out);
    return absl::OkStatus();
  }
  const absl::StatusOr<LayoutRegistry::Entry> entry = store_->RegisterLayout(op, *std::move(layout), in.alias());
  if (entry.ok()) FillLayoutInfo(*entry, out);
  return entry.status();
}

absl::Status Handlers::GetLayout(const Op& op, const v1::GetLayoutRequest& in, v1::LayoutInfo* out) {
  const absl::StatusOr<LayoutRegistry::Entry> entry = store_->layouts().Describe(op.tenant, in.layout());
  if (entry.ok()) FillLayoutInfo(*entry, out);
  return entry.status();
}

absl::Status Handlers::ListLayouts(const Op& op, const v1::ListLayoutsRequest&, v1::ListLayoutsResponse* out) {
  for (const LayoutRegistry::Entry& entry : store_->layouts().List(op.tenant)) {
    FillLayoutInfo(entry, out->add_layouts(), /*with_data=*/false);
  }
  return absl::OkStatus();
}

absl::Status Handlers::DeleteLayout(const Op& op, const v1::DeleteLayoutRequest& in, v1::DeleteLayoutResponse* out) {
  const absl::Status status = store_->DeleteLayout(op, in.layout());
  out->set_deleted(status.ok());
  if (in.allow_missing() && ReasonOf(status) == "LAYOUT_UNKNOWN") return absl::OkStatus();
  return status;
}

// ---- requests that may be items of a batch

namespace {

absl::StatusOr<CreateRequest> ToCore(const v1::CreateRequest& in) {
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Create", in);
  if (!request.ok()) return request.status();
  return CreateRequest{in.sequence(), in.layout(), *std::move(options), *std::move(request)};
}

absl::StatusOr<ForkRequest> ToCore(const v1::ForkRequest& in) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  source->layout = in.layout();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Fork", in);
  if (!request.ok()) return request.status();
  return ForkRequest{
      *std::move(source), {in.children().begin(), in.children().end()}, *std::move(options), *std::move(request)};
}

absl::StatusOr<RollbackRequest> ToCore(const v1::RollbackRequest& in) {
  absl::StatusOr<RequestId> request = ToRequestId("Rollback", in);
  if (!request.ok()) return request.status();
  RollbackRequest rollback{in.sequence(), in.position(), IfRevision(in), *std::move(request)};
  if (in.has_tokens()) rollback.tokens = in.tokens();
  return rollback;
}

absl::StatusOr<RemoveRangeRequest> ToCore(const v1::RemoveRangeRequest& in) {
  absl::StatusOr<RequestId> request = ToRequestId("RemoveRange", in);
  if (!request.ok()) return request.status();
  return RemoveRangeRequest{in.sequence(), TokenRange(in.begin(), in.end()), IfRevision(in), *std::move(request),
                            in.allow_missing()};
}

absl::StatusOr<RenumberRequest> ToCore(const v1::RenumberRequest& in) {
  Renumbering change;
  switch (in.change_case()) {
    case v1::RenumberRequest::kAdd: change.add = in.add(); break;
    case v1::RenumberRequest::kDivide: change.divide = in.divide(); break;
    case v1::RenumberRequest::CHANGE_NOT_SET:
      return InvalidArgument("MISSING_FIELD", "change", "say what to add to the position, or by what to divide it");
  }
  absl::StatusOr<RequestId> request = ToRequestId("Renumber", in);
  if (!request.ok()) return request.status();
  return RenumberRequest{in.sequence(), TokenRange(in.begin(), in.end()), change, IfRevision(in), *std::move(request)};
}

absl::StatusOr<SnapshotRequest> ToCore(const v1::SnapshotRequest& in) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Snapshot", in);
  if (!request.ok()) return request.status();
  return SnapshotRequest{*std::move(source), in.snapshot(), *std::move(options), *std::move(request)};
}

absl::StatusOr<RestoreRequest> ToCore(const v1::RestoreRequest& in) {
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Restore", in);
  if (!request.ok()) return request.status();
  return RestoreRequest{in.snapshot(), in.sequence(), IfRevision(in), *std::move(options), *std::move(request)};
}

absl::StatusOr<DeleteRequest> ToCore(const v1::DeleteRequest& in) {
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  return DeleteRequest{*std::move(key), IfRevision(in), in.allow_missing()};
}

void FillForkResponse(const ForkAnswer& answer, const v1::ForkRequest& in, v1::ForkResponse* out) {
  for (size_t i = 0; i < answer.revisions.size(); ++i) {
    v1::ForkedChild* child = out->add_children();
    child->set_sequence(in.children(static_cast<int>(i)));
    child->set_revision(answer.revisions[i]);
  }
  out->set_position(answer.version.position);
  out->set_version_id(answer.version.id);
  out->set_checksum(ChecksumToHex(answer.version.checksum));
  out->set_state_bytes(answer.state_bytes);
  out->set_durability(ToProto(answer.durability));
  out->set_replayed(answer.replayed);
}

void FillRemoveRangeResponse(const RemoveRangeAnswer& answer, v1::RemoveRangeResponse* out) {
  out->set_done(answer.done);
  out->set_deleted(answer.deleted);
  if (!answer.deleted && !answer.missing) FillNameInfo(answer.info, out->mutable_info());
}

// The next `bytes` of `data`, from piece `*index` and its offset `*used` on. REQUIRES: there are so many.
std::vector<absl::string_view> TakePieces(absl::Span<const absl::string_view> data, uint64_t bytes, size_t* index,
                                          size_t* used) {
  std::vector<absl::string_view> taken;
  while (bytes > 0) {
    const absl::string_view piece = data[*index].substr(*used, bytes);
    *used += piece.size();
    bytes -= piece.size();
    if (!piece.empty()) taken.push_back(piece);
    if (*used == data[*index].size()) {
      ++*index;
      *used = 0;
    }
  }
  return taken;
}

// The error of a whole batch that may name one of the items that core was given: the same of the request's.
absl::Status WithIndexes(const absl::Status& status, absl::Span<const int> indexes) {
  const ErrorDetail detail = GetErrorDetail(status);
  absl::string_view index = detail.field;
  size_t i = 0;
  if (!absl::ConsumePrefix(&index, "items[") || !absl::ConsumeSuffix(&index, "]") || !absl::SimpleAtoi(index, &i))
    return status;
  return InvalidArgument(detail.reason, absl::StrCat("items[", indexes[i], "]"), status.message());
}

}  // namespace

absl::StatusOr<Handlers::SetArguments> Handlers::ToSet(const v1::SetRequest& in) {
  SetArguments set;
  if (in.grant() != 0 && in.lease().empty())
    return InvalidArgument("MISSING_FIELD", "lease", "a grant is one of a direct lease");
  set.request.sequence = in.sequence();
  set.request.layout = in.layout();
  set.request.position = in.position();
  set.request.if_revision = IfRevision(in);
  set.request.select = ToSelect(in.select(), in.has_select());
  set.attachment = in.attachment();
  if (!in.checksum().empty()) {
    Checksum checksum;
    if (!ChecksumFromHex(in.checksum(), &checksum)) {
      return InvalidArgument("INVALID_OPTION", "checksum", "a checksum is 16 lower-case hex digits");
    }
    set.checksum = checksum;
  }
  if (in.exactness() != v1::EXACTNESS_UNSPECIFIED) {
    const absl::StatusOr<Exactness> exactness = ToExactness(in.exactness());
    if (!exactness.ok()) return exactness.status();
    set.request.exactness = *exactness;
  }
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  set.request.options = *std::move(options);
  absl::StatusOr<RequestId> request = ToRequestId("Set", in);
  if (!request.ok()) return request.status();
  set.request.request = *std::move(request);
  return set;
}

absl::Status Handlers::Create(const Op& op, const v1::CreateRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<CreateRequest> create = ToCore(in);
  if (!create.ok()) return create.status();
  return Answer(store_->Create(op, *create), out);
}

absl::StatusOr<Source> Handlers::GetSource(const v1::GetRequest& in) const {
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  if (!in.lease().empty() && in.has_select())
    return InvalidArgument("INVALID_OPTION", "lease", "a slot has a whole state: there is no part of it");
  Source source{*std::move(key), std::nullopt, in.layout(), in.version_id()};
  if (in.has_position()) source.position = in.position();
  return source;
}

absl::StatusOr<uint64_t> Handlers::AnswerBytes(const GetAnswer& answer, const v1::GetRequest& in) {
  const uint64_t attachment = in.omit_attachment() ? 0 : answer.info.version.attachment_bytes;
  if (!in.has_select()) return answer.info.layout->state_bytes() + attachment;
  const absl::StatusOr<std::vector<ByteRange>> ranges = RangesOf(*answer.info.layout, *ToSelect(in.select(), true));
  if (!ranges.ok()) return ranges.status();
  return BytesOf(*ranges) + attachment;
}

absl::StatusOr<std::vector<ByteRange>> Handlers::FillGetResponse(const GetAnswer& answer, const v1::GetRequest& in,
                                                                 v1::GetResponse* out) const {
  std::vector<ByteRange> ranges = {{0, answer.pin->size()}};
  Checksum checksum = answer.info.version.checksum;
  if (in.has_select()) {
    absl::StatusOr<std::vector<ByteRange>> selected = RangesOf(*answer.info.layout, *ToSelect(in.select(), true));
    if (!selected.ok()) return selected.status();
    if (*selected != ranges) {
      const absl::StatusOr<Checksum> of_part = ChecksumOfRanges(*answer.pin, *selected);
      if (!of_part.ok()) return of_part.status();
      checksum = *of_part;
    }
    ranges = *std::move(selected);
  }
  FillNameInfo(answer.info, out->mutable_info());
  if (!in.omit_attachment()) out->set_attachment(std::string(answer.pin->attachment()));
  out->set_data_checksum(ChecksumToHex(checksum));
  out->set_data_bytes(BytesOf(ranges));
  return ranges;
}

absl::Status Handlers::Set(const Op& op, const v1::SetRequest& in, absl::Span<const absl::string_view> data,
                           v1::NameInfo* out) {
  const absl::StatusOr<SetArguments> set = ToSet(in);
  if (!set.ok()) return set.status();
  StateBytes bytes;
  if (!in.lease().empty()) {
    if (!data.empty()) return InvalidArgument("INVALID_OPTION", "data", "the bytes are in a granted slot already");
    if (absl::Status status = CheckLease(op, in.lease()); !status.ok()) return status;
    if (set->checksum.has_value() && !set->request.request.id.empty()) {
      absl::StatusOr<std::optional<NameInfo>> replay = store_->ReplayOfSet(op, set->request, *set->checksum);
      if (!replay.ok() || replay->has_value()) leases_->Unpin(in.lease(), {in.grant()});
      if (!replay.ok()) return replay.status();
      if (replay->has_value()) return Answer(**std::move(replay), out);
    }
    absl::StatusOr<ImageRef> image = Filled(op, in.lease(), in.grant(), in.checksum(), !in.attachment().empty());
    if (!image.ok()) return image.status();
    bytes.image = *std::move(image);
    return Answer(store_->Set(op, set->request, bytes), out);
  }
  bytes.pieces = data;
  bytes.expected_checksum = set->checksum;
  bytes.attachment = set->attachment;
  return Answer(store_->Set(op, set->request, bytes), out);
}

absl::StatusOr<std::vector<Handlers::PinnedPart>> Handlers::BatchGet(
    const Op& op, const v1::BatchGetRequest& in, absl::FunctionRef<absl::Status(uint64_t bytes)> admit,
    v1::BatchGetResponse* out) {
  if (in.items_size() == 0) return InvalidArgument("MISSING_FIELD", "items", "a batch has at least one item");
  const uint32_t max_batch = store_->options().max_batch;
  if (static_cast<uint32_t>(in.items_size()) > max_batch) {
    return absl::Status(
        Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(in.items_size(), " items in one batch"))
            .Field("items")
            .Meta("limit", max_batch));
  }
  std::vector<absl::Status> refused;
  std::vector<Source> sources;
  std::vector<int> item_of;  // of each source
  for (int i = 0; i < in.items_size(); ++i) {
    absl::StatusOr<Source> source = GetSource(in.items(i));
    if (absl::Status status = WithoutLease(in.items(i)); !status.ok()) source = status;
    refused.push_back(source.status());
    if (!source.ok() && in.all_or_none()) break;  // it fails with this one, or with one before
    if (!source.ok()) continue;
    sources.push_back(*std::move(source));
    item_of.push_back(i);
  }
  const auto may_read = [&](absl::Span<absl::StatusOr<GetAnswer>> answers) -> absl::Status {
    uint64_t answer_bytes = kBesideStateBytes * static_cast<uint64_t>(in.items_size()), slot_bytes = 0;
    absl::flat_hash_set<ImageId> images;
    for (size_t n = 0; n < answers.size(); ++n) {
      if (answers[n].ok()) {
        const absl::StatusOr<uint64_t> bytes = AnswerBytes(*answers[n], in.items(item_of[n]));
        if (bytes.ok()) {
          answer_bytes += *bytes;
          if (images.insert(answers[n]->image).second) slot_bytes += answers[n]->info.layout->state_bytes();
          continue;
        }
        answers[n] = bytes.status();
      }
      if (in.all_or_none()) return InItem(answers[n].status(), item_of[n]);
    }
    const int last = static_cast<int>(refused.size()) - 1;
    if (in.all_or_none() && !refused.back().ok()) return InItem(refused.back(), last);
    if (const uint64_t limit = identity_.max_stream_state_bytes / 2; images.size() > 1 && slot_bytes > limit) {
      return Error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                   absl::StrCat("the states have ", slot_bytes,
                                " bytes together, more than half of the hot budget; ask for fewer at once"))
          .Meta("limit", limit);
    }
    return admit(answer_bytes);
  };
  absl::StatusOr<std::vector<absl::StatusOr<GetAnswer>>> read = store_->GetMany(op, sources, may_read);
  if (!read.ok()) return read.status();
  std::vector<absl::StatusOr<GetAnswer>>& answers = *read;

  std::vector<PinnedPart> parts;
  uint64_t offset = 0;
  size_t next_answer = 0;
  for (int i = 0; i < in.items_size(); ++i) {
    v1::BatchGetItem* item = out->add_items();
    absl::Status status = refused[static_cast<size_t>(i)];
    if (status.ok()) {
      absl::StatusOr<GetAnswer>& answer = answers[next_answer++];
      status = answer.status();
      if (status.ok()) {
        absl::StatusOr<std::vector<ByteRange>> ranges = FillGetResponse(*answer, in.items(i), item->mutable_response());
        status = ranges.status();
        if (ranges.ok()) {
          item->set_data_offset(offset);
          offset += item->response().data_bytes();
          parts.push_back({std::move(answer->pin), *std::move(ranges)});
        }
      }
    }
    if (status.ok()) continue;
    status = InItem(status, i);
    if (in.all_or_none()) return status;
    item->clear_response();
    *item->mutable_error() = ToRpcStatus(status);
  }
  return parts;
}

absl::Status Handlers::BatchWrite(const Op& op, const v1::BatchWriteRequest& in,
                                  absl::Span<const absl::string_view> data, v1::BatchWriteResponse* out) {
  uint64_t data_bytes = 0, claimed_bytes = 0;
  for (absl::string_view piece : data) data_bytes += piece.size();
  for (int i = 0; i < in.items_size(); ++i) {
    const uint64_t bytes = in.items(i).data_bytes();
    claimed_bytes = bytes > UINT64_MAX - claimed_bytes ? UINT64_MAX : claimed_bytes + bytes;
    if (bytes != 0 && !in.items(i).has_set()) {
      return InvalidArgument("INVALID_OPTION", absl::StrCat("items[", i, "].data_bytes"), "only a Set has bytes");
    }
  }
  if (claimed_bytes != data_bytes) {
    return Error(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH",
                 absl::StrCat("the items have ", claimed_bytes, " bytes in all, and data has ", data_bytes))
        .Field("data")
        .Meta("expected", claimed_bytes)
        .Meta("actual", data_bytes);
  }

  const int count = in.items_size();
  const uint32_t max_batch = store_->options().max_batch;
  if (static_cast<uint32_t>(count) > max_batch) {
    return Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(count, " items in one batch"))
        .Field("items")
        .Meta("limit", max_batch);
  }
  std::vector<absl::Status> refused(static_cast<size_t>(count));
  std::vector<BatchItem> items;                       // those that were not refused
  std::vector<int> indexes;                           // where they stand in the request
  std::deque<std::vector<absl::string_view>> pieces;  // what items' bytes point into
  std::deque<std::string> attachments;
  size_t piece = 0, used = 0;
  bool any_refused = false;
  for (int i = 0; i < count; ++i) {
    const v1::BatchWriteItem& item = in.items(i);
    pieces.push_back(TakePieces(data, item.data_bytes(), &piece, &used));
    absl::Status& status = refused[static_cast<size_t>(i)];
    const auto add = [&](auto core) {
      status = core.status();
      if (core.ok()) items.emplace_back(*std::move(core));
    };
    switch (item.write_case()) {
      case v1::BatchWriteItem::kCreate: add(ToCore(item.create())); break;
      case v1::BatchWriteItem::kFork: add(ToCore(item.fork())); break;
      case v1::BatchWriteItem::kRollback: add(ToCore(item.rollback())); break;
      case v1::BatchWriteItem::kSnapshot: add(ToCore(item.snapshot())); break;
      case v1::BatchWriteItem::kRestore: add(ToCore(item.restore())); break;
      case v1::BatchWriteItem::kDelete: add(ToCore(item.delete_())); break;
      case v1::BatchWriteItem::kRemoveRange: add(ToCore(item.remove_range())); break;
      case v1::BatchWriteItem::kRenumber: add(ToCore(item.renumber())); break;
      case v1::BatchWriteItem::kSet: {
        if (!item.set().data().empty()) {
          status = InvalidArgument("INVALID_OPTION", "data", "the bytes go into the batch's own data");
          break;
        }
        absl::StatusOr<SetArguments> set = ToSet(item.set());
        status = set.status();
        status.Update(WithoutLease(item.set()));
        if (!status.ok()) break;
        attachments.push_back(std::move(set->attachment));
        StateBytes bytes;
        bytes.pieces = pieces.back();
        bytes.expected_checksum = set->checksum;
        bytes.attachment = attachments.back();
        items.emplace_back(SetItem{std::move(set->request), bytes});
        break;
      }
      case v1::BatchWriteItem::WRITE_NOT_SET:
        status = InvalidArgument("MISSING_FIELD", "write", "an item says what is written");
        break;
    }
    any_refused = any_refused || !status.ok();
    if (status.ok()) indexes.push_back(i);
  }

  std::vector<BatchResult> results;
  if (any_refused && in.all_or_none()) {
    BatchResult aborted;
    aborted.status = Error(absl::StatusCode::kAborted, "BATCH_ABORTED",
                           "another item of the batch was refused, so nothing was done");
    for (size_t i = 0; i < items.size(); ++i) results.push_back(aborted);
  } else if (!items.empty() || count == 0) {
    absl::StatusOr<std::vector<BatchResult>> done = store_->Batch(op, items, in.all_or_none());
    if (!done.ok()) return WithIndexes(done.status(), indexes);
    results = *std::move(done);
  }

  bool failed = false;
  size_t next_result = 0;
  for (int i = 0; i < count; ++i) {
    v1::BatchWriteResult* to = out->add_results();
    absl::Status status = refused[static_cast<size_t>(i)];
    const BatchResult* result = status.ok() ? &results[next_result++] : nullptr;
    if (result != nullptr) status = result->status;
    if (!status.ok()) {
      failed = true;
      // Where the whole batch is at fault, no field of this item is.
      const bool own = ReasonOf(status) != "BATCH_ABORTED";
      *to->mutable_error() = ToRpcStatus(own ? InItem(status, i) : status);
      continue;
    }
    const v1::BatchWriteItem& item = in.items(i);
    if (const auto* info = std::get_if<NameInfo>(&result->answer)) FillNameInfo(*info, to->mutable_info());
    if (const auto* fork = std::get_if<ForkAnswer>(&result->answer))
      FillForkResponse(*fork, item.fork(), to->mutable_fork());
    if (const auto* deleted = std::get_if<bool>(&result->answer)) to->mutable_delete_()->set_deleted(*deleted);
    if (const auto* removed = std::get_if<RemoveRangeAnswer>(&result->answer))
      FillRemoveRangeResponse(*removed, to->mutable_remove_range());
  }
  out->set_done(!failed || !in.all_or_none());
  return absl::OkStatus();
}

absl::Status Handlers::Fork(const Op& op, const v1::ForkRequest& in, v1::ForkResponse* out) {
  const absl::StatusOr<ForkRequest> fork = ToCore(in);
  if (!fork.ok()) return fork.status();
  const absl::StatusOr<ForkAnswer> answer = store_->Fork(op, *fork);
  if (answer.ok()) FillForkResponse(*answer, in, out);
  return answer.status();
}

absl::Status Handlers::Describe(const Op& op, const v1::DescribeRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  return Answer(store_->Describe(op, *key), out);
}

absl::Status Handlers::Touch(const Op& op, const v1::TouchRequest& in, v1::TouchResponse* out) {
  if (in.names_size() == 0) return InvalidArgument("MISSING_FIELD", "names", "name at least one");
  const uint32_t max_batch = store_->options().max_batch;
  if (static_cast<uint32_t>(in.names_size()) > max_batch) {
    return Error(absl::StatusCode::kInvalidArgument, "TOO_MANY", absl::StrCat(in.names_size(), " names in one Touch"))
        .Field("names")
        .Meta("limit", max_batch);
  }
  for (int i = 0; i < in.names_size(); ++i) {
    v1::TouchedName* to = out->add_names();
    const std::string field = absl::StrCat("names[", i, "]");
    const absl::StatusOr<NameKey> key = ToNameKey(in.names(i), field);
    absl::StatusOr<absl::Time> touched = key.ok() ? store_->Touch(op, *key, field) : key.status();
    if (!touched.ok()) *to->mutable_error() = ToRpcStatus(touched.status());
    else if (*touched != absl::InfiniteFuture()) *to->mutable_expire_time() = ToProto(*touched);
  }
  return absl::OkStatus();
}

absl::Status Handlers::SetTtl(const Op& op, const v1::SetTtlRequest& in, v1::NameInfo* out) {
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  v1::NameOptions given;
  switch (in.expiration_case()) {
    case v1::SetTtlRequest::kTtl: *given.mutable_ttl() = in.ttl(); break;
    case v1::SetTtlRequest::kExpireTime: *given.mutable_expire_time() = in.expire_time(); break;
    case v1::SetTtlRequest::kNeverExpire:
      if (in.never_expire()) given.set_never_expire(true);
      break;
    case v1::SetTtlRequest::EXPIRATION_NOT_SET: break;
  }
  if (given.expiration_case() == v1::NameOptions::EXPIRATION_NOT_SET)
    return InvalidArgument("MISSING_FIELD", "expiration", "give a ttl, an expire_time, or never_expire");
  absl::StatusOr<NameOptions> options = ToNameOptions(given, "");
  absl::StatusOr<NameInfo> info;
  if (options.ok()) info = store_->SetTtl(op, {*std::move(key), *std::move(options), IfRevision(in)});
  absl::Status status = options.ok() ? info.status() : options.status();
  // What is a field of `options` elsewhere is one of this request.
  const ErrorDetail detail = GetErrorDetail(status);
  if (absl::StartsWith(detail.field, "options.") || absl::StartsWith(detail.field, "."))
    return InvalidArgument(detail.reason, detail.field.substr(detail.field.find('.') + 1), status.message());
  if (status.ok()) FillNameInfo(*info, out);
  return status;
}

absl::Status Handlers::DeleteMany(const Op& op, const v1::DeleteManyRequest& in, v1::DeleteManyResponse* out) {
  const absl::StatusOr<NameKind> kind = ToNameKind(in.kind());
  if (!kind.ok()) return kind.status();
  DeleteManyRequest request{*kind,        in.name_prefix(), in.all(),
                            in.preview(), std::nullopt,     {in.keep().begin(), in.keep().end()}};
  if (in.has_if_count()) request.if_count = in.if_count();
  absl::StatusOr<DeleteManyAnswer> answer = store_->DeleteMany(op, request);
  if (!answer.ok()) return answer.status();
  out->set_matched(answer->matched);
  out->set_deleted(answer->deleted);
  out->set_state_bytes(answer->state_bytes);
  for (std::string& name : answer->names) out->add_names(std::move(name));
  return absl::OkStatus();
}

absl::Status Handlers::List(const Op& op, const v1::ListRequest& in, v1::ListResponse* out) {
  const absl::StatusOr<NameKind> kind = ToNameKind(in.kind());
  if (!kind.ok()) return kind.status();
  const uint32_t page_size = in.page_size() == 0 ? kDefaultPageSize : in.page_size();
  absl::StatusOr<ListAnswer> answer = store_->List(op, {*kind, in.name_prefix(), page_size, in.page_token()});
  if (!answer.ok()) return answer.status();
  for (const NameInfo& info : answer->names) FillNameInfo(info, out->add_names());
  out->set_next_page_token(std::move(answer->next_page_token));
  return absl::OkStatus();
}

absl::Status Handlers::Delete(const Op& op, const v1::DeleteRequest& in, v1::DeleteResponse* out) {
  const absl::StatusOr<DeleteRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  const absl::StatusOr<bool> deleted = store_->Delete(op, *request);
  if (deleted.ok()) out->set_deleted(*deleted);
  return deleted.status();
}

absl::Status Handlers::Rollback(const Op& op, const v1::RollbackRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<RollbackRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  return Answer(store_->Rollback(op, *request), out);
}

absl::Status Handlers::RemoveRange(const Op& op, const v1::RemoveRangeRequest& in, v1::RemoveRangeResponse* out) {
  const absl::StatusOr<RemoveRangeRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  const absl::StatusOr<RemoveRangeAnswer> answer = store_->RemoveRange(op, *request);
  if (answer.ok()) FillRemoveRangeResponse(*answer, out);
  return answer.status();
}

absl::Status Handlers::Renumber(const Op& op, const v1::RenumberRequest& in, v1::NameInfo* out) {
  absl::StatusOr<RenumberRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  request->with_history = true;
  return Answer(store_->Renumber(op, *request), out);
}

absl::Status Handlers::Snapshot(const Op& op, const v1::SnapshotRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<SnapshotRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  return Answer(store_->Snapshot(op, *request), out);
}

absl::Status Handlers::Restore(const Op& op, const v1::RestoreRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<RestoreRequest> request = ToCore(in);
  if (!request.ok()) return request.status();
  return Answer(store_->Restore(op, *request), out);
}

absl::Status Handlers::PublishPrefix(const Op& op, const v1::PublishPrefixRequest& in, v1::PublishPrefixResponse* out) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  const absl::StatusOr<PublishAnswer> answer = store_->PublishPrefix(op, {in.layout(),
                                                                          {in.tokens().begin(), in.tokens().end()},
                                                                          in.extra_key(),
                                                                          *std::move(source),
                                                                          *std::move(options),
                                                                          in.salt()});
  if (!answer.ok()) return answer.status();
  out->set_prefix(answer->info.key.name);
  FillNameInfo(answer->info, out->mutable_info());
  out->set_already_published(answer->already_published);
  return absl::OkStatus();
}

absl::Status Handlers::MatchPrefix(const Op& op, const v1::MatchPrefixRequest& in, v1::MatchPrefixResponse* out) {
  MatchRequest match{in.layout(), {in.tokens().begin(), in.tokens().end()}, in.extra_key(), std::nullopt, 1, in.salt()};
  if (in.has_max_position()) match.max_position = in.max_position();
  if (in.max_results() != 0) match.max_results = in.max_results();
  absl::StatusOr<MatchAnswer> answer = store_->MatchPrefix(op, match);
  if (!answer.ok()) return answer.status();
  for (const NameInfo& info : answer->matches) {
    v1::PrefixMatch* to = out->add_matches();
    to->set_prefix(info.key.name);
    to->set_position(info.version.position);
    FillNameInfo(info, to->mutable_info());
  }
  out->set_miss_reason(std::move(answer->miss_reason));
  out->set_nearest_published_position(answer->nearest_published_position);
  return absl::OkStatus();
}

absl::Status Handlers::Flush(const Op& op, const v1::FlushRequest& in, v1::FlushResponse* out) {
  std::vector<NameKey> keys;
  for (int i = 0; i < in.names_size(); ++i) {
    absl::StatusOr<NameKey> key = ToNameKey(in.names(i), "names");
    if (!key.ok()) return key.status();
    keys.push_back(*std::move(key));
  }
  const absl::StatusOr<FlushAnswer> answer = store_->Flush(op, keys);
  if (!answer.ok()) return answer.status();
  out->set_names(answer->names);
  out->set_written(answer->written);
  return absl::OkStatus();
}

}  // namespace statepool
