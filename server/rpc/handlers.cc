// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/handlers.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "kernels/xxh3.h"
#include "server/core/error.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"

namespace statepool {
namespace {

constexpr uint32_t kDefaultPageSize = 100;

// Hash of method and request: equal for equal requests, whatever their request_id. Maps, which would be in random
// order, don't occur. A Set's data is not in it (RequestId).
template <typename Request>
uint64_t BodyHash(absl::string_view method, const Request& request) {
  Request body = request;
  body.clear_request_id();
  std::string bytes = absl::StrCat(method, "\n");
  google::protobuf::io::StringOutputStream stream(&bytes);  // appends
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  body.SerializeToCodedStream(&coded);
  coded.Trim();
  return Xxh3(bytes.data(), bytes.size());
}

template <typename Request>
absl::StatusOr<RequestId> ToRequestId(absl::string_view method, const Request& request) {
  if (request.request_id().empty()) return RequestId{};
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return InvalidArgument("INVALID_OPTION", "request_id",
                           absl::StrCat("request_id has more than ", kMaxRequestIdBytes, " bytes"));
  }
  return RequestId{request.request_id(), BodyHash(method, request)};
}

template <typename Request>
absl::StatusOr<Source> ToSource(const Request& in) {
  absl::StatusOr<NameKey> key = ToNameKey(in.source(), "source");
  if (!key.ok()) return key.status();
  Source source{*std::move(key), std::nullopt, ""};
  if (in.has_position()) source.position = in.position();
  return source;
}

template <typename Request>
std::optional<uint64_t> IfRevision(const Request& in) {
  if (in.has_if_revision()) return in.if_revision();
  return std::nullopt;
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
  out->set_copy_mode("inline");

  const StoreOptions& options = store_->options();
  out->set_default_durability(ToProto(options.default_durability));
  *out->mutable_flush_interval() = ToProto(options.flush_interval);
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

  const Store::Counts counts = store_->counts();
  out->set_sequences(counts.sequences);
  out->set_snapshots(counts.snapshots);
  out->set_prefixes(counts.prefixes);
  return absl::OkStatus();
}

absl::Status Handlers::RegisterLayout(const Op& op, const v1::RegisterLayoutRequest& in, v1::LayoutInfo* out) {
  absl::StatusOr<LayoutRef> layout = ToLayout(in);
  if (!layout.ok()) return layout.status();
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
    v1::LayoutInfo* info = out->add_layouts();
    FillLayoutInfo(entry, info);
    for (v1::TensorSpec& tensor : *info->mutable_layout()->mutable_tensors()) {
      if (tensor.initial().has_data()) tensor.mutable_initial()->clear_data();
    }
  }
  return absl::OkStatus();
}

absl::Status Handlers::Create(const Op& op, const v1::CreateRequest& in, v1::NameInfo* out) {
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Create", in);
  if (!request.ok()) return request.status();
  return Answer(store_->Create(op, {in.sequence(), in.layout(), *std::move(options), *std::move(request)}), out);
}

absl::StatusOr<Source> Handlers::GetSource(const v1::GetRequest& in) const {
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  Source source{*std::move(key), std::nullopt, in.layout()};
  if (in.has_position()) source.position = in.position();
  return source;
}

void Handlers::FillGetResponse(const GetAnswer& answer, bool omit_attachment, v1::GetResponse* out) const {
  FillNameInfo(answer.info, out->mutable_info());
  if (!omit_attachment) out->set_attachment(std::string(answer.pin->attachment()));
}

absl::Status Handlers::Set(const Op& op, const v1::SetRequest& in, absl::Span<const absl::string_view> data,
                           v1::NameInfo* out) {
  SetRequest set;
  set.sequence = in.sequence();
  set.layout = in.layout();
  set.position = in.position();
  set.if_revision = IfRevision(in);
  StateBytes bytes;
  bytes.pieces = data;
  bytes.attachment = in.attachment();
  if (!in.checksum().empty()) {
    Checksum checksum;
    if (!ChecksumFromHex(in.checksum(), &checksum)) {
      return InvalidArgument("INVALID_OPTION", "checksum", "a checksum is 16 lower-case hex digits");
    }
    bytes.expected_checksum = checksum;
  }
  const absl::StatusOr<Exactness> exactness = ToExactness(in.exactness());
  if (!exactness.ok()) return exactness.status();
  set.exactness = *exactness;
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  set.options = *std::move(options);
  absl::StatusOr<RequestId> request = ToRequestId("Set", in);
  if (!request.ok()) return request.status();
  set.request = *std::move(request);
  return Answer(store_->Set(op, set, bytes), out);
}

