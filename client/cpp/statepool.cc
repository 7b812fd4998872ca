// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/statepool.h"

#include <google/protobuf/unknown_field_set.h>
#include <grpc/grpc.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/async_unary_call.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr char kGetMethod[] = "/statepool.v1.StatePool/Get";
constexpr char kSetMethod[] = "/statepool.v1.StatePool/Set";
constexpr char kHealthMethod[] = "/grpc.health.v1.Health/Check";

constexpr absl::Duration kFirstDelay = absl::Milliseconds(50);  // doubles with each attempt
constexpr absl::Duration kReleasePoll = absl::Milliseconds(5);
constexpr absl::Duration kCancelGrace = absl::Milliseconds(100);  // for gRPC to notice a deadline by itself
constexpr int kAbandonedMax = 16;
constexpr int kFrameBytesMax = 1 << 20;  // gRPC's default of 16 KiB cuts a state into hundreds of frames

absl::Status InvalidArgument(absl::string_view reason, absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, field, message);
}

absl::Status MalformedResponse(absl::string_view message) {
  return MakeError(absl::StatusCode::kInternal, "MALFORMED_RESPONSE", "", message);
}

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

absl::BitGen& Random() {
  static thread_local absl::BitGen random;
  return random;
}

std::string NewRequestId() {
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(Random()), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(Random()), absl::kZeroPad16));
}

// How long to wait before the next attempt; nothing: the error is final.
std::optional<absl::Duration> RetryDelay(const absl::Status& status, int attempt) {
  const ErrorDetail detail = GetErrorDetail(status);
  if (!detail.retry_after && detail.reason != "UNREACHABLE") return std::nullopt;
  const absl::Duration delay =
      std::max(detail.retry_after.value_or(absl::ZeroDuration()), kFirstDelay * (1 << (attempt - 1)));
  return delay * absl::Uniform(Random(), 1.0, 1.25);  // clients that were refused together don't come back together
}

// Memory of a caller that gRPC reads from. Each slice over it, and each part that gRPC cuts from one, holds a
// reference.
class Loan {
 public:
  explicit Loan(std::shared_ptr<const void> owner) : owner_(std::move(owner)) {}

  grpc::Slice Lend(absl::string_view piece) {
    references_.fetch_add(1, std::memory_order_relaxed);
    return grpc::Slice(const_cast<char*>(piece.data()), piece.size(), &Loan::Return, this);
  }

  // Gives up the maker's own reference. With an owner the last slice takes the rest with it; otherwise waits for that
  // slice. Nobody but us may be driving gRPC's I/O: each wait on the queue does.
  static void Close(Loan* loan) {
    if (loan->owner_ == nullptr && loan->references_.load(std::memory_order_acquire) > 1) {
      grpc::CompletionQueue queue;
      void* tag;
      bool ok;
      while (loan->references_.load(std::memory_order_acquire) > 1) {
        queue.AsyncNext(&tag, &ok, absl::ToChronoTime(absl::Now() + kReleasePoll));
      }
      queue.Shutdown();
      while (queue.Next(&tag, &ok)) {
      }
    }
    Return(loan);
  }

 private:
  static void Return(void* loan) {
    Loan* const self = static_cast<Loan*>(loan);
    if (self->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete self;
  }

  const std::shared_ptr<const void> owner_;
  std::atomic<size_t> references_{1};
};

void SetDeadline(absl::Time deadline, grpc::ClientContext* context) {
  if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
}

// Returns only when gRPC has written the request.
grpc::Status RawCall(grpc::ChannelInterface* channel, const char* method, absl::Time deadline,
                     const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
  grpc::ClientContext context;
  SetDeadline(deadline, &context);
  response->Clear();
  return grpc::internal::BlockingUnaryCall(
      channel, grpc::internal::RpcMethod(method, grpc::internal::RpcMethod::NORMAL_RPC), &context, request, response);
}

// A call with a large request that can be left behind. gRPC ends a call only after its write, whatever the deadline,
// and a stalled peer can hold a large write for ever.
class AbandonableCall {
 public:
  static grpc::Status Run(const std::shared_ptr<grpc::Channel>& channel, const char* method, absl::Time deadline,
                          const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
    if (abandoned_.load() >= kAbandonedMax) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "too many earlier writes are stuck in their connections");
    }
    auto call = std::make_unique<AbandonableCall>();
    SetDeadline(deadline, &call->context_);
    call->reader_ = grpc::GenericStub(channel).PrepareUnaryCall(&call->context_, method, request, &call->queue_);
    call->reader_->StartCall();
    call->reader_->Finish(&call->response_, &call->status_, call.get());
    if (!call->WaitUntil(deadline + kCancelGrace)) {
      ++abandoned_;
      std::thread([call = std::move(call)] {
        call->WaitUntil(absl::InfiniteFuture());
        --abandoned_;
      }).detach();
      return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "Deadline Exceeded");
    }
    response->Swap(&call->response_);
    return call->status_;
  }

  ~AbandonableCall() {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

 private:
  bool WaitUntil(absl::Time time) {
    void* tag;
    bool ok;
    if (time == absl::InfiniteFuture()) return queue_.Next(&tag, &ok);
    return queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(time)) == grpc::CompletionQueue::GOT_EVENT;
  }

  static inline std::atomic<int> abandoned_ = 0;  // in this process; each keeps its state and a thread

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::ByteBuffer response_;
  grpc::Status status_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader_;
};

