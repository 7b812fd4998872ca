// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/admission.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/error.h"

namespace statepool {

absl::StatusOr<Admission::Ticket> Admission::Admit(uint64_t bytes) {
  if (bytes > limit_bytes_) {
    return Error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                 absl::StrCat("a message of ", bytes, " bytes is larger than all that may be in flight; use a stream"))
        .Meta("limit", limit_bytes_);
  }
  uint64_t now = in_flight_.load(std::memory_order_relaxed);
  do {
    if (now > limit_bytes_ - bytes) {
      return Error(absl::StatusCode::kResourceExhausted, "ADMISSION",
                   absl::StrCat(bytes, " bytes more would exceed the limit of ", limit_bytes_, " bytes in flight (",
                                now, " now); retry later"))
          .Meta("limit", limit_bytes_)
          .RetryAfter(absl::Milliseconds(50));
    }
  } while (!in_flight_.compare_exchange_weak(now, now + bytes));
  return Ticket(this, bytes);
}

void Admission::Ticket::Release() {
  if (owner_ != nullptr) owner_->in_flight_.fetch_sub(bytes_);
  owner_ = nullptr;
}

}  // namespace statepool
