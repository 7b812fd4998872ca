// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Where time comes from. Everything that depends on time takes a Clock, so that tests own it.
#ifndef STATEPOOL_SERVER_CORE_CLOCK_H_
#define STATEPOOL_SERVER_CORE_CLOCK_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace statepool {

// A point on the monotonic clock: nanoseconds since some moment before the process started. Never compared across
// restarts.
using MonoTime = int64_t;
inline constexpr MonoTime kNever = INT64_MAX;

// `time` + `by`, which is not negative; kNever when that is beyond what MonoTime can tell (292 years).
inline MonoTime After(MonoTime time, absl::Duration by) {
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(by);  // saturates
  return nanoseconds >= kNever - time ? kNever : time + nanoseconds;
}

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;        // monotonic; what leases, idle times and deadlines run on
  virtual absl::Time WallNow() const = 0;  // may jump; only for what must survive a restart, and for people
};

class SystemClock final : public Clock {
 public:
  MonoTime Now() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  absl::Time WallNow() const override { return absl::Now(); }
};

// For tests: stands still until it is moved, or moves on by itself a little at each look.
class ManualClock final : public Clock {
 public:
  MonoTime Now() const override { return mono_.fetch_add(tick_.load()) + tick_.load(); }
  absl::Time WallNow() const override { return absl::FromUnixNanos(wall_.load()); }
  void Advance(absl::Duration by) {
    mono_ += absl::ToInt64Nanoseconds(by);
    wall_ += absl::ToInt64Nanoseconds(by);
  }
  void JumpWall(absl::Duration by) { wall_ += absl::ToInt64Nanoseconds(by); }
  void SetTick(absl::Duration each_look) { tick_ = absl::ToInt64Nanoseconds(each_look); }

 private:
  mutable std::atomic<int64_t> mono_{int64_t{1} << 40};
  std::atomic<int64_t> tick_{0};
  std::atomic<int64_t> wall_{1'700'000'000'000'000'000};
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_CLOCK_H_
