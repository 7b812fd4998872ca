// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/statepool.h"

#include <google/protobuf/unknown_field_set.h>
#include <grpc/grpc.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/calls.h"
#include "client/cpp/direct.h"
#include "client/cpp/lane.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr char kHealthMethod[] = "/grpc.health.v1.Health/Check";
constexpr int kFrameBytesMax = 1 << 20;  // gRPC's default of 16 KiB cuts a state into hundreds of frames
constexpr uint32_t kChunkBytesMax = 4 << 20;
constexpr int kStreamWindowBytes = 4 << 20;
constexpr int kHeadBytesMax = 4 << 20;  // what the first message of a stream has beside its chunk, generously

absl::Status CheckAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:") && address.size() > 5) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon != address.npos && colon > 0 && absl::SimpleAtoi(address.substr(colon + 1), &port) && port > 0 &&
      port < 65536) {
    return absl::OkStatus();
  }
  return InvalidArgument("INVALID_ADDRESS", "address",
                         absl::StrCat("'", address, "' is neither HOST:PORT nor unix:PATH"));
}

}  // namespace

v1::NameRef SequenceRef(absl::string_view name) {
  v1::NameRef ref;
  ref.set_sequence(std::string(name));
  return ref;
}

v1::NameRef SnapshotRef(absl::string_view name) {
  v1::NameRef ref;
  ref.set_snapshot(std::string(name));
  return ref;
}

v1::NameRef PrefixRef(absl::string_view prefix) {
  v1::NameRef ref;
  ref.set_prefix(std::string(prefix));
  return ref;
}

Pool::Pool(absl::FunctionRef<std::shared_ptr<grpc::Channel>(bool)> connect, const Options& options)
    : channel_(connect(false)),
      reads_(connect(false)),
      writes_(connect(false)),
      streams_(connect(true)),
      stub_(v1::StatePool::NewStub(channel_)),
      options_(options) {}

absl::StatusOr<Pool> Pool::Connect(absl::string_view address, const Options& options) {
  if (absl::Status status = CheckAddress(address); !status.ok()) return status;
  if (options.max_attempts < 1) return InvalidArgument("INVALID_OPTION", "max_attempts", "max_attempts is at least 1");
  if (options.max_message_bytes < 1)
    return InvalidArgument("INVALID_OPTION", "max_message_bytes", "a message has bytes");
  if (options.chunk_bytes == 0 || options.chunk_bytes % kLeafBytes != 0 || options.chunk_bytes > kChunkBytesMax) {
    return InvalidArgument("INVALID_OPTION", "chunk_bytes", "a multiple of 65,536, at most 4 MiB");
  }
  // gRPC tears itself down with its last user, and that can block for 10 s after a large write. So never the last.
  // And Debian's Abseil looks for lock cycles at every lock that gRPC takes, under one lock for the whole process.
  static const bool kept = (grpc_init(), absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore), true);
  (void)kept;
  grpc::ChannelArguments arguments;
  const int message_bytes = std::max(options.max_message_bytes, static_cast<int>(options.chunk_bytes) + kHeadBytesMax);
  arguments.SetMaxReceiveMessageSize(message_bytes);
  arguments.SetMaxSendMessageSize(message_bytes);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytesMax);  // of what the daemon sends
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);             // ours know what may be repeated, and hold no messages
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else the channels would share a connection
  const auto connect = [&](bool for_streams) {
    grpc::ChannelArguments own = arguments;
    if (for_streams) {  // gRPC would let windows grow, and hold tens of MiB that a slow sink has not taken
      own.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
      own.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
    }
    return grpc::CreateCustomChannel(std::string(address), grpc::InsecureChannelCredentials(), own);
  };
  Pool pool(connect, options);
  if (options.direct) pool.direct_ = std::make_shared<Direct>(pool.Bare(/*max_attempts=*/1));
  if (options.arenas) pool.lane_ = std::make_shared<Lane>(pool.Bare(/*max_attempts=*/1));
  return pool;
}

absl::Time Pool::DeadlineOf(const CallOptions& call) const {
  return absl::Now() + call.timeout.value_or(options_.timeout);
}

absl::Status Pool::Attempt(const CallOptions& call, bool may_repeat,
                           absl::FunctionRef<grpc::Status(absl::Time deadline)> attempt) const {
  const absl::Time deadline = DeadlineOf(call);
  for (int n = 1;; ++n) {
    const absl::Status status = FromGrpcStatus(attempt(deadline));
    if (status.ok() || !may_repeat || n >= options_.max_attempts) return status;
    const std::optional<absl::Duration> delay = RetryDelay(status, n);
    if (!delay || absl::Now() + *delay >= deadline) return status;
    absl::SleepFor(*delay);
  }
}

