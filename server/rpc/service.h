// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// StatePoolService: the RPCs as gRPC calls them.
//
// Every method takes raw ByteBuffers. So the bytes of a state are never copied into or out of a message: Set reads them
// from gRPC's slices, and Get sends a slice that references the pinned slot. And a request that can't be parsed gets
// MALFORMED_REQUEST, where generated handlers would answer UNIMPLEMENTED.
//
// A state is also sent and taken in chunks (service_streams.cc). Clients that take nothing of an answer, or send
// nothing more, are given up by the watchdog, so that they hold slots for a bounded time.
//
// Where a call runs: reads that never wait run on gRPC's thread; everything else on the Executor. A call's state lives
// until OnDone, which comes after its task has finished it. A Load, Store or Advance that waits for a flag word has no
// thread meanwhile (server/memory/arenas.h); it goes on on the Executor.
#ifndef STATEPOOL_SERVER_RPC_SERVICE_H_
#define STATEPOOL_SERVER_RPC_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/store.h"
#include "server/rpc/admission.h"
#include "server/rpc/executor.h"
#include "server/rpc/handlers.h"
#include "server/rpc/methods.h"
#include "server/rpc/uploads.h"
#include "server/rpc/watchdog.h"
#include "server/telemetry/metrics.h"
#include "statepool/v1/statepool.grpc.pb.h"

namespace statepool {

// Room in a message for what is beside a state and its attachment.
inline constexpr uint64_t kMessageOverheadBytes = 64 << 10;

struct ServiceOptions {
  Identity identity;  // its max_bytes_in_flight limits what is admitted
  size_t executor_threads = 32;
  size_t executor_queue = 4096;
  UploadLimits uploads;
  absl::Duration stream_timeout = absl::Seconds(30);
  DeviceReport devices;
};

// Thread-safe. Everything that it is given must outlive it; it must outlive the server that it is registered with.
class StatePoolService final : public RawStatePoolService {
 public:
  // `arenas`, `leases`: null for none.
  StatePoolService(ServiceOptions options, statepool::Store* store, Arenas* arenas, Leases* leases, const Clock* clock,
                   RpcMetrics* metrics);
  ~StatePoolService() override;

  // From now on new calls are refused: UNAVAILABLE / DRAINING, worth retrying (elsewhere, or after the restart). So are
  // those that wait for flag words.
  void BeginDrain();
  // Waits until no call is running and no answer holds a slot. False: some still do.
  bool WaitIdle(absl::Duration timeout);

  // Bytes of states that were sent to clients, since the start.
  uint64_t sent_bytes() const { return sent_bytes_.load(std::memory_order_relaxed); }
  // Calls that wait for a thread now.
  size_t queued() const { return executor_.queued(); }

#define STATEPOOL_DECLARE(method)                                                                         \
  grpc::ServerUnaryReactor* method(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request, \
                                   grpc::ByteBuffer* response) override;
  STATEPOOL_UNARY_METHODS(STATEPOOL_DECLARE)
#undef STATEPOOL_DECLARE
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetStream(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* SetStream(grpc::CallbackServerContext* context,
                                                       grpc::ByteBuffer* response) override;

 private:
  class CallBase;       // call.h
  class Call;           // service.cc
  class GetStreamCall;  // service_streams.cc
  class SetStreamCall;
  enum class Where { kInline, kExecutor };

  template <typename Request, typename Response>
  using Handler = absl::Status (Handlers::*)(const Op&, const Request&, Response*);
  template <typename Request, typename Response>
  Call* Serve(Call* call, Where where, Handler<Request, Response> handler);
  // Load, Store and Advance: on the executor; with flag words they are finished by whoever sees these reached.
  template <typename Request, typename Response>
  using FlagsHandler = void (Handlers::*)(const Op&, const Request&, Response*, Handlers::Finish);
  template <typename Request, typename Response>
  Call* ServeArena(Call* call, Handler<Request, Response> handler, FlagsHandler<Request, Response> with_flags);

  absl::StatusOr<std::shared_ptr<Admission::Ticket>> AdmitAnswer(uint64_t bytes);
  absl::StatusOr<grpc::ByteBuffer> AnswerWithSlots(std::string small, std::vector<Handlers::PinnedPart> parts,
                                                   const std::shared_ptr<Admission::Ticket>& ticket);

  bool BeginCall();
  void EndCall();

  const ServiceOptions options_;
  statepool::Store* const store_;
  Arenas* const arenas_;
  const Clock* const clock_;
  RpcMetrics* const metrics_;
  Watchdog watchdog_;
  Uploads uploads_;
  Handlers handlers_;
  Admission admission_;

  std::atomic<bool> draining_{false};
  std::atomic<int64_t> running_{0};
  std::atomic<uint64_t> sent_bytes_{0};

  Executor executor_;  // the last: its threads end before anything that they use
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_SERVICE_H_
