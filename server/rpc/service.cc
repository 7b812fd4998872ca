// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/service.h"

#include <google/protobuf/arena.h>

#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire.h"
#include "server/core/error.h"
#include "server/core/range_reader.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

// A MatchPrefix above this size hashes for long enough to be kept away from gRPC's threads.
constexpr size_t kInlineMatchBytesMax = 64 << 10;
// What a request of a method may have. Parsed, a message of tiny fields takes up to sixty times its size, so only those
// may be large that must be; a Set's state is never parsed.
size_t RequestBytesMax(Method method) {
  constexpr size_t kMiB = 1 << 20;
  switch (method) {
    case Method::kSet:
    case Method::kBatchWrite: return SIZE_MAX;
    case Method::kStore: return 64 * kMiB;  // attachments
    case Method::kRegisterLayout: return kMaxCanonicalBytes + kMiB;
    case Method::kAdvance:  // max_arena_rows paths
    case Method::kBatchGet:
    case Method::kTouch: return 2 * kMiB;
    case Method::kFork:
    case Method::kDeleteMany:
    case Method::kFlush:
    case Method::kLoad:
    case Method::kPublishPrefix:
    case Method::kMatchPrefix: return 8 * kMiB;  // max_children names, max_tokens tokens
    default: return kSmallRequestBytesMax;
  }
}

MonoTime ToMonoTime(std::chrono::system_clock::time_point deadline, const Clock& clock) {
  constexpr auto kLong = std::chrono::hours(24 * 3650);
  const auto now = std::chrono::system_clock::now();
  if (deadline > now + kLong) return kNever;
  return clock.Now() + std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - now).count();
}

}  // namespace

// ---- every call

StatePoolService::CallBase::CallBase(StatePoolService* service, Method method, grpc::CallbackServerContext* context)
    : service_(service), method_(method), context_(context), start_(service->clock_->Now()) {
  op_.tenant = kDefaultTenant;
  op_.deadline = ToMonoTime(context->deadline(), *service->clock_);
  op_.cancelled = &cancelled_;
}

absl::Status StatePoolService::CallBase::Enter() {
  counted_ = service_->BeginCall();
  if (counted_) return absl::OkStatus();
  return Error(absl::StatusCode::kUnavailable, "DRAINING",
               "the daemon is stopping; retry elsewhere, or when it is back")
      .RetryAfter(absl::Seconds(1));
}

absl::Status StatePoolService::CallBase::Admit(uint64_t bytes) {
  ticket_.Release();
  absl::StatusOr<Admission::Ticket> ticket = service_->admission_.Admit(bytes);
  if (ticket.ok()) ticket_ = *std::move(ticket);
  return ticket.status();
}

grpc::Status StatePoolService::CallBase::Ended(const absl::Status& status) {
  const grpc::Status rpc_status = ToGrpcStatus(status);
  code_ = rpc_status.error_code();
  return rpc_status;
}

void StatePoolService::CallBase::Leave() {
  if (watch_ != 0) service_->watchdog_.Forget(watch_);
  service_->metrics_->Observe(static_cast<size_t>(method_), code_, absl::Nanoseconds(service_->clock_->Now() - start_));
  ticket_.Release();
  if (counted_) service_->EndCall();
}

absl::Duration StatePoolService::CallBase::TimeFor(uint64_t bytes) const {
  return service_->options_.stream_timeout + absl::Seconds(1) * (static_cast<double>(bytes) / (1 << 20));
}

void StatePoolService::CallBase::WatchProgress(uint64_t bytes) {
  const MonoTime now = service_->clock_->Now();
  if (watch_ == 0) watched_since_ = now;
  watched_bytes_ += bytes;
  const MonoTime deadline = std::min(After(now, TimeFor(bytes)), After(watched_since_, TimeFor(watched_bytes_)));
  if (watch_ != 0) return service_->watchdog_.Extend(watch_, deadline);
  watch_ = service_->watchdog_.Watch(deadline, [this] {
    spdlog::info("a client takes or sends nothing any more: its {} is ended",
                 MethodNames()[static_cast<size_t>(method_)]);
    context_->TryCancel();
  });
}

std::vector<grpc::Slice> Lend(const std::shared_ptr<LentSlot>& lent, absl::Span<const absl::string_view> pieces) {
  constexpr uint64_t kSmallBytes = 16 << 10;  // for less, a copy is cheaper than a slice of its own
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  std::vector<grpc::Slice> slices;
  if (pieces.size() > 1 && bytes / pieces.size() < kSmallBytes) {
    const auto copy = std::make_shared<std::pair<std::string, SharedTicket>>("", lent->ticket);
    copy->first.reserve(bytes);
    for (absl::string_view piece : pieces) copy->first.append(piece.data(), piece.size());
    slices.push_back(wire::SliceOf(copy->first, copy));
    return slices;
  }
  for (absl::string_view piece : pieces) {
    if (!piece.empty()) slices.push_back(wire::SliceOf(piece, lent));
  }
  return slices;
}

