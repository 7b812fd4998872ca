// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/errors.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "server/core/error.h"
#include "server/rpc/convert.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

// The message travels twice (grpc-message, where each byte may become three, and google.rpc.Status), metadata once, in
// base64.
constexpr size_t kMessageBytesMax = 768;
constexpr size_t kValueBytesMax = 512;
constexpr size_t kValuesMax = 4;

std::string Cut(absl::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return std::string(text);
  constexpr absl::string_view kMore = "...";
  size_t end = bytes_max - kMore.size();
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a character
  return absl::StrCat(text.substr(0, end), kMore);
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(rpc.code()), rpc.message(), rpc.SerializeAsString());
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  ErrorDetail detail = GetErrorDetail(status);
  absl::StatusCode code = status.code();
  if (detail.reason == "INTERNAL") {  // made as such, or by somebody who knows no details
    if (code == absl::StatusCode::kDeadlineExceeded) {
      detail.reason = "DEADLINE";
    } else if (code == absl::StatusCode::kCancelled) {
      detail.reason = "CANCELLED";
    } else {
      spdlog::error("internal error: {}", status.ToString());
      code = absl::StatusCode::kInternal;
    }
  }

  google::rpc::ErrorInfo info;
  info.set_reason(detail.reason);
  info.set_domain(std::string(kErrorDomain));
  if (!detail.field.empty()) (*info.mutable_metadata())["field"] = Cut(detail.field, kValueBytesMax);
  for (size_t i = 0; i < detail.metadata.size() && i < kValuesMax; ++i) {
    (*info.mutable_metadata())[detail.metadata[i].first] = Cut(detail.metadata[i].second, kValueBytesMax);
  }
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(code));
  rpc.set_message(Cut(status.message(), kMessageBytesMax));
  rpc.add_details()->PackFrom(info);
  if (detail.retry_after > absl::ZeroDuration()) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() = ToProto(detail.retry_after);
    rpc.add_details()->PackFrom(retry);
  }
  return rpc;
}

absl::Status InvalidArgument(absl::string_view reason, absl::string_view field, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, reason, message).Field(field);
}

absl::Status BelowField(const absl::Status& status, absl::string_view parent) {
  if (status.ok()) return status;
  const ErrorDetail detail = GetErrorDetail(status);
  Error error(status.code(), detail.reason, status.message());
  error.Field(detail.field.empty() ? std::string(parent) : absl::StrCat(parent, ".", detail.field));
  for (const auto& [key, value] : detail.metadata) error.Meta(key, value);
  return error.RetryAfter(detail.retry_after);
}

}  // namespace statepool
