// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Errors of core as gRPC says them: google.rpc.Status with ErrorInfo, and RetryInfo on those worth retrying.
// The table of reasons stands in proto/statepool/v1/statepool.proto.
#ifndef STATEPOOL_SERVER_RPC_ERRORS_H_
#define STATEPOOL_SERVER_RPC_ERRORS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/rpc/status.pb.h"

namespace statepool {

inline constexpr absl::string_view kErrorDomain = "statepool.v1";

// OK stays OK. A status without an ErrorDetail is a defect and becomes INTERNAL, but for deadlines and cancellations;
// INTERNAL errors are logged. Message and metadata are cut to sizes that fit HTTP/2 trailers (8 KiB), at a character's
// border.
grpc::Status ToGrpcStatus(const absl::Status& status);
// The same as the error of an item. REQUIRES: not OK.
google::rpc::Status ToRpcStatus(const absl::Status& status);

// INVALID_ARGUMENT, with `reason` and `field`.
absl::Status InvalidArgument(absl::string_view reason, absl::string_view field, absl::string_view message);

// The same error, its field seen from one message further out: "layers" below "preset.mamba1" is
// "preset.mamba1.layers".
absl::Status BelowField(const absl::Status& status, absl::string_view parent);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_ERRORS_H_
