// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/op.h"

#include "server/core/error.h"

namespace statepool {

absl::Status Op::Check(const Clock& clock) const {
  if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
    return Error(absl::StatusCode::kCancelled, "CANCELLED", "the caller gave up; nothing was changed");
  }
  if (deadline != kNever && clock.Now() >= deadline) {
    return Error(
        absl::StatusCode::kDeadlineExceeded, "DEADLINE",
        "the deadline passed while waiting; nothing was changed. Retry with a longer one and the same request_id");
  }
  return absl::OkStatus();
}

}  // namespace statepool
