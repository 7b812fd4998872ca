// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/calls.h"

#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/async_unary_call.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/errors.h"

namespace statepool::client {
namespace {

constexpr absl::Duration kFirstDelay = absl::Milliseconds(50);  // doubles with each attempt
constexpr int kDoublingsMax = 10;
constexpr absl::Duration kReleasePoll = absl::Milliseconds(5);
constexpr absl::Duration kCancelGrace = absl::Milliseconds(100);  // for gRPC to notice a deadline by itself
constexpr int kAbandonedMax = 16;

std::atomic<int> abandoned = 0;  // calls in this process; each keeps its messages and a thread

grpc::Status TooManyAbandoned() {
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "too many earlier writes are stuck in their connections");
}

grpc::Status Late() { return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "Deadline Exceeded"); }

// Leaves a call behind: its destructor waits until gRPC has let go of it.
template <typename Call>
void Abandon(std::unique_ptr<Call> call) {
  ++abandoned;
  std::thread([call = std::move(call)]() mutable {
    call.reset();
    --abandoned;
  }).detach();
}

bool WaitUntil(absl::Time time, grpc::CompletionQueue* queue, bool* ok) {
  void* tag;
  if (time == absl::InfiniteFuture()) return queue->Next(&tag, ok);
  return queue->AsyncNext(&tag, ok, absl::ToChronoTime(time)) == grpc::CompletionQueue::GOT_EVENT;
}

void Drain(grpc::CompletionQueue* queue) {
  queue->Shutdown();
  void* tag;
  bool ok;
  while (queue->Next(&tag, &ok)) {
  }
}

absl::BitGen& Random() {
  static thread_local absl::BitGen random;
  return random;
}

// gRPC ends a call only after its write, whatever the deadline, and a stalled peer can hold a large write for ever.
struct UnaryCall {
  ~UnaryCall() { Drain(&queue); }

  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  grpc::ByteBuffer response;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
};

}  // namespace

absl::Status InvalidArgument(absl::string_view reason, absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, field, message);
}

absl::Status MalformedResponse(absl::string_view message) {
  return MakeError(absl::StatusCode::kInternal, "MALFORMED_RESPONSE", "", message);
}

bool MayRepeat(const v1::RemoveRangeRequest& request) { return request.allow_missing() || request.begin() > 0; }

std::string NewRequestId() {
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(Random()), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(Random()), absl::kZeroPad16));
}

absl::Duration Backoff(int attempt) { return kFirstDelay * (1 << std::min(attempt - 1, kDoublingsMax)); }

std::optional<absl::Duration> RetryDelay(const absl::Status& status, int attempt) {
  const ErrorDetail detail = GetErrorDetail(status);
  if (!detail.retry_after && detail.reason != "UNREACHABLE") return std::nullopt;
  const absl::Duration delay = std::max(detail.retry_after.value_or(absl::ZeroDuration()), Backoff(attempt));
  return delay * absl::Uniform(Random(), 1.0, 1.25);  // clients that were refused together don't come back together
}

void SetDeadline(absl::Time deadline, grpc::ClientContext* context) {
  if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
}

bool IsUnanswered(const absl::Status& error) {
  return absl::IsUnavailable(error) || absl::IsDeadlineExceeded(error) || absl::IsCancelled(error);
}

CallOptions Until(absl::Time deadline) {
  CallOptions call;
  call.timeout = std::max(deadline - absl::Now(), absl::ZeroDuration());
  return call;
}

absl::Status CompareChecksums(absl::string_view expected, absl::string_view actual) {
  if (expected == actual) return absl::OkStatus();
  return MakeError(absl::StatusCode::kDataLoss, "CORRUPT", "", "the bytes received don't have their checksum",
                   {{"expected", std::string(expected)}, {"actual", std::string(actual)}});
}

grpc::Slice Loan::Lend(absl::string_view piece) {
  references_.fetch_add(1, std::memory_order_relaxed);
  return grpc::Slice(const_cast<char*>(piece.data()), piece.size(), &Loan::Return, this);
}