// ---- unary calls

// From its start to OnDone. Whoever serves it calls Finish once, as the last thing: after it the call may be gone.
class StatePoolService::Call final : public grpc::ServerUnaryReactor, public CallBase {
 public:
  Call(StatePoolService* service, Method method, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
       grpc::ByteBuffer* response)
      : CallBase(service, method, context), request_(request), response_(response) {}

  const grpc::ByteBuffer& request() const { return *request_; }

  // False: the call was refused and is finished.
  bool Begin() {
    const absl::Status status = MayBegin();
    if (!status.ok()) Finish(status);
    return status.ok();
  }

  // Runs `work`, which must finish this call, on the executor.
  void Submit(Executor::Task work) {
    absl::Status status = service_->executor_.Submit([this, work = std::move(work)]() mutable {
      // It may have waited in the queue for longer than its caller did.
      if (absl::Status s = op().Check(*service_->clock_); !s.ok()) return Finish(s);
      work();
    });
    if (!status.ok()) Finish(status);
  }

  template <typename Message>
  absl::Status Parse(Message* message) const {
    grpc::ProtoBufferReader reader(const_cast<grpc::ByteBuffer*>(request_));  // takes references, changes nothing
    if (!reader.status().ok()) return Malformed(reader.status().error_message());
    if (!message->ParseFromZeroCopyStream(&reader) || !reader.status().ok()) {
      return Malformed(absl::StrCat("this is no ", message->GetTypeName()));
    }
    return absl::OkStatus();
  }

  template <typename Message>
  void Finish(const absl::Status& status, const Message& answer) {
    if (!status.ok()) return Finish(status);
    bool own_buffer;
    const grpc::Status serialized = grpc::SerializationTraits<Message>::Serialize(answer, response_, &own_buffer);
    Finish(serialized.ok() ? absl::OkStatus() : absl::InternalError(serialized.error_message()));
  }
  // An answer that holds slots until the client took it.
  void Finish(grpc::ByteBuffer answer) {
    WatchProgress(answer.Length());
    response_->Swap(&answer);
    Finish(absl::OkStatus());
  }
  void Finish(const absl::Status& status) { grpc::ServerUnaryReactor::Finish(Ended(status)); }

  // OnDone is a few atomic operations, so it may run on the thread that sent the answer, as gRPC's own default reactor
  // does; else each call would change threads once more (a tenth of a Describe). Debian's gRPC 1.51 has no public word
  // for it.
  bool InternalInlineable() override { return true; }

  void OnCancel() override { Cancelled(); }
  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  absl::Status MayBegin() {
    // A call that was cancelled before its message came.
    if (!request_->Valid())
      return Error(absl::StatusCode::kCancelled, "CANCELLED", "the caller gave up before its request was read");
    if (absl::Status status = Enter(); !status.ok()) return status;
    const size_t bytes = request_->Length();
    if (bytes > RequestBytesMax(method_)) {
      return Malformed(
          absl::StrCat("it has ", bytes, " bytes, and this method takes at most ", RequestBytesMax(method_)));
    }
    return bytes > kUncountedBytes ? Admit(bytes) : absl::OkStatus();
  }

  const grpc::ByteBuffer* const request_;
  grpc::ByteBuffer* const response_;
};

StatePoolService::StatePoolService(ServiceOptions options, statepool::Store* store, Arenas* arenas, Leases* leases,
                                   const Clock* clock, RpcMetrics* metrics)
    : options_(std::move(options)),
      store_(store),
      arenas_(arenas),
      clock_(clock),
      metrics_(metrics),
      watchdog_(clock),
      uploads_(options_.uploads, store, clock, &watchdog_),
      handlers_(store, arenas, leases, options_.identity, options_.devices),
      admission_(options_.identity.max_bytes_in_flight),
      executor_(options_.executor_threads, options_.executor_queue) {
  if (arenas_ != nullptr) arenas_->GoOnWith([this](Executor::Task task) { return executor_.Submit(std::move(task)); });
}

StatePoolService::~StatePoolService() {
  if (arenas_ != nullptr) arenas_->DrainFlags();
}

// Sequentially consistent on both sides: a call either sees the drain or is seen by WaitIdle.
bool StatePoolService::BeginCall() {
  running_.fetch_add(1);
  if (!draining_.load()) return true;
  running_.fetch_sub(1);
  return false;
}

