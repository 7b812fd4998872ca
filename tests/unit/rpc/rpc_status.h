// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What a client sees of an error: the details of a grpc::Status, taken apart.
#ifndef STATEPOOL_TESTS_UNIT_RPC_RPC_STATUS_H_
#define STATEPOOL_TESTS_UNIT_RPC_RPC_STATUS_H_

#include <google/protobuf/any.pb.h>
#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace statepool {

struct RpcDetails {
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  std::optional<google::rpc::RetryInfo> retry;

  std::string Meta(const std::string& key) const {
    const auto it = info.metadata().find(key);
    return it == info.metadata().end() ? "" : it->second;
  }
};

inline RpcDetails DetailsOf(const grpc::Status& status) {
  RpcDetails details;
  details.status.ParseFromString(status.error_details());
  for (const google::protobuf::Any& any : details.status.details()) {
    if (any.Is<google::rpc::ErrorInfo>()) any.UnpackTo(&details.info);
    if (any.Is<google::rpc::RetryInfo>()) any.UnpackTo(&details.retry.emplace());
  }
  return details;
}

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_RPC_RPC_STATUS_H_
