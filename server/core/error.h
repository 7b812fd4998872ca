// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Errors that tell a program (code, reason, field) and a person (message) what to do.
//
// An error is an absl::Status that carries an ErrorDetail as a payload; server/rpc turns it into google.rpc.ErrorInfo
// and RetryInfo. The table of all reasons stands in proto/statepool/v1/statepool.proto.
#ifndef STATEPOOL_SERVER_CORE_ERROR_H_
#define STATEPOOL_SERVER_CORE_ERROR_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace statepool {

struct ErrorDetail {
  std::string reason;                                         // a row of the table
  std::string field;                                          // path of the request's field at fault, or empty
  std::vector<std::pair<std::string, std::string>> metadata;  // what else the table names
  absl::Duration retry_after = absl::ZeroDuration();          // > 0: worth retrying after this
};

// Fluent, because most errors have two or three of these:
//   return Error(absl::StatusCode::kAborted, "REVISION_MISMATCH", "…").Field("if_revision").Meta("revision", 7);
class Error {
 public:
  Error(absl::StatusCode code, absl::string_view reason, absl::string_view message);
  Error& Field(absl::string_view field);
  Error& Meta(absl::string_view key, absl::string_view value);
  Error& Meta(absl::string_view key, uint64_t value);
  Error& RetryAfter(absl::Duration after);
  operator absl::Status() const;  // NOLINT: meant to be implicit

 private:
  absl::StatusCode code_;
  std::string message_;
  ErrorDetail detail_;
};

// The detail of an error made above; for any other error its reason is INTERNAL, and empty for OK.
ErrorDetail GetErrorDetail(const absl::Status& status);

// Shorthand: the reason alone.
std::string ReasonOf(const absl::Status& status);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_ERROR_H_