void StatePoolService::EndCall() { running_.fetch_sub(1); }

void StatePoolService::BeginDrain() {
  draining_.store(true);
  if (arenas_ != nullptr) arenas_->DrainFlags();
}

bool StatePoolService::WaitIdle(absl::Duration timeout) {
  // Neither the wall clock, which may step meanwhile, nor an injected one, which may stand still.
  const auto end = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  // Once in a daemon's life: not worth a condition variable in the path of every call.
  while (running_.load() != 0 || admission_.bytes_in_flight() != 0) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

template <typename Request, typename Response>
StatePoolService::Call* StatePoolService::Serve(Call* call, Where where, Handler<Request, Response> handler) {
  if (!call->Begin()) return call;
  const auto work = [this, call, handler] {
    google::protobuf::Arena memory;  // of both messages, freed at once: those of a batch have thousands of parts
    auto* const request = google::protobuf::Arena::CreateMessage<Request>(&memory);
    auto* const response = google::protobuf::Arena::CreateMessage<Response>(&memory);
    absl::Status status = call->Parse(request);
    if (status.ok()) status = (handlers_.*handler)(call->op(), *request, response);
    call->Finish(status, *response);
  };
  if (where == Where::kInline) {
    work();
  } else {
    call->Submit(work);
  }
  return call;
}

template <typename Request, typename Response>
StatePoolService::Call* StatePoolService::ServeArena(Call* call, Handler<Request, Response> handler,
                                                     FlagsHandler<Request, Response> with_flags) {
  if (!call->Begin()) return call;
  call->Submit([this, call, handler, with_flags] {
    const auto memory = std::make_shared<google::protobuf::Arena>();  // of both messages
    auto* const request = google::protobuf::Arena::CreateMessage<Request>(memory.get());
    auto* const response = google::protobuf::Arena::CreateMessage<Response>(memory.get());
    if (absl::Status status = call->Parse(request); !status.ok()) return call->Finish(status);
    if (!request->has_after() && !request->has_done()) {
      const absl::Status status = (handlers_.*handler)(call->op(), *request, response);
      return call->Finish(status, *response);
    }
    (handlers_.*with_flags)(call->op(), *request, response,
                            [call, memory, response](const absl::Status& status) { call->Finish(status, *response); });
  });
  return call;
}

#define STATEPOOL_SERVE(method, where)                                                                              \
  grpc::ServerUnaryReactor* StatePoolService::method(grpc::CallbackServerContext* context,                          \
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) { \
    return Serve(new Call(this, Method::k##method, context, request, response), where, &Handlers::method);          \
  }
STATEPOOL_SERVE(GetCapabilities, Where::kInline)
STATEPOOL_SERVE(RegisterLayout, Where::kExecutor)
STATEPOOL_SERVE(GetLayout, Where::kExecutor)  // its answer may be large
STATEPOOL_SERVE(ListLayouts, Where::kInline)
STATEPOOL_SERVE(DeleteLayout, Where::kExecutor)
STATEPOOL_SERVE(Create, Where::kExecutor)
STATEPOOL_SERVE(Fork, Where::kExecutor)
STATEPOOL_SERVE(Describe, Where::kInline)
STATEPOOL_SERVE(Touch, Where::kInline)
STATEPOOL_SERVE(SetTtl, Where::kExecutor)
STATEPOOL_SERVE(List, Where::kInline)
STATEPOOL_SERVE(Delete, Where::kExecutor)
STATEPOOL_SERVE(DeleteMany, Where::kExecutor)
STATEPOOL_SERVE(Rollback, Where::kExecutor)
STATEPOOL_SERVE(RemoveRange, Where::kExecutor)
STATEPOOL_SERVE(Renumber, Where::kExecutor)
STATEPOOL_SERVE(Snapshot, Where::kExecutor)
STATEPOOL_SERVE(Restore, Where::kExecutor)
STATEPOOL_SERVE(PublishPrefix, Where::kExecutor)
STATEPOOL_SERVE(MatchPrefix, request->Length() <= kInlineMatchBytesMax ? Where::kInline : Where::kExecutor)
STATEPOOL_SERVE(Flush, Where::kExecutor)
STATEPOOL_SERVE(OpenArena, Where::kExecutor)
STATEPOOL_SERVE(CloseArena, Where::kExecutor)
STATEPOOL_SERVE(OpenDirect, Where::kInline)
STATEPOOL_SERVE(Grant, Where::kExecutor)
#undef STATEPOOL_SERVE

grpc::ServerUnaryReactor* StatePoolService::Load(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  return ServeArena(new Call(this, Method::kLoad, context, request, response), &Handlers::Load,
                    &Handlers::LoadWithFlags);
}

grpc::ServerUnaryReactor* StatePoolService::Store(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return ServeArena(new Call(this, Method::kStore, context, request, response), &Handlers::Store,
                    &Handlers::StoreWithFlags);
}

grpc::ServerUnaryReactor* StatePoolService::Advance(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return ServeArena(new Call(this, Method::kAdvance, context, request, response), &Handlers::Advance,
                    &Handlers::AdvanceWithFlags);
}

grpc::ServerUnaryReactor* StatePoolService::Set(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kSet, context, request, response);
  if (!call->Begin()) return call;
  call->Submit([this, call] {
    const absl::StatusOr<wire::SplitMessage> split = wire::Split(call->request(), wire::kDataField, kSetRestBytesMax);
    if (!split.ok()) return call->Finish(Malformed(split.status().message()));
    v1::SetRequest rest;
    if (!rest.ParseFromString(split->rest)) return call->Finish(Malformed("this is no statepool.v1.SetRequest"));
    v1::NameInfo answer;
    const absl::Status status = handlers_.Set(call->op(), rest, split->data, &answer);
    call->Finish(status, answer);
  });
  return call;
}

grpc::ServerUnaryReactor* StatePoolService::BatchWrite(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kBatchWrite, context, request, response);
  if (!call->Begin()) return call;
  call->Submit([this, call] {
    const absl::StatusOr<wire::SplitMessage> split = wire::Split(call->request(), wire::kDataField, kSetRestBytesMax);
    if (!split.ok()) return call->Finish(Malformed(split.status().message()));
    v1::BatchWriteRequest rest;
    if (!rest.ParseFromString(split->rest)) return call->Finish(Malformed("this is no statepool.v1.BatchWriteRequest"));
    v1::BatchWriteResponse answer;
    const absl::Status status = handlers_.BatchWrite(call->op(), rest, split->data, &answer);
    call->Finish(status, answer);
  });
  return call;
}

grpc::ServerUnaryReactor* StatePoolService::GetUpload(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kGetUpload, context, request, response);
  if (!call->Begin()) return call;
  v1::GetUploadRequest parsed;
  v1::Upload answer;
  absl::Status status = call->Parse(&parsed);
  if (status.ok()) status = ValidateName(parsed.sequence(), "sequence");
  if (status.ok() && parsed.request_id().empty())
    status = InvalidArgument("MISSING_FIELD", "request_id", "an upload is found by the request_id of its head");
  if (status.ok()) {
    const absl::StatusOr<Uploads::Info> info = uploads_.Find(call->op(), parsed.sequence(), parsed.request_id());
    status = info.status();
    if (info.ok()) {
      answer.set_received_bytes(info->received_bytes);
      answer.set_total_bytes(info->total_bytes);
      if (info->expire_time.has_value()) *answer.mutable_expire_time() = ToProto(*info->expire_time);
    }
  }
  call->Finish(status, answer);
  return call;
}

