// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/errors.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"

namespace statepool::client {
namespace {

constexpr char kPayload[] = "type.googleapis.com/google.rpc.Status";
constexpr char kDomain[] = "statepool.client";

const char* ReasonWithoutDetails(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnavailable: return "UNREACHABLE";
    case absl::StatusCode::kDeadlineExceeded: return "DEADLINE";
    case absl::StatusCode::kCancelled: return "CANCELLED";
    case absl::StatusCode::kResourceExhausted: return "MESSAGE_TOO_LARGE";
    case absl::StatusCode::kUnimplemented: return "UNIMPLEMENTED";
    default: return "";
  }
}

}  // namespace

ErrorDetail GetErrorDetail(const absl::Status& status) {
  ErrorDetail detail;
  detail.code = status.code();
  detail.message = std::string(status.message());
  google::rpc::Status details;
  if (const auto payload = status.GetPayload(kPayload)) details.ParseFromString(std::string(*payload));
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      detail.reason = info.reason();
      detail.metadata.insert(info.metadata().begin(), info.metadata().end());
    } else if (any.UnpackTo(&retry)) {
      detail.retry_after = std::max(absl::ZeroDuration(), absl::Seconds(retry.retry_delay().seconds()) +
                                                              absl::Nanoseconds(retry.retry_delay().nanos()));
    }
  }
  if (auto field = detail.metadata.extract("field")) detail.field = field.mapped();
  if (detail.reason.empty()) detail.reason = ReasonWithoutDetails(detail.code);
  return detail;
}

absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view field,
                       absl::string_view message, const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  if (!field.empty()) (*info.mutable_metadata())["field"] = std::string(field);
  google::rpc::Status details;
  details.set_code(static_cast<int>(code));
  details.add_details()->PackFrom(info);
  absl::Status status(code, message);
  status.SetPayload(kPayload, absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (!status.error_details().empty()) result.SetPayload(kPayload, absl::Cord(status.error_details()));
  return result;
}

absl::Status FromItemError(const google::rpc::Status& error) {
  if (error.code() == 0)
    return MakeError(absl::StatusCode::kInternal, "MALFORMED_RESPONSE", "", "an error whose code is OK");
  absl::Status result(static_cast<absl::StatusCode>(error.code()), error.message());
  result.SetPayload(kPayload, absl::Cord(error.SerializeAsString()));
  return result;
}

}  // namespace statepool::client
