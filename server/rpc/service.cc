// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/service.h"

#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire.h"
#include "server/core/error.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"

namespace statepool {
namespace {

// Requests up to this size are not counted as bytes in flight, so that a rush of states never shuts out a Describe.
constexpr size_t kUncountedBytes = 64 << 10;
// A MatchPrefix above this size hashes for long enough to be kept away from gRPC's threads.
constexpr size_t kInlineMatchBytesMax = 64 << 10;
// Of a Set beside its data. Above max_attachment_bytes, which the Store checks.
constexpr size_t kSetRestBytesMax = 4 << 20;

// What a request of a method may have. Parsed, a message of tiny fields takes up to sixty times its size, so only those
// may be large that must be; a Set's state is never parsed.
size_t RequestBytesMax(Method method) {
  constexpr size_t kMiB = 1 << 20;
  switch (method) {
    case Method::kSet: return SIZE_MAX;
    case Method::kRegisterLayout: return kMaxCanonicalBytes + kMiB;
    case Method::kFork:
    case Method::kFlush:
    case Method::kPublishPrefix:
    case Method::kMatchPrefix: return 8 * kMiB;  // max_children names, max_tokens tokens
    default: return kMiB;
  }
}

absl::Status Malformed(absl::string_view why) {
  return Error(absl::StatusCode::kInvalidArgument, "MALFORMED_REQUEST",
               absl::StrCat("the request can't be parsed: ", why));
}

MonoTime ToMonoTime(std::chrono::system_clock::time_point deadline, const Clock& clock) {
  constexpr auto kLong = std::chrono::hours(24 * 3650);
  const auto now = std::chrono::system_clock::now();
  if (deadline > now + kLong) return kNever;
  return clock.Now() + std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - now).count();
}

// A slot's memory as gRPC holds it: given back when the last reference to the slice goes.
struct LentSlot {
  Pin pin;
  Admission::Ticket ticket;
};
grpc::Slice LendSlot(Pin pin, Admission::Ticket ticket) {
  const absl::string_view bytes = pin->bytes();
  auto* lent = new LentSlot{std::move(pin), std::move(ticket)};
  return grpc::Slice(
      const_cast<char*>(bytes.data()), bytes.size(),  // gRPC only reads it
      [](void* user_data) { delete static_cast<LentSlot*>(user_data); }, lent);
}

}  // namespace

// One call, from its start to OnDone. Whoever serves it calls Finish once, as the last thing: after it the call may be
// gone.
class StatePoolService::Call final : public grpc::ServerUnaryReactor {
 public:
  Call(StatePoolService* service, Method method, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
       grpc::ByteBuffer* response)
      : service_(service), method_(method), request_(request), response_(response), start_(service->clock_->Now()) {
    op_.tenant = kDefaultTenant;
    op_.deadline = ToMonoTime(context->deadline(), *service->clock_);
    op_.cancelled = &cancelled_;
  }

  const Op& op() const { return op_; }
  const grpc::ByteBuffer& request() const { return *request_; }

  // False: the call was refused and is finished.
  bool Begin() {
    if (!request_->Valid()) {  // a call that was cancelled before its message came
      Finish(Error(absl::StatusCode::kCancelled, "CANCELLED", "the caller gave up before its request was read"));
      return false;
    }
    counted_ = service_->BeginCall();
    if (!counted_) {
      Finish(Error(absl::StatusCode::kUnavailable, "DRAINING",
                   "the daemon is stopping; retry elsewhere, or when it is back")
                 .RetryAfter(absl::Seconds(1)));
      return false;
    }
    if (request_->Length() > RequestBytesMax(method_)) {
      Finish(Malformed(absl::StrCat("it has ", request_->Length(), " bytes, and this method takes at most ",
                                    RequestBytesMax(method_))));
      return false;
    }
    if (const size_t bytes = request_->Length(); bytes > kUncountedBytes) {
      absl::StatusOr<Admission::Ticket> ticket = service_->admission_.Admit(bytes);
      if (!ticket.ok()) {
        Finish(ticket.status());
        return false;
      }
      ticket_ = *std::move(ticket);
    }
    return true;
  }

