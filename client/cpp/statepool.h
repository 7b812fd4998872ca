// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client. Requests and answers are the messages of proto/statepool/v1/statepool.proto, where each call's
// promises and errors stand; this header adds what the client does: deadlines, retries, and states without extra
// copies.
//
//   absl::StatusOr<Pool> pool = Pool::Connect("unix:/run/statepool/grpc.sock");
//   pool->Set("chat/42", "my-model", /*position=*/128, bytes);
//   pool->Fork(SequenceRef("chat/42"), {"chat/43", "chat/44"});
//   absl::StatusOr<State> state = pool->Get(SequenceRef("chat/43"));
//
// Deadlines: every call has one (Options::timeout or CallOptions::timeout) over all its attempts and the waiting
// between them.
//
// Retries: an error with RetryInfo, and UNAVAILABLE without the daemon's word (a broken connection), is tried again, at
// most Options::max_attempts times in all and never beyond the deadline. That holds for calls that can't act twice:
// reads; writes with a request_id, which this client generates for each write that has the field and left it empty; and
// RegisterLayout, PublishPrefix, Flush and Delete with allow_missing, which give the same end whenever they are
// repeated. Other calls are tried once.
//
// Errors: see client/cpp/errors.h.
#ifndef STATEPOOL_CLIENT_CPP_STATEPOOL_H_
#define STATEPOOL_CLIENT_CPP_STATEPOOL_H_

#include <grpcpp/channel.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/errors.h"
#include "proto/wire.h"
#include "statepool/v1/statepool.grpc.pb.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

struct Options {
  absl::Duration timeout = absl::Seconds(30);  // may be infinite
  int max_attempts = 4;                        // 1: never retry
  // Cap on one message, either way: the largest state plus everything beside it.
  int max_message_bytes = (512 << 20) + (1 << 20);
  // Get compares the bytes with their checksum. Costs one pass over them.
  bool verify = true;
};

struct CallOptions {
  std::optional<absl::Duration> timeout;  // instead of Options::timeout
};

v1::NameRef SequenceRef(absl::string_view name);
v1::NameRef SnapshotRef(absl::string_view name);
v1::NameRef PrefixRef(absl::string_view prefix);

// The checksum of an image that lies in pieces, as the contract writes it: 16 hex digits.
std::string ChecksumOfPieces(absl::Span<const absl::string_view> pieces);

// A state as it arrived. Owns the bytes, in the pieces in which the transport received them. Const methods are
// thread-safe.
class State {
 public:
  State(State&&) = default;
  State& operator=(State&&) = default;

  const v1::NameInfo& info() const { return small_.info(); }
  const std::string& attachment() const { return small_.attachment(); }

  // The image in order: sum of the pieces' sizes is size(), none is empty. Valid while this State lives, also when it
  // is moved.
  const std::vector<absl::string_view>& pieces() const { return message_.data; }
  uint64_t size() const { return message_.data_bytes; }

  // Errors: INVALID_ARGUMENT unless n == size().
  absl::Status CopyTo(char* destination, size_t n) const;

 private:
  friend class Pool;
  State() = default;

  v1::GetResponse small_;  // without data
  wire::SplitMessage message_;
};

// One daemon. Cheap to copy: copies share its connections, one each for small calls, Get and Set, so that neither a
// fork waits behind a state on its way nor one direction behind the other. All methods are thread-safe and block.
class Pool {
 public:
  // `address` is HOST:PORT or unix:PATH. Connects in the background, and again after a break: an absent daemon shows as
  // UNAVAILABLE from the calls. HTTP proxies are not used. The first Connect initializes gRPC for the life of the
  // process, and turns off Abseil's search for lock cycles (absl::SetMutexDeadlockDetectionMode), which Debian's build
  // does at every lock. Errors: INVALID_ARGUMENT (INVALID_ADDRESS, INVALID_OPTION).
  static absl::StatusOr<Pool> Connect(absl::string_view address, const Options& options = {});

