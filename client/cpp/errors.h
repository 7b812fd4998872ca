// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Errors as programs want them: the reason, the field at fault and the retry hint, out of an absl::Status.
//
// Statuses of this client carry google.rpc.Status (as the daemon sent it, or as the client made it) as a payload. The
// reasons of the daemon are the table in proto/statepool/v1/statepool.proto. Where a call ended without the daemon's
// word, the reason is one of:
//   UNREACHABLE         UNAVAILABLE: no connection, or it broke
//   DEADLINE, CANCELLED the call ended before an answer came: a write is whole or absent
//   MESSAGE_TOO_LARGE   RESOURCE_EXHAUSTED: the transport's cap on messages
//   CORRUPT             DATA_LOSS: bytes arrived that don't have their checksum (metadata: expected, actual)
//   MALFORMED_RESPONSE  INTERNAL: an answer that this contract doesn't allow
//   UNIMPLEMENTED       the daemon doesn't know this call
//   INVALID_ADDRESS, INVALID_OPTION, BYTES_LENGTH_MISMATCH   INVALID_ARGUMENT: refused before anything was sent
// those of arena.h and of the headers in engines/, and empty for any other.
//
// All functions are thread-safe.
#ifndef STATEPOOL_CLIENT_CPP_ERRORS_H_
#define STATEPOOL_CLIENT_CPP_ERRORS_H_

#include <grpcpp/support/status.h>

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"

namespace statepool::client {

struct ErrorDetail {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string reason;
  std::string field;  // the path of the request's field at fault; empty: none
  std::string message;
  std::map<std::string, std::string> metadata;  // what else the table names, without "field"
  std::optional<absl::Duration> retry_after;    // set: worth retrying, after this delay
};

// Works for any status, also for one that this client never saw.
ErrorDetail GetErrorDetail(const absl::Status& status);

// A status that GetErrorDetail takes apart again.
absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view field,
                       absl::string_view message, const std::map<std::string, std::string>& metadata = {});

// The same for calls made with the generated stub.
absl::Status FromGrpcStatus(const grpc::Status& status);

// The same for the error of one item of an answer (BatchGetItem, BatchWriteResult, TouchedName). REQUIRES: it is set,
// so OK in it is a fault of the daemon: INTERNAL / MALFORMED_RESPONSE.
absl::Status FromItemError(const google::rpc::Status& error);

// OK, or the error of an item that has one.
template <typename Item>
absl::Status ToStatus(const Item& item) {
  return item.has_error() ? FromItemError(item.error()) : absl::OkStatus();
}

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_ERRORS_H_
