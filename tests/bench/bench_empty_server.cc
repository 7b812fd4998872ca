// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The baseline of the `control`, `clients` and `local` figures: what gRPC alone costs. A server whose GetCapabilities
// is an empty unary callback (empty request, empty answer), whose Get gives the same 80,000 bytes whatever it is asked,
// and whose Set takes any message and forgets it; these two raw, as the daemon's are. It prints its address and serves
// until its stdin ends.
//
//   statepool_bench_empty_server [unix:PATH]    default: a free port of the loopback
#include <grpcpp/grpcpp.h>
#include <malloc.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/synchronization/mutex.h"
#include "proto/wire.h"
#include "statepool/v1/statepool.grpc.pb.h"

namespace {

constexpr size_t kStateBytes = 80'000;

using Pool = statepool::v1::StatePool;
using Base = Pool::WithRawCallbackMethod_Get<
    Pool::WithRawCallbackMethod_Set<Pool::WithCallbackMethod_GetCapabilities<Pool::Service>>>;

class EmptyService final : public Base {
 public:
  grpc::ServerUnaryReactor* GetCapabilities(grpc::CallbackServerContext* context,
                                            const statepool::v1::GetCapabilitiesRequest* /*request*/,
                                            statepool::v1::Capabilities* /*response*/) override {
    return Finish(context);
  }
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* /*request*/,
                                grpc::ByteBuffer* response) override {
    *response = statepool::wire::Join("", statepool::wire::kDataField, {state_});
    return Finish(context);
  }
  grpc::ServerUnaryReactor* Set(grpc::CallbackServerContext* context, const grpc::ByteBuffer* /*request*/,
                                grpc::ByteBuffer* response) override {
    *response = statepool::wire::Join("", statepool::wire::kDataField, {});
    return Finish(context);
  }

 private:
  static grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const grpc::Slice state_{std::string(kStateBytes, 's')};
};

}  // namespace

int main(int argc, char** argv) {
  // As the daemon (server/main.cc).
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  mallopt(M_TOP_PAD, 16 << 20);
  EmptyService service;
  int port = 0;
  grpc::ServerBuilder builder;
  std::string address = argc > 1 ? argv[1] : "127.0.0.1:0";
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 2;
  if (argc <= 1) address = "127.0.0.1:" + std::to_string(port);
  std::printf("{\"event\":\"ready\",\"listen\":[\"%s\"]}\n", address.c_str());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server->Shutdown();
  return 0;
}
