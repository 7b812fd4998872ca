// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What this client's calls are made of. For the files of client/cpp alone.
//
// Messages are raw ByteBuffers (proto/wire.h), so that states are not copied on their way through proto.
#ifndef STATEPOOL_CLIENT_CPP_CALLS_H_
#define STATEPOOL_CLIENT_CPP_CALLS_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cpp/statepool.h"

namespace statepool::client {

absl::Status InvalidArgument(absl::string_view reason, absl::string_view field, absl::string_view message);
absl::Status MalformedResponse(absl::string_view message);

// 32 random hex digits.
std::string NewRequestId();

// Whether it may be sent again: a second one does not find what the first one deleted, an error unless that is fine.
bool MayRepeat(const v1::RemoveRangeRequest& request);

// How long to wait after the attempt with this number (from 1 on) failed, if its error says nothing of it.
absl::Duration Backoff(int attempt);

// The same of an error; nothing: the error is final.
std::optional<absl::Duration> RetryDelay(const absl::Status& status, int attempt);

// Infinite: none.
void SetDeadline(absl::Time deadline, grpc::ClientContext* context);

// No answer came: the call may have been done, or go on.
bool IsUnanswered(const absl::Status& error);

// What is left until then, as the timeout of a call.
CallOptions Until(absl::Time deadline);

// OK, or DATA_LOSS / CORRUPT.
absl::Status CompareChecksums(absl::string_view expected, absl::string_view actual);

// Memory of a caller that gRPC reads from. Each slice over it, and each part that gRPC cuts from one, holds a
// reference.
class Loan {
 public:
  explicit Loan(std::shared_ptr<const void> owner) : owner_(std::move(owner)) {}

  grpc::Slice Lend(absl::string_view piece);

  // Gives up the maker's own reference. With an owner the last slice takes the rest with it; otherwise waits for that
  // slice.
  static void Close(Loan* loan);

 private:
  static void Return(void* loan);

  const std::shared_ptr<const void> owner_;
  std::atomic<size_t> references_{1};
};

// Returns only when gRPC has written the request.
grpc::Status RawCall(grpc::ChannelInterface* channel, const char* method, absl::Time deadline,
                     const grpc::ByteBuffer& request, grpc::ByteBuffer* response);

// The same for a large request that can be left behind: returns soon after `deadline` whatever the peer does.
// UNAVAILABLE while too many earlier ones are stuck in their connections.
grpc::Status AbandonableCall(const std::shared_ptr<grpc::Channel>& channel, const char* method, absl::Time deadline,
                             const grpc::ByteBuffer& request, grpc::ByteBuffer* response);

// A call of any number of messages each way; each step has a deadline of its own. A step that is late ends the call.
// Can be left behind as well, so messages must own their bytes. Not thread-safe. One that is destroyed before its end
// is cancelled.
class StreamCall {
 public:
  static std::unique_ptr<StreamCall> Start(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                                           absl::Time deadline);
  ~StreamCall();

  // False: the call is over, and Finish tells why. There may still be an answer to Read, unless a step was late.
  bool Write(const grpc::ByteBuffer& message, absl::Time deadline);
  bool WritesDone(absl::Time deadline);
  // False: there are no more messages.
  bool Read(grpc::ByteBuffer* message, absl::Time deadline);

  // How the call ended. REQUIRES: Read gave false, or a step was late.
  static grpc::Status Finish(std::unique_ptr<StreamCall> call, absl::Time deadline);
  // Cancels it.
  static void Drop(std::unique_ptr<StreamCall> call);

 private:
  StreamCall() = default;
  template <typename Operation>
  bool Step(absl::Time deadline, Operation operation);

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::ByteBuffer received_;
  grpc::Status status_;
  bool late_ = false;
  bool stuck_ = false;  // late, and gRPC does not let go of the step
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_CALLS_H_