template <typename Request, typename Response>
absl::StatusOr<Response> Pool::Unary(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                 Response*),
                                     const Request& request, const CallOptions& call, bool may_repeat) const {
  Response response;
  const absl::Status status = Attempt(call, may_repeat, [&](absl::Time deadline) {
    grpc::ClientContext context;
    SetDeadline(deadline, &context);
    response.Clear();
    return (stub_.get()->*method)(&context, request, &response);
  });
  if (!status.ok()) return status;
  return response;
}

template <typename Request, typename Response>
absl::StatusOr<Response> Pool::Write(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                 Response*),
                                     const Request& request, const CallOptions& call) const {
  if (!request.request_id().empty()) return Unary(method, request, call, true);
  Request with_id = request;
  with_id.set_request_id(NewRequestId());
  return Unary(method, with_id, call, true);
}

absl::StatusOr<std::string> Pool::CheckHealth(absl::string_view service, const CallOptions& call) const {
  // HealthCheckRequest{string service = 1}, HealthCheckResponse{ServingStatus status = 1}: too small for a generated
  // copy.
  google::protobuf::UnknownFieldSet fields;
  std::string bytes;
  if (!service.empty()) fields.AddLengthDelimited(1, std::string(service));
  fields.SerializeToString(&bytes);
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::ByteBuffer answer;
  const absl::Status status = Attempt(call, true, [&](absl::Time deadline) {
    return RawCall(channel_.get(), kHealthMethod, deadline, message, &answer);
  });
  if (!status.ok()) return status;
  absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, /*field=*/0, options_.max_message_bytes);
  if (!split.ok() || !fields.ParseFromString(split->rest)) return MalformedResponse("not a HealthCheckResponse");
  uint64_t serving = 0;
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::UnknownField& field = fields.field(i);
    if (field.number() == 1 && field.type() == field.TYPE_VARINT) serving = field.varint();
  }
  static constexpr const char* kNames[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
  return std::string(kNames[serving < std::size(kNames) ? serving : 0]);
}

// ---- everything small

using Stub = v1::StatePool::Stub;

absl::StatusOr<v1::Capabilities> Pool::GetCapabilities(const CallOptions& call) const {
  return Unary(&Stub::GetCapabilities, v1::GetCapabilitiesRequest(), call, true);
}

absl::StatusOr<v1::LayoutInfo> Pool::RegisterLayout(const v1::RegisterLayoutRequest& request,
                                                    const CallOptions& call) const {
  absl::StatusOr<v1::LayoutInfo> info = Unary(&Stub::RegisterLayout, request, call, true);
  if (info.ok() && lane_ != nullptr) lane_->LearnLayout(*info);
  return info;
}

absl::StatusOr<v1::LayoutInfo> Pool::RegisterLayout(const v1::Layout& layout, absl::string_view alias) const {
  v1::RegisterLayoutRequest request;
  request.set_alias(std::string(alias));
  *request.mutable_layout() = layout;
  return RegisterLayout(request);
}

absl::StatusOr<v1::LayoutInfo> Pool::RegisterLayout(const v1::LayoutPreset& preset, absl::string_view alias) const {
  v1::RegisterLayoutRequest request;
  request.set_alias(std::string(alias));
  *request.mutable_preset() = preset;
  return RegisterLayout(request);
}

absl::StatusOr<v1::LayoutInfo> Pool::GetLayout(const v1::GetLayoutRequest& request, const CallOptions& call) const {
  absl::StatusOr<v1::LayoutInfo> info = Unary(&Stub::GetLayout, request, call, true);
  if (info.ok() && lane_ != nullptr) lane_->LearnLayout(*info);
  return info;
}

absl::StatusOr<v1::LayoutInfo> Pool::GetLayout(absl::string_view layout) const {
  v1::GetLayoutRequest request;
  request.set_layout(std::string(layout));
  return GetLayout(request);
}

absl::StatusOr<v1::ListLayoutsResponse> Pool::ListLayouts(const CallOptions& call) const {
  return Unary(&Stub::ListLayouts, v1::ListLayoutsRequest(), call, true);
}

absl::StatusOr<v1::DeleteLayoutResponse> Pool::DeleteLayout(const v1::DeleteLayoutRequest& request,
                                                            const CallOptions& call) const {
  return Unary(&Stub::DeleteLayout, request, call, request.allow_missing());
}

absl::StatusOr<v1::DeleteLayoutResponse> Pool::DeleteLayout(absl::string_view layout) const {
  v1::DeleteLayoutRequest request;
  request.set_layout(std::string(layout));
  return DeleteLayout(request);
}