void Loan::Close(Loan* loan) {
  // Nobody but us may be driving gRPC's I/O: each wait on the queue does.
  if (loan->owner_ == nullptr && loan->references_.load(std::memory_order_acquire) > 1) {
    grpc::CompletionQueue queue;
    bool ok;
    while (loan->references_.load(std::memory_order_acquire) > 1) WaitUntil(absl::Now() + kReleasePoll, &queue, &ok);
    Drain(&queue);
  }
  Return(loan);
}

void Loan::Return(void* loan) {
  Loan* const self = static_cast<Loan*>(loan);
  if (self->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete self;
}

grpc::Status RawCall(grpc::ChannelInterface* channel, const char* method, absl::Time deadline,
                     const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
  grpc::ClientContext context;
  SetDeadline(deadline, &context);
  response->Clear();
  return grpc::internal::BlockingUnaryCall(
      channel, grpc::internal::RpcMethod(method, grpc::internal::RpcMethod::NORMAL_RPC), &context, request, response);
}

grpc::Status AbandonableCall(const std::shared_ptr<grpc::Channel>& channel, const char* method, absl::Time deadline,
                             const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
  if (abandoned.load() >= kAbandonedMax) return TooManyAbandoned();
  auto call = std::make_unique<UnaryCall>();
  SetDeadline(deadline, &call->context);
  call->reader = grpc::GenericStub(channel).PrepareUnaryCall(&call->context, method, request, &call->queue);
  call->reader->StartCall();
  call->reader->Finish(&call->response, &call->status, call.get());
  bool ok;
  if (!WaitUntil(deadline + kCancelGrace, &call->queue, &ok)) {
    Abandon(std::move(call));
    return Late();
  }
  response->Swap(&call->response);
  return call->status;
}

std::unique_ptr<StreamCall> StreamCall::Start(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                                              absl::Time deadline) {
  auto call = absl::WrapUnique(new StreamCall);
  if (abandoned.load() >= kAbandonedMax) {
    call->late_ = true;
    call->status_ = TooManyAbandoned();
    return call;
  }
  call->call_ = grpc::GenericStub(channel).PrepareCall(&call->context_, method, &call->queue_);
  call->Step(deadline, [&] { call->call_->StartCall(call.get()); });
  return call;
}

StreamCall::~StreamCall() {
  context_.TryCancel();
  Drain(&queue_);
}

template <typename Operation>
bool StreamCall::Step(absl::Time deadline, Operation operation) {
  if (late_) return false;
  operation();
  bool ok = false;
  if (WaitUntil(deadline, &queue_, &ok)) return ok;
  late_ = true;
  status_ = Late();
  context_.TryCancel();
  stuck_ = !WaitUntil(absl::Now() + kCancelGrace, &queue_, &ok);
  return false;
}

bool StreamCall::Write(const grpc::ByteBuffer& message, absl::Time deadline) {
  return Step(deadline, [&] { call_->Write(message, this); });
}

bool StreamCall::WritesDone(absl::Time deadline) {
  return Step(deadline, [&] { call_->WritesDone(this); });
}

bool StreamCall::Read(grpc::ByteBuffer* message, absl::Time deadline) {
  received_.Clear();
  if (!Step(deadline, [&] { call_->Read(&received_, this); })) return false;
  message->Clear();
  message->Swap(&received_);
  return true;
}

grpc::Status StreamCall::Finish(std::unique_ptr<StreamCall> call, absl::Time deadline) {
  call->Step(deadline, [&] { call->call_->Finish(&call->status_, call.get()); });
  const grpc::Status status = call->status_;
  Drop(std::move(call));
  return status;
}

void StreamCall::Drop(std::unique_ptr<StreamCall> call) {
  if (call->stuck_) Abandon(std::move(call));
}

}  // namespace statepool::client