  // Runs `work`, which must finish this call, on the executor.
  void Submit(Executor::Task work) {
    absl::Status status = service_->executor_.Submit([this, work = std::move(work)]() mutable {
      // It may have waited in the queue for longer than its caller did.
      if (absl::Status s = op_.Check(*service_->clock_); !s.ok()) return Finish(s);
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
  void Finish(grpc::ByteBuffer answer) {
    response_->Swap(&answer);
    Finish(absl::OkStatus());
  }
  void Finish(const absl::Status& status) {
    const grpc::Status rpc_status = ToGrpcStatus(status);
    code_ = rpc_status.error_code();
    grpc::ServerUnaryReactor::Finish(rpc_status);
  }

  // OnDone is a few atomic operations, so it may run on the thread that sent the answer, as gRPC's own default reactor
  // does; else each call would change threads once more (a tenth of a Describe). Debian's gRPC 1.51 has no public word
  // for it.
  bool InternalInlineable() override { return true; }

  void OnCancel() override { cancelled_.store(true, std::memory_order_relaxed); }
  void OnDone() override {
    const absl::Duration took = absl::Nanoseconds(service_->clock_->Now() - start_);
    service_->metrics_->Observe(static_cast<size_t>(method_), code_, took);
    ticket_.Release();
    if (counted_) service_->EndCall();
    delete this;
  }

 private:
  StatePoolService* const service_;
  const Method method_;
  const grpc::ByteBuffer* const request_;
  grpc::ByteBuffer* const response_;
  const MonoTime start_;
  std::atomic<bool> cancelled_{false};
  Op op_;
  Admission::Ticket ticket_;  // of the request's bytes
  bool counted_ = false;
  int code_ = 0;
};

StatePoolService::StatePoolService(ServiceOptions options, Store* store, const Clock* clock, RpcMetrics* metrics)
    : options_(std::move(options)),
      store_(store),
      clock_(clock),
      metrics_(metrics),
      handlers_(store, options_.identity, options_.devices),
      admission_(options_.identity.max_bytes_in_flight),
      executor_(options_.executor_threads, options_.executor_queue) {}

StatePoolService::~StatePoolService() = default;

// Sequentially consistent on both sides: a call either sees the drain or is seen by WaitIdle.
bool StatePoolService::BeginCall() {
  running_.fetch_add(1);
  if (!draining_.load()) return true;
  running_.fetch_sub(1);
  return false;
}

void StatePoolService::EndCall() { running_.fetch_sub(1); }

void StatePoolService::BeginDrain() { draining_.store(true); }

bool StatePoolService::WaitIdle(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  // Once in a daemon's life: not worth a condition variable in the path of every call.
  while (running_.load() != 0 || admission_.bytes_in_flight() != 0) {
    if (absl::Now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

template <typename Request, typename Response>
StatePoolService::Call* StatePoolService::Serve(Call* call, Where where, Handler<Request, Response> handler) {
  if (!call->Begin()) return call;
  const auto work = [this, call, handler] {
    Request request;
    Response response;
    absl::Status status = call->Parse(&request);
    if (status.ok()) status = (handlers_.*handler)(call->op(), request, &response);
    call->Finish(status, response);
  };
  if (where == Where::kInline) {
    work();
  } else {
    call->Submit(work);
  }
  return call;
}

#define STATEPOOL_SERVE(method, where)                                                                              \
  grpc::ServerUnaryReactor* StatePoolService::method(grpc::CallbackServerContext* context,                          \
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) { \
    return Serve(new Call(this, Method::k##method, context, request, response), where, &Handlers::method);          \
  }
STATEPOOL_SERVE(GetCapabilities, Where::kInline)
STATEPOOL_SERVE(RegisterLayout, Where::kExecutor)
STATEPOOL_SERVE(GetLayout, Where::kInline)
STATEPOOL_SERVE(ListLayouts, Where::kInline)
STATEPOOL_SERVE(Create, Where::kExecutor)
STATEPOOL_SERVE(Fork, Where::kExecutor)
STATEPOOL_SERVE(Describe, Where::kInline)
STATEPOOL_SERVE(List, Where::kInline)
STATEPOOL_SERVE(Delete, Where::kExecutor)
STATEPOOL_SERVE(Rollback, Where::kExecutor)
STATEPOOL_SERVE(Snapshot, Where::kExecutor)
STATEPOOL_SERVE(Restore, Where::kExecutor)
STATEPOOL_SERVE(PublishPrefix, Where::kExecutor)
STATEPOOL_SERVE(MatchPrefix, request->Length() <= kInlineMatchBytesMax ? Where::kInline : Where::kExecutor)
STATEPOOL_SERVE(Flush, Where::kExecutor)
#undef STATEPOOL_SERVE

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

grpc::ServerUnaryReactor* StatePoolService::Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  auto* call = new Call(this, Method::kGet, context, request, response);
  if (!call->Begin()) return call;
  v1::GetRequest parsed;
  if (absl::Status status = call->Parse(&parsed); !status.ok()) return call->Finish(status), call;
  absl::StatusOr<Source> source = handlers_.GetSource(parsed);
  if (!source.ok()) return call->Finish(source.status()), call;

  // `ticket` may be empty or too small: the bytes of an answer are known for sure once it is there.
  const auto finish = [this, call, omit_attachment = parsed.omit_attachment()](absl::StatusOr<GetAnswer> answer,
                                                                               Admission::Ticket ticket) {
    if (!answer.ok()) return call->Finish(answer.status());
    if (const uint64_t bytes = answer->pin->bytes().size() + answer->pin->attachment().size() + kMessageOverheadBytes;
        bytes > options_.identity.max_message_bytes) {
      return call->Finish(
          Error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                absl::StrCat("the state has ", answer->pin->bytes().size(), " bytes, too many for one message"))
              .Field("name")
              .Meta("limit", options_.identity.max_message_bytes));
    }
    v1::GetResponse small;
    handlers_.FillGetResponse(*answer, omit_attachment, &small);
    if (const uint64_t bytes = answer->pin->bytes().size() + small.attachment().size(); bytes > ticket.bytes()) {
      ticket.Release();
      absl::StatusOr<Admission::Ticket> larger = admission_.Admit(bytes);
      if (!larger.ok()) return call->Finish(larger.status());
      ticket = *std::move(larger);
    }
    sent_bytes_.fetch_add(answer->pin->bytes().size(), std::memory_order_relaxed);
    const grpc::Slice data = LendSlot(std::move(answer->pin), std::move(ticket));
    call->Finish(wire::Join(small.SerializeAsString(), wire::kDataField, absl::MakeConstSpan(&data, 1)));
  };

  if (std::optional<absl::StatusOr<GetAnswer>> answer = store_->TryGet(call->op(), *source)) {
    finish(*std::move(answer), Admission::Ticket());
    return call;
  }
  call->Submit([this, call, finish, source = *std::move(source)] {
    // Admitted before the bytes are promoted, so that no work is done for an answer that would be refused.
    const absl::StatusOr<NameInfo> info = store_->Describe(call->op(), source.key);
    if (!info.ok()) return call->Finish(info.status());
    absl::StatusOr<Admission::Ticket> ticket =
        admission_.Admit(info->layout->state_bytes() + info->version.attachment_bytes);
    if (!ticket.ok()) return call->Finish(ticket.status());
    finish(store_->Get(call->op(), source), *std::move(ticket));
  });
  return call;
}

}  // namespace statepool
