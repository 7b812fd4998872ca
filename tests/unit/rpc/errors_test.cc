// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/errors.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "rpc/rpc_status.h"
#include "server/core/clock.h"
#include "server/core/error.h"
#include "server/core/op.h"

namespace statepool {
namespace {

TEST(Errors, OkStaysOk) { EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok()); }

TEST(Errors, AnErrorCarriesItsReasonFieldAndMetadata) {
  const grpc::Status status = ToGrpcStatus(
      Error(absl::StatusCode::kAborted, "REVISION_MISMATCH", "read it again").Field("if_revision").Meta("revision", 7));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(status.error_message(), "read it again");
  const RpcDetails details = DetailsOf(status);
  EXPECT_EQ(details.status.code(), static_cast<int>(grpc::StatusCode::ABORTED));
  EXPECT_EQ(details.status.message(), "read it again");
  EXPECT_EQ(details.info.domain(), "statepool.v1");
  EXPECT_EQ(details.info.reason(), "REVISION_MISMATCH");
  EXPECT_EQ(details.Meta("field"), "if_revision");
  EXPECT_EQ(details.Meta("revision"), "7");
  EXPECT_FALSE(details.retry.has_value());
}

TEST(Errors, ACancelledCallSaysSo) {
  const std::atomic<bool> cancelled{true};
  Op op;
  op.cancelled = &cancelled;
  const grpc::Status status = ToGrpcStatus(op.Check(ManualClock()));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(DetailsOf(status).info.reason(), "CANCELLED");
  EXPECT_EQ(DetailsOf(status).info.domain(), "statepool.v1");
  EXPECT_FALSE(DetailsOf(status).retry.has_value());
  EXPECT_NE(status.error_message(), "");
}

TEST(Errors, WhatIsWorthRetryingSaysAfterWhatDelay) {
  const RpcDetails details = DetailsOf(
      ToGrpcStatus(Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", "").RetryAfter(absl::Milliseconds(1'250))));
  ASSERT_TRUE(details.retry.has_value());
  EXPECT_EQ(details.retry->retry_delay().seconds(), 1);
  EXPECT_EQ(details.retry->retry_delay().nanos(), 250'000'000);
  EXPECT_FALSE(details.info.metadata().contains("field"));
}

TEST(Errors, AStatusWithoutDetailsIsADefectOfTheDaemon) {
  const grpc::Status status = ToGrpcStatus(absl::NotFoundError("some library said so"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(DetailsOf(status).info.reason(), "INTERNAL");
}

TEST(Errors, DeadlinesAndCancellationsKeepTheirCodes) {
  const grpc::Status late = ToGrpcStatus(absl::DeadlineExceededError(""));
  EXPECT_EQ(late.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(late).info.reason(), "DEADLINE");
  const grpc::Status cancelled = ToGrpcStatus(absl::CancelledError(""));
  EXPECT_EQ(cancelled.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(DetailsOf(cancelled).info.reason(), "CANCELLED");
}

TEST(Errors, TheLongestErrorFitsIntoTrailers) {
  std::string long_text;
  for (int i = 0; i < 10'000; ++i) long_text += "ä";
  const grpc::Status status = ToGrpcStatus(Error(absl::StatusCode::kNotFound, "POSITION_MISMATCH", long_text)
                                               .Field(long_text)
                                               .Meta("positions", long_text)
                                               .Meta("expected", long_text)
                                               .Meta("actual", long_text)
                                               .Meta("limit", long_text));
  // As HTTP/2 counts them: each byte of the message may become three, details become base64.
  EXPECT_LT(status.error_message().size() * 3 + status.error_details().size() * 4 / 3, 8'000u);
  const RpcDetails details = DetailsOf(status);  // parses, so no character was cut in two
  EXPECT_TRUE(absl::EndsWith(details.Meta("positions"), "ä..."));
  EXPECT_TRUE(absl::EndsWith(status.error_message(), "ä..."));
}

TEST(Errors, BelowFieldPrefixesTheFieldAndKeepsTheRest) {
  const absl::Status inner =
      Error(absl::StatusCode::kInvalidArgument, "INVALID_LAYOUT", "why").Field("layers").Meta("limit", 3);
  const ErrorDetail outer = GetErrorDetail(BelowField(inner, "preset.mamba1"));
  EXPECT_EQ(outer.reason, "INVALID_LAYOUT");
  EXPECT_EQ(outer.field, "preset.mamba1.layers");
  EXPECT_EQ(outer.metadata.size(), 1u);
  EXPECT_EQ(GetErrorDetail(BelowField(Error(absl::StatusCode::kInvalidArgument, "X", ""), "layout")).field, "layout");
}

}  // namespace
}  // namespace statepool