  absl::StatusOr<v1::Capabilities> GetCapabilities(const CallOptions& call = {}) const;

  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::RegisterLayoutRequest& request,
                                                const CallOptions& call = {}) const;
  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::Layout& layout, absl::string_view alias = "") const;
  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::LayoutPreset& preset, absl::string_view alias = "") const;
  absl::StatusOr<v1::LayoutInfo> GetLayout(const v1::GetLayoutRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::LayoutInfo> GetLayout(absl::string_view layout) const;
  absl::StatusOr<v1::ListLayoutsResponse> ListLayouts(const CallOptions& call = {}) const;

  absl::StatusOr<v1::NameInfo> Create(const v1::CreateRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Create(absl::string_view sequence, absl::string_view layout) const;

  // Reads a state. The bytes are not copied after they were received. Beyond the contract's errors: DATA_LOSS / CORRUPT
  // when they don't have the checksum of their version (unless Options::verify is off).
  absl::StatusOr<State> Get(const v1::GetRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<State> Get(const v1::NameRef& name) const;

  // The same into the caller's memory, verified while it is copied: one pass instead of two. The answer's `data` is
  // empty. On an error `destination` may hold part of a state. Errors: also BYTES_LENGTH_MISMATCH unless the state has
  // exactly that size.
  absl::StatusOr<v1::GetResponse> GetInto(const v1::GetRequest& request, absl::Span<char> destination,
                                          const CallOptions& call = {}) const;

  // Writes a whole state: the pieces, one after the other. They are sent from where they lie, without a copy.
  // `request.data` must be empty; an empty `request.checksum` is computed here.
  //
  // Who keeps the memory alive: with `owner`, the client holds it for as long as the transport needs the pieces, and
  // nothing else is asked. Without, the pieces must stay valid and unchanged until the call returns, and the call
  // returns only when the transport has let go of them: that is at once, except after a deadline passed while a stalled
  // peer had not taken everything; then it can take until the connection ends. So give an owner where that matters.
  // At most 16 such writes are left behind in a process; while they are stuck, further ones with an owner are
  // UNAVAILABLE.
  absl::StatusOr<v1::NameInfo> Set(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                   std::shared_ptr<const void> owner = nullptr, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Set(absl::string_view sequence, absl::string_view layout, int64_t position,
                                   absl::string_view data) const;

  absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::ForkResponse> Fork(const v1::NameRef& source, absl::Span<const std::string> children) const;

  absl::StatusOr<v1::NameInfo> Describe(const v1::DescribeRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Describe(const v1::NameRef& name) const;

  absl::StatusOr<v1::ListResponse> List(const v1::ListRequest& request, const CallOptions& call = {}) const;
  // Every name from request.page_token on, page by page, until `visit` returns false. The deadline is each page's.
  absl::Status ListAll(v1::ListRequest request, absl::FunctionRef<bool(const v1::NameInfo&)> visit,
                       const CallOptions& call = {}) const;

  absl::StatusOr<v1::DeleteResponse> Delete(const v1::DeleteRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::DeleteResponse> Delete(const v1::NameRef& name) const;

  absl::StatusOr<v1::NameInfo> Rollback(const v1::RollbackRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Rollback(absl::string_view sequence, int64_t position) const;

  absl::StatusOr<v1::NameInfo> Snapshot(const v1::SnapshotRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Snapshot(const v1::NameRef& source, absl::string_view snapshot) const;
  absl::StatusOr<v1::NameInfo> Restore(const v1::RestoreRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Restore(absl::string_view snapshot, absl::string_view sequence) const;

  absl::StatusOr<v1::PublishPrefixResponse> PublishPrefix(const v1::PublishPrefixRequest& request,
                                                          const CallOptions& call = {}) const;
  absl::StatusOr<v1::PublishPrefixResponse> PublishPrefix(absl::string_view layout, absl::Span<const uint32_t> tokens,
                                                          const v1::NameRef& source) const;
  absl::StatusOr<v1::MatchPrefixResponse> MatchPrefix(const v1::MatchPrefixRequest& request,
                                                      const CallOptions& call = {}) const;
  absl::StatusOr<v1::MatchPrefixResponse> MatchPrefix(absl::string_view layout,
                                                      absl::Span<const uint32_t> tokens) const;

  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request, const CallOptions& call = {}) const;

  // grpc.health.v1.Health/Check: "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN". An empty service is the
  // daemon as a whole.
  absl::StatusOr<std::string> CheckHealth(absl::string_view service = "", const CallOptions& call = {}) const;

  // For calls with the generated stub or of other services.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  Pool(std::shared_ptr<grpc::Channel> small, std::shared_ptr<grpc::Channel> reads,
       std::shared_ptr<grpc::Channel> writes, const Options& options);

  // Calls `attempt` until it succeeds or must not be repeated.
  absl::Status Attempt(const CallOptions& call, bool may_repeat,
                       absl::FunctionRef<grpc::Status(absl::Time deadline)> attempt) const;
  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                 const Request& request, const CallOptions& call, bool may_repeat) const;
  template <typename Request, typename Response>
  absl::StatusOr<Response> Write(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                 const Request& request, const CallOptions& call) const;
  absl::StatusOr<State> Receive(const v1::GetRequest& request, const CallOptions& call) const;

  std::shared_ptr<grpc::Channel> channel_, reads_, writes_;
  std::shared_ptr<v1::StatePool::Stub> stub_;
  Options options_;
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_STATEPOOL_H_
