// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What every call has, unary or stream. For service*.cc alone.
#ifndef STATEPOOL_SERVER_RPC_CALL_H_
#define STATEPOOL_SERVER_RPC_CALL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/op.h"
#include "server/core/select.h"
#include "server/rpc/errors.h"
#include "server/rpc/service.h"

namespace statepool {

// Requests up to this size are not counted as bytes in flight, so that a rush of states never shuts out a Describe.
inline constexpr size_t kUncountedBytes = 64 << 10;
// What most requests may have. Parsed, a message of tiny fields takes up to sixty times its size.
inline constexpr size_t kSmallRequestBytesMax = 1 << 20;
// Of a Set or a BatchWrite beside its data. Above max_attachment_bytes, which the Store checks.
inline constexpr size_t kSetRestBytesMax = 4 << 20;

inline absl::Status Malformed(absl::string_view why) {
  return Error(absl::StatusCode::kInvalidArgument, "MALFORMED_REQUEST",
               absl::StrCat("the request can't be parsed: ", why));
}

// One call: counted from Enter to Leave, cancelled when its client is gone or the watchdog says so. Whoever derives is
// a gRPC reactor that deletes itself in OnDone, after Leave.
class StatePoolService::CallBase {
 public:
  CallBase(StatePoolService* service, Method method, grpc::CallbackServerContext* context);
  CallBase(const CallBase&) = delete;
  CallBase& operator=(const CallBase&) = delete;

  const Op& op() const { return op_; }

 protected:
  ~CallBase() = default;

  absl::Status Enter();                // DRAINING
  absl::Status Admit(uint64_t bytes);  // counts them until Leave; replaces an earlier count. ADMISSION
  void Cancelled() { cancelled_.store(true, std::memory_order_relaxed); }
  // The status as gRPC says it, remembered for the metrics.
  grpc::Status Ended(const absl::Status& status);
  void Leave();

  // What a client may take for so many bytes in all: stream_timeout, and a second for each MiB.
  absl::Duration TimeFor(uint64_t bytes) const;

  // `bytes` more are on their way. Ends the call when nothing extends this within TimeFor(bytes) and, however often it
  // is extended, within TimeFor(all of them).
  void WatchProgress(uint64_t bytes);

  StatePoolService* const service_;
  const Method method_;
  grpc::CallbackServerContext* const context_;

 private:
  const MonoTime start_;
  std::atomic<bool> cancelled_{false};
  Op op_;
  Admission::Ticket ticket_;
  Watchdog::Id watch_ = 0;
  MonoTime watched_since_ = 0;
  uint64_t watched_bytes_ = 0;
  bool counted_ = false;
  int code_ = 0;
};

// The bytes of an answer in flight: given back when gRPC has let go of its last slice.
using SharedTicket = std::shared_ptr<Admission::Ticket>;

// A slot's memory, or a copy of it, as gRPC holds it: given back when the last reference to a slice of it goes.
struct LentSlot {
  Pin pin;
  std::shared_ptr<const char[]> copy;
  SharedTicket ticket;
};

// Slices over `pieces`, which lie in lent->pin's bytes or in the copy. Many small ones are copied into one, which needs
// no slot.
std::vector<grpc::Slice> Lend(const std::shared_ptr<LentSlot>& lent, absl::Span<const absl::string_view> pieces);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_CALL_H_