v1::GetRequest GetRequestFor(const v1::NameRef& name) {
  v1::GetRequest request;
  *request.mutable_name() = name;
  return request;
}

absl::Status CompareChecksums(const v1::NameInfo& info, absl::string_view actual) {
  if (info.checksum() == actual) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, "CORRUPT", "", "the bytes received don't have their version's checksum",
                   {{"expected", info.checksum()}, {"actual", std::string(actual)}});
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

std::string ChecksumOfPieces(absl::Span<const absl::string_view> pieces) {
  return ChecksumToHex(statepool::ChecksumOfPieces(pieces));
}

absl::Status State::CopyTo(char* destination, size_t n) const {
  if (n != size()) {
    return InvalidArgument("BYTES_LENGTH_MISMATCH", "n", absl::StrCat("the state has ", size(), " bytes, not ", n));
  }
  for (absl::string_view piece : pieces()) {
    std::memcpy(destination, piece.data(), piece.size());
    destination += piece.size();
  }
  return absl::OkStatus();
}

Pool::Pool(std::shared_ptr<grpc::Channel> small, std::shared_ptr<grpc::Channel> reads,
           std::shared_ptr<grpc::Channel> writes, const Options& options)
    : channel_(std::move(small)),
      reads_(std::move(reads)),
      writes_(std::move(writes)),
      stub_(v1::StatePool::NewStub(channel_)),
      options_(options) {}

absl::StatusOr<Pool> Pool::Connect(absl::string_view address, const Options& options) {
  if (absl::Status status = CheckAddress(address); !status.ok()) return status;
  if (options.max_attempts < 1) return InvalidArgument("INVALID_OPTION", "max_attempts", "max_attempts is at least 1");
  if (options.max_message_bytes < 1)
    return InvalidArgument("INVALID_OPTION", "max_message_bytes", "a message has bytes");
  // gRPC tears itself down with its last user, and that can block for 10 s after a large write. So never the last.
  // And Debian's Abseil looks for lock cycles at every lock that gRPC takes, under one lock for the whole process.
  static const bool kept = (grpc_init(), absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore), true);
  (void)kept;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytesMax);  // of what the daemon sends
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);             // ours know what may be repeated, and hold no messages
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else the channels would share a connection
  const auto channel = [&] {
    return grpc::CreateCustomChannel(std::string(address), grpc::InsecureChannelCredentials(), arguments);
  };
  return Pool(channel(), channel(), channel(), options);
}

absl::Status Pool::Attempt(const CallOptions& call, bool may_repeat,
                           absl::FunctionRef<grpc::Status(absl::Time deadline)> attempt) const {
  const absl::Time deadline = absl::Now() + call.timeout.value_or(options_.timeout);
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

// ---- states' bytes

absl::StatusOr<State> Pool::Receive(const v1::GetRequest& request, const CallOptions& call) const {
  const std::string bytes = request.SerializeAsString();
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::ByteBuffer answer;
  const absl::Status status = Attempt(
      call, true, [&](absl::Time deadline) { return RawCall(reads_.get(), kGetMethod, deadline, message, &answer); });
  if (!status.ok()) return status;
  absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, wire::kDataField, options_.max_message_bytes);
  if (!split.ok()) return MalformedResponse(split.status().message());
  State state;
  state.message_ = *std::move(split);
  if (!state.small_.ParseFromString(state.message_.rest)) return MalformedResponse("not a GetResponse");
  state.message_.rest.clear();
  return state;
}