absl::StatusOr<v1::NameInfo> Pool::Create(const v1::CreateRequest& request, const CallOptions& call) const {
  return Write(&Stub::Create, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Create(absl::string_view sequence, absl::string_view layout) const {
  v1::CreateRequest request;
  request.set_sequence(std::string(sequence));
  request.set_layout(std::string(layout));
  return Create(request);
}

absl::StatusOr<v1::ForkResponse> Pool::Fork(const v1::ForkRequest& request, const CallOptions& call) const {
  return Write(&Stub::Fork, request, call);
}

absl::StatusOr<v1::ForkResponse> Pool::Fork(const v1::NameRef& source, absl::Span<const std::string> children) const {
  v1::ForkRequest request;
  *request.mutable_source() = source;
  request.mutable_children()->Add(children.begin(), children.end());
  return Fork(request);
}

absl::StatusOr<v1::NameInfo> Pool::Describe(const v1::DescribeRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Describe, request, call, true);
}

absl::StatusOr<v1::NameInfo> Pool::Describe(const v1::NameRef& name) const {
  v1::DescribeRequest request;
  *request.mutable_name() = name;
  return Describe(request);
}

absl::StatusOr<v1::TouchResponse> Pool::Touch(const v1::TouchRequest& request, const CallOptions& call) const {
  absl::StatusOr<v1::TouchResponse> answer = Unary(&Stub::Touch, request, call, true);
  if (answer.ok() && answer->names_size() != request.names_size()) {
    return MalformedResponse("a TouchResponse has one entry for each name");
  }
  return answer;
}

absl::StatusOr<absl::Time> Pool::Touch(const v1::NameRef& name) const {
  v1::TouchRequest request;
  *request.add_names() = name;
  const absl::StatusOr<v1::TouchResponse> answer = Touch(request);
  if (!answer.ok()) return answer.status();
  const v1::TouchedName& touched = answer->names(0);
  if (absl::Status status = ToStatus(touched); !status.ok()) return status;
  if (!touched.has_expire_time()) return absl::InfiniteFuture();
  return absl::FromUnixSeconds(touched.expire_time().seconds()) + absl::Nanoseconds(touched.expire_time().nanos());
}

absl::StatusOr<v1::NameInfo> Pool::SetTtl(const v1::SetTtlRequest& request, const CallOptions& call) const {
  return Unary(&Stub::SetTtl, request, call, true);
}

absl::StatusOr<v1::NameInfo> Pool::SetTtl(const v1::NameRef& name, absl::Duration ttl) const {
  v1::SetTtlRequest request;
  *request.mutable_name() = name;
  if (ttl == absl::InfiniteDuration()) {
    request.set_never_expire(true);
  } else {
    const timespec time = absl::ToTimespec(ttl);
    request.mutable_ttl()->set_seconds(time.tv_sec);
    request.mutable_ttl()->set_nanos(static_cast<int32_t>(time.tv_nsec));
  }
  return SetTtl(request);
}

absl::StatusOr<v1::ListResponse> Pool::List(const v1::ListRequest& request, const CallOptions& call) const {
  return Unary(&Stub::List, request, call, true);
}

absl::Status Pool::ListAll(v1::ListRequest request, absl::FunctionRef<bool(const v1::NameInfo&)> visit,
                           const CallOptions& call) const {
  do {
    const absl::StatusOr<v1::ListResponse> page = List(request, call);
    if (!page.ok()) return page.status();
    for (const v1::NameInfo& info : page->names()) {
      if (!visit(info)) return absl::OkStatus();
    }
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::StatusOr<v1::DeleteResponse> Pool::Delete(const v1::DeleteRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Delete, request, call, request.allow_missing());
}

absl::StatusOr<v1::DeleteResponse> Pool::Delete(const v1::NameRef& name) const {
  v1::DeleteRequest request;
  *request.mutable_name() = name;
  return Delete(request);
}

absl::StatusOr<v1::DeleteManyResponse> Pool::DeleteMany(const v1::DeleteManyRequest& request,
                                                        const CallOptions& call) const {
  return Unary(&Stub::DeleteMany, request, call, request.preview() || !request.has_if_count());
}

absl::StatusOr<v1::NameInfo> Pool::Rollback(const v1::RollbackRequest& request, const CallOptions& call) const {
  return Write(&Stub::Rollback, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Rollback(absl::string_view sequence, int64_t position) const {
  v1::RollbackRequest request;
  request.set_sequence(std::string(sequence));
  request.set_position(position);
  return Rollback(request);
}

absl::StatusOr<v1::NameInfo> Pool::RollbackTokens(absl::string_view sequence, int64_t tokens) const {
  v1::RollbackRequest request;
  request.set_sequence(std::string(sequence));
  request.set_tokens(tokens);
  return Rollback(request);
}

absl::StatusOr<v1::RemoveRangeResponse> Pool::RemoveRange(const v1::RemoveRangeRequest& request,
                                                          const CallOptions& call) const {
  v1::RemoveRangeRequest with_id = request;
  if (request.request_id().empty()) with_id.set_request_id(NewRequestId());
  return Unary(&Stub::RemoveRange, with_id, call, MayRepeat(request));
}

absl::StatusOr<v1::RemoveRangeResponse> Pool::RemoveRange(absl::string_view sequence, int64_t begin,
                                                          int64_t end) const {
  v1::RemoveRangeRequest request;
  request.set_sequence(std::string(sequence));
  request.set_begin(begin);
  request.set_end(end);
  return RemoveRange(request);
}

absl::StatusOr<v1::NameInfo> Pool::Renumber(const v1::RenumberRequest& request, const CallOptions& call) const {
  return Write(&Stub::Renumber, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Snapshot(const v1::SnapshotRequest& request, const CallOptions& call) const {
  return Write(&Stub::Snapshot, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Snapshot(const v1::NameRef& source, absl::string_view snapshot) const {
  v1::SnapshotRequest request;
  *request.mutable_source() = source;
  request.set_snapshot(std::string(snapshot));
  return Snapshot(request);
}

absl::StatusOr<v1::NameInfo> Pool::Restore(const v1::RestoreRequest& request, const CallOptions& call) const {
  return Write(&Stub::Restore, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Restore(absl::string_view snapshot, absl::string_view sequence) const {
  v1::RestoreRequest request;
  request.set_snapshot(std::string(snapshot));
  request.set_sequence(std::string(sequence));
  return Restore(request);
}

absl::StatusOr<v1::PublishPrefixResponse> Pool::PublishPrefix(const v1::PublishPrefixRequest& request,
                                                              const CallOptions& call) const {
  return Unary(&Stub::PublishPrefix, request, call, true);
}

absl::StatusOr<v1::PublishPrefixResponse> Pool::PublishPrefix(absl::string_view layout,
                                                              absl::Span<const uint32_t> tokens,
                                                              const v1::NameRef& source) const {
  v1::PublishPrefixRequest request;
  request.set_layout(std::string(layout));
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  *request.mutable_source() = source;
  return PublishPrefix(request);
}

absl::StatusOr<v1::MatchPrefixResponse> Pool::MatchPrefix(const v1::MatchPrefixRequest& request,
                                                          const CallOptions& call) const {
  return Unary(&Stub::MatchPrefix, request, call, true);
}

absl::StatusOr<v1::MatchPrefixResponse> Pool::MatchPrefix(absl::string_view layout,
                                                          absl::Span<const uint32_t> tokens) const {
  v1::MatchPrefixRequest request;
  request.set_layout(std::string(layout));
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  return MatchPrefix(request);
}

absl::StatusOr<v1::Upload> Pool::GetUpload(const v1::GetUploadRequest& request, const CallOptions& call) const {
  return Unary(&Stub::GetUpload, request, call, true);
}

absl::StatusOr<v1::FlushResponse> Pool::Flush(const v1::FlushRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Flush, request, call, true);
}

// ---- of direct ways

absl::StatusOr<v1::DirectLease> Pool::OpenDirect(const CallOptions& call) const {
  return Unary(&Stub::OpenDirect, v1::OpenDirectRequest(), call, false);
}

absl::StatusOr<v1::GrantResponse> Pool::Grant(const v1::GrantRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Grant, request, call, false);
}

absl::StatusOr<v1::GetResponse> Pool::GetOnce(const v1::GetRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Get, request, call, false);
}

absl::StatusOr<v1::NameInfo> Pool::SetOnce(const v1::SetRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Set, request, call, false);
}

// ---- of arenas

absl::StatusOr<v1::Arena> Pool::OpenArena(const v1::OpenArenaRequest& request, const CallOptions& call) const {
  return Unary(&Stub::OpenArena, request, call, true);
}

absl::StatusOr<v1::LoadResponse> Pool::Load(const v1::LoadRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Load, request, call, true);
}

absl::StatusOr<v1::StoreResponse> Pool::Store(const v1::StoreRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Store, request, call, true);
}

// Repeated safely: with a request_id.
absl::StatusOr<v1::AdvanceResponse> Pool::Advance(const v1::AdvanceRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Advance, request, call, true);
}

absl::StatusOr<v1::LoadResponse> Pool::LoadOnce(const v1::LoadRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Load, request, call, false);
}

absl::StatusOr<v1::StoreResponse> Pool::StoreOnce(const v1::StoreRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Store, request, call, false);
}

absl::StatusOr<v1::CloseArenaResponse> Pool::CloseArena(const v1::CloseArenaRequest& request,
                                                        const CallOptions& call) const {
  return Unary(&Stub::CloseArena, request, call, false);
}

}  // namespace statepool::client