// The right to send an answer with so many bytes of states and of attachments.
absl::StatusOr<SharedTicket> StatePoolService::AdmitAnswer(uint64_t bytes) {
  if (bytes > options_.identity.max_message_bytes - kMessageOverheadBytes) {
    return absl::Status(Error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                              absl::StrCat("the answer would have ", bytes,
                                           " bytes, too many for one message; use GetStream, or ask for less"))
                            .Meta("limit", options_.identity.max_message_bytes));
  }
  absl::StatusOr<Admission::Ticket> ticket = admission_.Admit(bytes);
  if (!ticket.ok()) return ticket.status();
  return std::make_shared<Admission::Ticket>(*std::move(ticket));
}

// The answer to a read: what is beside the bytes, and slots that are lent until gRPC has sent them.
absl::StatusOr<grpc::ByteBuffer> StatePoolService::AnswerWithSlots(std::string small,
                                                                   std::vector<Handlers::PinnedPart> parts,
                                                                   const SharedTicket& ticket) {
  std::vector<grpc::Slice> slices;
  for (Handlers::PinnedPart& part : parts) {
    RangeReader reader(part.pin.get(), part.ranges);
    const absl::StatusOr<RangeReader::Bytes> bytes = reader.Next(reader.left());
    if (!bytes.ok()) return bytes.status();
    const auto lent =
        std::make_shared<LentSlot>(bytes->copy == nullptr ? std::move(part.pin) : nullptr, bytes->copy, ticket);
    for (grpc::Slice& slice : Lend(lent, bytes->pieces)) slices.push_back(std::move(slice));
    sent_bytes_.fetch_add(BytesOf(part.ranges), std::memory_order_relaxed);
  }
  return wire::Join(std::move(small), wire::kDataField, slices, ticket);
}

