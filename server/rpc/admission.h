// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Admission: a limit on the bytes of states that are inside calls, on their way in or out.
//
// gRPC reads a message before its handler runs, so memory is bounded by refusing early and giving the message back at
// once: a call that finds the limit reached fails with ADMISSION and a hint to retry; nothing waits.
#ifndef STATEPOOL_SERVER_RPC_ADMISSION_H_
#define STATEPOOL_SERVER_RPC_ADMISSION_H_

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace statepool {

// Thread-safe. Must outlive its tickets.
class Admission {
 public:
  // Bytes that may be in flight; gives them back when it goes. Movable. An empty ticket holds nothing.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)), bytes_(other.bytes_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      Release();
      owner_ = std::exchange(other.owner_, nullptr);
      bytes_ = other.bytes_;
      return *this;
    }
    ~Ticket() { Release(); }

    uint64_t bytes() const { return owner_ == nullptr ? 0 : bytes_; }
    void Release();

   private:
    friend class Admission;
    Ticket(Admission* owner, uint64_t bytes) : owner_(owner), bytes_(bytes) {}
    Admission* owner_ = nullptr;
    uint64_t bytes_ = 0;
  };

  explicit Admission(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // Errors, with `limit`: RESOURCE_EXHAUSTED / ADMISSION, worth retrying; MESSAGE_TOO_LARGE where no retry would help.
  absl::StatusOr<Ticket> Admit(uint64_t bytes);

  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t bytes_in_flight() const { return in_flight_.load(); }

 private:
  const uint64_t limit_bytes_;
  std::atomic<uint64_t> in_flight_{0};
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_ADMISSION_H_
