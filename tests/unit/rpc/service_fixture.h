// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The service behind a real gRPC server, over a Store with fakes below it and a clock that stands still.
#ifndef STATEPOOL_TESTS_UNIT_RPC_SERVICE_FIXTURE_H_
#define STATEPOOL_TESTS_UNIT_RPC_SERVICE_FIXTURE_H_

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/fakes.h"
#include "rpc/rpc_status.h"
#include "server/rpc/server.h"
#include "server/rpc/service.h"

namespace statepool {

inline constexpr uint64_t kInFlightMax = 4 << 20, kHotBytes = 4 << 20;
inline constexpr size_t kStateBytes = 200'000;  // three leaves and a bit
inline constexpr absl::Duration kStreamTimeout = absl::Seconds(30), kUploadTimeout = absl::Seconds(60);

inline std::string Pattern(size_t bytes, int seed) {
  std::string out(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<char>((i * 31 + seed * 7) % 251);
  return out;
}

class ServiceTest : public ::testing::Test {
 protected:
  static constexpr size_t kExecutorThreads = 4;

  ServiceTest() {
    EXPECT_TRUE(store_.Recover().ok());
    ServiceOptions options;
    options.identity = {"1.2.3", "abc", "0123456789abcdef", 16 << 20, kInFlightMax, 1 << 20, kHotBytes};
    options.executor_threads = kExecutorThreads;
    options.uploads = {3, 64 << 20, kUploadTimeout};
    options.stream_timeout = kStreamTimeout;
    options.devices = [] { return std::vector<v1::DeviceInfo>(1); };
    service_ = std::make_unique<StatePoolService>(options, &store_, /*arenas=*/nullptr, /*leases=*/nullptr, &clock_,
                                                  &metrics_);
    const ServerOptions server_options{{"127.0.0.1:0"}, 16 << 20, 256 << 20};
    absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(server_options, service_.get());
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(server_->addresses()[0], grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::StatePool::NewStub(channel_);

    Register("m", kStateBytes);
  }

  void Register(const std::string& alias, uint64_t state_bytes) {
    v1::RegisterLayoutRequest layout;
    layout.set_alias(alias);
    layout.mutable_layout()->set_model_id("model");
    v1::TensorSpec* tensor = layout.mutable_layout()->add_tensors();
    tensor->set_name("t");
    tensor->set_kind(v1::RECURRENT);
    tensor->set_dtype(v1::UINT8);
    tensor->add_layers(0);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("a");
    axis->set_size(state_bytes);
    v1::LayoutInfo info;
    EXPECT_TRUE(Call(&v1::StatePool::Stub::RegisterLayout, layout, &info).ok());
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return (stub_.get()->*method)(&context, request, response);
  }

  // Any bytes as the request of any method; `method` with its service, or one of ours.
  grpc::Status CallRaw(const std::string& method, const std::vector<std::string>& pieces, grpc::ByteBuffer* response) {
    std::vector<grpc::Slice> slices(pieces.begin(), pieces.end());
    const grpc::ByteBuffer request(slices.data(), slices.size());
    const std::string path = method[0] == '/' ? method : "/statepool.v1.StatePool/" + method;
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Status status;
    auto call = stub.PrepareUnaryCall(&context, path, request, &queue);
    call->StartCall();
    call->Finish(response, &status, nullptr);
    void* tag;
    bool ok;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status;
  }

  // grpc.health.v1: 1 is SERVING, 2 is NOT_SERVING.
  int Health(const std::string& service) {
    const std::string request =
        service.empty() ? "" : absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
    grpc::ByteBuffer response;
    EXPECT_TRUE(CallRaw("/grpc.health.v1.Health/Check", {request}, &response).ok());
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(response.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return bytes.size() == 2 && bytes[0] == 8 ? bytes[1] : -1;
  }

  v1::SetRequest SetOf(const std::string& name, int64_t position, const std::string& data) {
    v1::SetRequest set;
    set.set_sequence(name);
    set.set_layout("m");
    set.set_position(position);
    set.set_data(data);
    return set;
  }
  grpc::Status Get(const std::string& name, v1::GetResponse* response) {
    v1::GetRequest get;
    get.mutable_name()->set_sequence(name);
    return Call(&v1::StatePool::Stub::Get, get, response);
  }

  int64_t LiveImages() {
    MutexLock lock(&disk_.mu);
    return disk_.live_images;
  }

  ManualClock clock_;
  FakeDisk disk_;
  FakeImageStore images_{&disk_};
  FakeNameLog log_{&disk_};
  Store store_{StoreOptions(), &images_, &log_, &clock_};
  RpcMetrics metrics_{MethodNames()};
  std::unique_ptr<StatePoolService> service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_RPC_SERVICE_FIXTURE_H_