grpc::ServerUnaryReactor* StatePoolService::Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kGet, context, request, response);
  if (!call->Begin()) return call;
  auto parsed = std::make_shared<v1::GetRequest>();
  if (absl::Status status = call->Parse(parsed.get()); !status.ok()) return call->Finish(status), call;
  absl::StatusOr<Source> source = handlers_.GetSource(*parsed);
  if (!source.ok()) return call->Finish(source.status()), call;
  const bool direct = !parsed->lease().empty();
  if (direct) {
    if (absl::Status status = handlers_.CheckLease(call->op(), parsed->lease()); !status.ok())
      return call->Finish(status), call;
  }

  const auto finish = [this, call, parsed, direct](absl::StatusOr<GetAnswer> answer, SharedTicket ticket) {
    if (!answer.ok()) return call->Finish(answer.status());
    if (direct) {
      v1::GetResponse response;
      const absl::Status status = handlers_.FillSlotResponse(call->op(), *std::move(answer), *parsed, &response);
      return call->Finish(status, response);
    }
    if (ticket == nullptr) {
      absl::StatusOr<uint64_t> bytes = handlers_.AnswerBytes(*answer, *parsed);
      if (!bytes.ok()) return call->Finish(bytes.status());
      absl::StatusOr<SharedTicket> admitted = AdmitAnswer(*bytes);
      if (!admitted.ok()) return call->Finish(admitted.status());
      ticket = *std::move(admitted);
    }
    v1::GetResponse small;
    absl::StatusOr<std::vector<ByteRange>> ranges = handlers_.FillGetResponse(*answer, *parsed, &small);
    if (!ranges.ok()) return call->Finish(ranges.status());
    std::vector<Handlers::PinnedPart> parts(1);
    parts[0] = {std::move(answer->pin), *std::move(ranges)};
    absl::StatusOr<grpc::ByteBuffer> message = AnswerWithSlots(small.SerializeAsString(), std::move(parts), ticket);
    if (!message.ok()) return call->Finish(message.status());
    call->Finish(*std::move(message));
  };

  // Hashing a part that was selected is too much for gRPC's threads.
  if (!parsed->has_select()) {
    if (std::optional<absl::StatusOr<GetAnswer>> answer = store_->TryGet(call->op(), *source)) {
      finish(*std::move(answer), nullptr);
      return call;
    }
  }
  call->Submit([this, call, parsed, direct, finish, source = *std::move(source)] {
    // Admitted before the bytes are promoted, so that no work is done for an answer that would be refused.
    SharedTicket ticket;
    const auto admit = [&](absl::Span<absl::StatusOr<GetAnswer>> answers) {
      if (!answers[0].ok() || direct) return absl::OkStatus();
      absl::StatusOr<uint64_t> bytes = handlers_.AnswerBytes(*answers[0], *parsed);
      if (!bytes.ok()) return bytes.status();
      absl::StatusOr<SharedTicket> admitted = AdmitAnswer(*bytes);
      if (admitted.ok()) ticket = *std::move(admitted);
      return admitted.status();
    };
    absl::StatusOr<std::vector<absl::StatusOr<GetAnswer>>> answers = store_->GetMany(call->op(), {&source, 1}, admit);
    if (!answers.ok()) return call->Finish(answers.status());
    finish(std::move(answers->front()), std::move(ticket));
  });
  return call;
}

grpc::ServerUnaryReactor* StatePoolService::BatchGet(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kBatchGet, context, request, response);
  if (!call->Begin()) return call;
  call->Submit([this, call] {
    v1::BatchGetRequest parsed;
    if (absl::Status status = call->Parse(&parsed); !status.ok()) return call->Finish(status);
    SharedTicket ticket;
    const auto admit = [&](uint64_t bytes) {
      absl::StatusOr<SharedTicket> admitted = AdmitAnswer(bytes);
      if (admitted.ok()) ticket = *std::move(admitted);
      return admitted.status();
    };
    v1::BatchGetResponse small;
    absl::StatusOr<std::vector<Handlers::PinnedPart>> parts = handlers_.BatchGet(call->op(), parsed, admit, &small);
    if (!parts.ok()) return call->Finish(parts.status());
    absl::StatusOr<grpc::ByteBuffer> message = AnswerWithSlots(small.SerializeAsString(), *std::move(parts), ticket);
    if (!message.ok()) return call->Finish(message.status());
    call->Finish(*std::move(message));
  });
  return call;
}

}  // namespace statepool