absl::StatusOr<State> Pool::Get(const v1::GetRequest& request, const CallOptions& call) const {
  absl::StatusOr<State> state = Receive(request, call);
  if (!state.ok() || !options_.verify) return state;
  if (absl::Status s = CompareChecksums(state->info(), ChecksumOfPieces(state->pieces())); !s.ok()) return s;
  return state;
}

absl::StatusOr<v1::GetResponse> Pool::GetInto(const v1::GetRequest& request, absl::Span<char> destination,
                                              const CallOptions& call) const {
  absl::StatusOr<State> state = Receive(request, call);
  if (!state.ok()) return state.status();
  if (!options_.verify || state->size() != destination.size()) {
    if (absl::Status s = state->CopyTo(destination.data(), destination.size()); !s.ok()) return s;
    return std::move(state->small_);
  }
  CopyHasher hasher(destination.data(), destination.size());
  for (absl::string_view piece : state->pieces()) hasher.Append(piece);
  if (absl::Status s = CompareChecksums(state->info(), ChecksumToHex(HashRoot(hasher.Finish()))); !s.ok()) return s;
  return std::move(state->small_);
}

absl::StatusOr<v1::NameInfo> Pool::Set(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                       std::shared_ptr<const void> owner, const CallOptions& call) const {
  if (!request.data().empty()) return InvalidArgument("INVALID_OPTION", "data", "give the bytes as pieces");
  uint64_t bytes = request.attachment().size();
  for (absl::string_view piece : pieces) bytes += piece.size();
  if (bytes > static_cast<uint64_t>(options_.max_message_bytes)) {
    return MakeError(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE", "data",
                     absl::StrCat("one message carries at most ", options_.max_message_bytes, " bytes, not ", bytes));
  }
  if (request.checksum().empty()) request.set_checksum(ChecksumOfPieces(pieces));
  if (request.request_id().empty()) request.set_request_id(NewRequestId());

  const bool owned = owner != nullptr;
  Loan* const loan = new Loan(std::move(owner));
  grpc::ByteBuffer message;
  {
    std::vector<grpc::Slice> slices;
    for (absl::string_view piece : pieces) {
      if (!piece.empty()) slices.push_back(loan->Lend(piece));
    }
    message = wire::Join(request.SerializeAsString(), wire::kDataField, slices);
  }
  grpc::ByteBuffer answer;
  const absl::Status status = Attempt(call, true, [&](absl::Time deadline) {
    if (owned) return AbandonableCall::Run(writes_, kSetMethod, deadline, message, &answer);
    return RawCall(writes_.get(), kSetMethod, deadline, message, &answer);
  });
  message.Clear();
  Loan::Close(loan);
  if (!status.ok()) return status;

  absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, /*field=*/0, options_.max_message_bytes);
  v1::NameInfo info;
  if (!split.ok() || !info.ParseFromString(split->rest)) return MalformedResponse("not a NameInfo");
  return info;
}

absl::StatusOr<v1::NameInfo> Pool::Set(absl::string_view sequence, absl::string_view layout, int64_t position,
                                       absl::string_view data) const {
  v1::SetRequest request;
  request.set_sequence(std::string(sequence));
  request.set_layout(std::string(layout));
  request.set_position(position);
  return Set(std::move(request), {data});
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
  return Unary(&Stub::RegisterLayout, request, call, true);
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
  return Unary(&Stub::GetLayout, request, call, true);
}

absl::StatusOr<v1::LayoutInfo> Pool::GetLayout(absl::string_view layout) const {
  v1::GetLayoutRequest request;
  request.set_layout(std::string(layout));
  return GetLayout(request);
}

absl::StatusOr<v1::ListLayoutsResponse> Pool::ListLayouts(const CallOptions& call) const {
  return Unary(&Stub::ListLayouts, v1::ListLayoutsRequest(), call, true);
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

absl::StatusOr<State> Pool::Get(const v1::NameRef& name) const { return Get(GetRequestFor(name)); }

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

absl::StatusOr<v1::NameInfo> Pool::Rollback(const v1::RollbackRequest& request, const CallOptions& call) const {
  return Write(&Stub::Rollback, request, call);
}

absl::StatusOr<v1::NameInfo> Pool::Rollback(absl::string_view sequence, int64_t position) const {
  v1::RollbackRequest request;
  request.set_sequence(std::string(sequence));
  request.set_position(position);
  return Rollback(request);
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

absl::StatusOr<v1::FlushResponse> Pool::Flush(const v1::FlushRequest& request, const CallOptions& call) const {
  return Unary(&Stub::Flush, request, call, true);
}

}  // namespace statepool::client
