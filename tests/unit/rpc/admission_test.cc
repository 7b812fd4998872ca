// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/admission.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "absl/time/time.h"
#include "server/core/error.h"

namespace statepool {
namespace {

TEST(Admission, AdmitsUpToTheLimitAndNotOneByteMore) {
  Admission admission(100);
  absl::StatusOr<Admission::Ticket> first = admission.Admit(60);
  absl::StatusOr<Admission::Ticket> second = admission.Admit(40);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(admission.bytes_in_flight(), 100u);
  EXPECT_FALSE(admission.Admit(1).ok());
  EXPECT_TRUE(admission.Admit(0).ok());
}

TEST(Admission, ARefusalNamesTheLimitAndWhenToRetry) {
  Admission admission(100);
  absl::StatusOr<Admission::Ticket> first = admission.Admit(60);
  const absl::Status refused = admission.Admit(41).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const ErrorDetail detail = GetErrorDetail(refused);
  EXPECT_EQ(detail.reason, "ADMISSION");
  EXPECT_EQ(detail.metadata, (std::vector<std::pair<std::string, std::string>>{{"limit", "100"}}));
  EXPECT_GT(detail.retry_after, absl::ZeroDuration());
  EXPECT_EQ(admission.bytes_in_flight(), 60u);
}

TEST(Admission, WhatNeverFitsIsNotWorthARetry) {
  Admission admission(100);
  const ErrorDetail detail = GetErrorDetail(admission.Admit(101).status());
  EXPECT_EQ(detail.reason, "MESSAGE_TOO_LARGE");
  EXPECT_EQ(detail.metadata, (std::vector<std::pair<std::string, std::string>>{{"limit", "100"}}));
  EXPECT_EQ(detail.retry_after, absl::ZeroDuration());
}

TEST(Admission, HugeRequestsDoNotOverflow) {
  Admission admission(UINT64_MAX);
  absl::StatusOr<Admission::Ticket> most = admission.Admit(UINT64_MAX - 1);
  EXPECT_TRUE(most.ok());
  EXPECT_FALSE(admission.Admit(UINT64_MAX).ok());
}

TEST(Admission, ATicketGivesItsBytesBackOnceHoweverItIsMoved) {
  Admission admission(100);
  {
    Admission::Ticket outer;
    {
      Admission::Ticket inner = *admission.Admit(70);
      outer = std::move(inner);
    }
    EXPECT_EQ(admission.bytes_in_flight(), 70u);
    EXPECT_EQ(outer.bytes(), 70u);
    outer = *admission.Admit(20);  // the old 70 go back
    EXPECT_EQ(admission.bytes_in_flight(), 20u);
    outer.Release();
    outer.Release();
    EXPECT_EQ(outer.bytes(), 0u);
  }
  EXPECT_EQ(admission.bytes_in_flight(), 0u);
}

}  // namespace
}  // namespace statepool
