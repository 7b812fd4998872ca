// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// RpcServer: listens, and carries the service together with gRPC's health and reflection services.
#ifndef STATEPOOL_SERVER_RPC_SERVER_H_
#define STATEPOOL_SERVER_RPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/rpc/service.h"

namespace statepool {

struct ServerOptions {
  // host:port (port 0 picks a free one), [ipv6]:port, unix:PATH.
  std::vector<std::string> listen;
  uint64_t max_message_bytes = 0;  // above it the transport refuses a message, in both directions
  // What all connections together may use for messages that are being read; beyond it connections are slowed, then
  // dropped.
  uint64_t quota_bytes = 0;
};

class RpcServer {
 public:
  // Listens and serves, health SERVING. `service` must outlive the server.
  // Errors: an address that can't be used (INVALID_ARGUMENT, or FAILED_PRECONDITION when somebody else listens there).
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const ServerOptions& options, StatePoolService* service);
  // Cancels whatever still runs, and waits for it.
  ~RpcServer();
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  // As in ServerOptions, in its order, with the real ports.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // First half of an orderly stop: health says NOT_SERVING, new calls are refused with DRAINING, running ones may end
  // within `grace`. After it the server still answers, with refusals. False: some calls did not end, not even after
  // they were cancelled.
  bool Drain(absl::Duration grace);
  // Second half: cancels what runs, closes connections and removes sockets. False: not done within `patience`, and
  // still under way. (gRPC can take 10 s over a connection that took a large answer.)
  bool Stop(absl::Duration patience);

 private:
  RpcServer() = default;
  void BeginShutdown();

  StatePoolService* service_ = nullptr;
  std::vector<std::string> addresses_;
  std::unique_ptr<grpc::Server> server_;
  std::future<void> shutdown_;  // from Stop on, or since calls outlived Drain's grace
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_SERVER_H_
