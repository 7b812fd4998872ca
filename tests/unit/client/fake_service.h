// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A server in this process, a generated one, and a proxy before it that cuts connections. For the tests of the client.
#ifndef STATEPOOL_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_
#define STATEPOOL_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_

#include <arpa/inet.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace statepool::client {

inline google::rpc::Status ErrorDetails(grpc::StatusCode code, const std::string& reason, const std::string& field,
                                        int retry_ms = -1) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("statepool.v1");
  if (!field.empty()) (*info.mutable_metadata())["field"] = field;
  (*info.mutable_metadata())["limit"] = "7";
  google::rpc::Status details;
  details.set_code(code);
  details.set_message("told so");
  details.add_details()->PackFrom(info);
  if (retry_ms >= 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(retry_ms * 1000000);
    details.add_details()->PackFrom(retry);
  }
  return details;
}

// With retry_ms >= 0 also RetryInfo.
inline grpc::Status Error(grpc::StatusCode code, const std::string& reason, const std::string& field,
                          int retry_ms = -1) {
  return grpc::Status(code, "told so", ErrorDetails(code, reason, field, retry_ms).SerializeAsString());
}

// As a client sees a connection that broke.
inline grpc::Status Broken() { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed"); }

inline std::string Bytes(size_t n) {
  std::string bytes(n, '\0');
  uint32_t x = 1;
  for (char& c : bytes) c = static_cast<char>((x = x * 1664525 + 1013904223) >> 24);
  return bytes;
}

class FakeServer {
 public:
  explicit FakeServer(grpc::Service* service, int max_message_bytes = 64 << 20) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(max_message_bytes);
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  grpc::Server& server() { return *server_; }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// Forwards connections to a port, and cuts each after it carried `limit_bytes` in both directions together.
class CuttingProxy {
 public:
  explicit CuttingProxy(int to_port) : to_port_(to_port), listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = Loopback(0);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~CuttingProxy() {
    stop_ = true;
    acceptor_.join();
    for (std::thread& thread : forwarders_) thread.join();
    close(listener_);
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  // Of connections from now on, and of those that are there.
  void SetLimit(int64_t bytes) { limit_bytes_ = bytes; }
  int cuts() const { return cuts_; }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
  }

  void Accept() {
    while (!stop_) {
      pollfd wait = {listener_, POLLIN, 0};
      if (poll(&wait, 1, 10) <= 0) continue;
      const int from = accept(listener_, nullptr, nullptr);
      const int to = socket(AF_INET, SOCK_STREAM, 0);
      const sockaddr_in address = Loopback(to_port_);
      EXPECT_EQ(connect(to, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
      forwarders_.emplace_back([this, from, to] { Forward(from, to); });
    }
  }

  void Forward(int a, int b) {
    pollfd ends[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
    std::vector<char> buffer(16384);
    int64_t carried = 0;
    for (bool open = true; open && !stop_;) {
      if (poll(ends, 2, 10) <= 0) continue;
      for (int i = 0; i < 2 && open; ++i) {
        if (ends[i].revents == 0) continue;
        const int64_t room = limit_bytes_ - carried;
        const ssize_t n = room <= 0 ? 0 : read(ends[i].fd, buffer.data(), std::min<int64_t>(room, buffer.size()));
        open = n > 0 && send(ends[1 - i].fd, buffer.data(), static_cast<size_t>(n), MSG_NOSIGNAL) == n;
        carried += std::max<ssize_t>(n, 0);
        if (room <= 0) ++cuts_;
      }
    }
    close(a);
    close(b);
  }

  const int to_port_;
  const int listener_;
  int port_ = 0;
  std::atomic<int64_t> limit_bytes_ = INT64_MAX;
  std::atomic<int> cuts_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread acceptor_;
  std::vector<std::thread> forwarders_;
};

}  // namespace statepool::client

#endif  // STATEPOOL_TESTS_UNIT_CLIENT_FAKE_SERVICE_H_
