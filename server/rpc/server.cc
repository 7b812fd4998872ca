// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/socket.h>

#include <chrono>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/rpc/unix_socket.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr int kStreamsPerConnectionMax = 10'000;
constexpr int kFrameBytesMax = 1 << 20;
// How long a call may take to end once it was cancelled: it may be inside one write to a slow disk.
constexpr absl::Duration kCancelGrace = absl::Seconds(10);

// PATH of unix:PATH and unix:///PATH.
std::optional<std::string> UnixPath(absl::string_view address) {
  if (!absl::ConsumePrefix(&address, "unix:")) return std::nullopt;
  if (absl::StartsWith(address, "///")) address.remove_prefix(2);
  return std::string(address);
}

// What the libraries say goes where our own lines go. Much of it is about what a client sent: not worth more than a
// debug line each.
void LogOfGrpc(gpr_log_func_args* args) {
  spdlog::log(args->severity == GPR_LOG_SEVERITY_ERROR ? spdlog::level::info : spdlog::level::debug, "grpc: {}",
              args->message);
}
void LogOfProtobuf(google::protobuf::LogLevel level, const char*, int, const std::string& message) {
  spdlog::log(level == google::protobuf::LOGLEVEL_FATAL ? spdlog::level::critical : spdlog::level::debug,
              "protobuf: {}", message);
}

// host:port and [ipv6]:port; anything else gRPC would take for a name to resolve, or for another scheme.
absl::Status CheckHostPort(absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port;
  if (colon == absl::string_view::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535 || absl::StrContains(address, '/')) {
    return absl::InvalidArgumentError(
        absl::StrCat("not an address to listen on: '", address, "'; give host:port or unix:PATH"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const ServerOptions& options, StatePoolService* service) {
  static std::once_flag plugins;
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    gpr_set_log_function(LogOfGrpc);
    google::protobuf::SetLogHandler(LogOfProtobuf);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });

  grpc::ServerBuilder builder;
  std::vector<int> ports(options.listen.size(), 0);
  for (size_t i = 0; i < options.listen.size(); ++i) {
    const std::string& address = options.listen[i];
    const std::optional<std::string> path = UnixPath(address);
    const absl::Status usable = path.has_value() ? ClearSocket(*path, SOCK_STREAM) : CheckHostPort(address);
    if (!usable.ok()) return usable;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(service);

  const int message_bytes = static_cast<int>(std::min<uint64_t>(options.max_message_bytes, INT32_MAX));
  builder.SetMaxReceiveMessageSize(message_bytes);
  builder.SetMaxSendMessageSize(message_bytes);
  grpc::ResourceQuota quota("statepool");
  quota.Resize(options.quota_bytes);
  builder.SetResourceQuota(quota);
  // Of what clients send. The default of 16 KiB cuts a state into hundreds of frames, each with its own bookkeeping.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax);
  // Otherwise a second daemon would share the port, and each get half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Finds dead peers within a minute and a half; lets clients ping as often as every 10 s, also without calls.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);

  std::unique_ptr<RpcServer> server(new RpcServer);
  server->service_ = service;
  server->server_ = builder.BuildAndStart();
  for (size_t i = 0; i < options.listen.size(); ++i) {
    const std::string& address = options.listen[i];
    if (server->server_ == nullptr || ports[i] == 0) {
      // gRPC reports the first address that failed by a port of 0, and stops there.
      if (ports[i] != 0) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("cannot listen on ", address, ": is it in use, or not an address of this machine?"));
    }
    const bool picked = !UnixPath(address).has_value();
    server->addresses_.push_back(picked ? absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[i]) : address);
  }
  if (server->server_ == nullptr) return absl::InternalError("gRPC could not start a server");
  server->server_->GetHealthCheckService()->SetServingStatus(v1::StatePool::service_full_name(), true);
  return server;
}

RpcServer::~RpcServer() { Stop(absl::InfiniteDuration()); }

bool RpcServer::Drain(absl::Duration grace) {
  server_->GetHealthCheckService()->SetServingStatus(false);  // of all services
  service_->BeginDrain();
  if (service_->WaitIdle(grace)) return true;
  spdlog::warn("calls still run after {}; cancelling them", absl::FormatDuration(grace));
  BeginShutdown();
  return service_->WaitIdle(kCancelGrace);
}

bool RpcServer::Stop(absl::Duration patience) {
  BeginShutdown();
  if (patience == absl::InfiniteDuration()) {
    shutdown_.wait();
    return true;
  }
  return shutdown_.wait_for(absl::ToChronoMilliseconds(patience)) == std::future_status::ready;
}

// gRPC cancels at once, and then waits without end, also in its destructor: on a thread of its own.
void RpcServer::BeginShutdown() {
  if (shutdown_.valid()) return;
  shutdown_ = std::async(std::launch::async, [server = std::move(server_)]() mutable {
    if (server != nullptr) server->Shutdown(std::chrono::system_clock::now());
    server.reset();
  });
}

}  // namespace statepool