absl::Status Handlers::Fork(const Op& op, const v1::ForkRequest& in, v1::ForkResponse* out) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  source->layout = in.layout();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Fork", in);
  if (!request.ok()) return request.status();
  const absl::StatusOr<ForkAnswer> answer = store_->Fork(
      op, {*std::move(source), {in.children().begin(), in.children().end()}, *std::move(options), *std::move(request)});
  if (!answer.ok()) return answer.status();

  for (size_t i = 0; i < answer->revisions.size(); ++i) {
    v1::ForkedChild* child = out->add_children();
    child->set_sequence(in.children(static_cast<int>(i)));
    child->set_revision(answer->revisions[i]);
  }
  out->set_position(answer->version.position);
  out->set_version_id(answer->version.id);
  out->set_checksum(ChecksumToHex(answer->version.checksum));
  out->set_state_bytes(answer->state_bytes);
  out->set_durability(ToProto(answer->durability));
  out->set_replayed(answer->replayed);
  return absl::OkStatus();
}

absl::Status Handlers::Describe(const Op& op, const v1::DescribeRequest& in, v1::NameInfo* out) {
  const absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  return Answer(store_->Describe(op, *key), out);
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
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  if (!key.ok()) return key.status();
  const absl::StatusOr<bool> deleted = store_->Delete(op, {*std::move(key), IfRevision(in), in.allow_missing()});
  if (deleted.ok()) out->set_deleted(*deleted);
  return deleted.status();
}

absl::Status Handlers::Rollback(const Op& op, const v1::RollbackRequest& in, v1::NameInfo* out) {
  absl::StatusOr<RequestId> request = ToRequestId("Rollback", in);
  if (!request.ok()) return request.status();
  return Answer(store_->Rollback(op, {in.sequence(), in.position(), IfRevision(in), *std::move(request)}), out);
}

absl::Status Handlers::Snapshot(const Op& op, const v1::SnapshotRequest& in, v1::NameInfo* out) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Snapshot", in);
  if (!request.ok()) return request.status();
  return Answer(store_->Snapshot(op, {*std::move(source), in.snapshot(), *std::move(options), *std::move(request)}),
                out);
}

absl::Status Handlers::Restore(const Op& op, const v1::RestoreRequest& in, v1::NameInfo* out) {
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<RequestId> request = ToRequestId("Restore", in);
  if (!request.ok()) return request.status();
  return Answer(
      store_->Restore(op, {in.snapshot(), in.sequence(), IfRevision(in), *std::move(options), *std::move(request)}),
      out);
}

absl::Status Handlers::PublishPrefix(const Op& op, const v1::PublishPrefixRequest& in, v1::PublishPrefixResponse* out) {
  absl::StatusOr<Source> source = ToSource(in);
  if (!source.ok()) return source.status();
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  if (!options.ok()) return options.status();
  const absl::StatusOr<PublishAnswer> answer = store_->PublishPrefix(
      op,
      {in.layout(), {in.tokens().begin(), in.tokens().end()}, in.extra_key(), *std::move(source), *std::move(options)});
  if (!answer.ok()) return answer.status();
  out->set_prefix(answer->info.key.name);
  FillNameInfo(answer->info, out->mutable_info());
  out->set_already_published(answer->already_published);
  return absl::OkStatus();
}

absl::Status Handlers::MatchPrefix(const Op& op, const v1::MatchPrefixRequest& in, v1::MatchPrefixResponse* out) {
  MatchRequest match{in.layout(), {in.tokens().begin(), in.tokens().end()}, in.extra_key(), std::nullopt, 1};
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
