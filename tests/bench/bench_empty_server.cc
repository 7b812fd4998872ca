// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The baseline of the `control` figure: a server whose one method is an empty unary callback (empty request, empty
// answer). It prints its address and serves until its stdin ends.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <string>

#include "statepool/v1/statepool.grpc.pb.h"

namespace {

class EmptyService final : public statepool::v1::StatePool::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetCapabilities(grpc::CallbackServerContext* context,
                                            const statepool::v1::GetCapabilitiesRequest* /*request*/,
                                            statepool::v1::Capabilities* /*response*/) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

}  // namespace

int main() {
  EmptyService service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 2;
  std::printf("{\"event\":\"ready\",\"listen\":[\"127.0.0.1:%d\"]}\n", port);
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server->Shutdown();
  return 0;
}
