// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/flag_waiter.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

constexpr std::chrono::nanoseconds kLookMin = std::chrono::microseconds(20), kLookMax = std::chrono::milliseconds(1);
constexpr int64_t kLooksInAge = 64;
constexpr unsigned long kTimerSlackNs = 1'000;  // NOLINT(google-runtime-int): what prctl takes. By default 50 us

absl::Status Draining() {
  return Error(absl::StatusCode::kUnavailable, "DRAINING",
               "the daemon is stopping, and waits for flag words no more; retry elsewhere, or when it is back")
      .RetryAfter(absl::Seconds(1));
}

}  // namespace

FlagWaiter::FlagWaiter(size_t waits_max, const Clock* clock) : waits_max_(waits_max), clock_(clock) {
  thread_ = std::thread([this] { Run(); });
}

FlagWaiter::~FlagWaiter() {
  Drain();
  thread_.join();
}

absl::Status FlagWaiter::Wait(std::shared_ptr<const FlagWords> words, std::optional<FlagValue> until, const Op& op,
                              const std::atomic<bool>* ended, Then then) {
  MutexLock lock(&mu_);
  if (draining_) return Draining();
  if (waiting_.size() >= waits_max_) {
    return Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                 absl::StrCat(waits_max_, " calls wait for flag words already; retry later, or without words"))
        .Meta("limit", waits_max_)
        .RetryAfter(absl::Milliseconds(20));
  }
  waiting_.push_back({std::move(words), until, op, ended, std::move(then), clock_->Now()});
  changed_.SignalAll();
  return absl::OkStatus();
}

void FlagWaiter::Drain() {
  MutexLock lock(&mu_);
  draining_ = true;
  changed_.SignalAll();
  while (telling_ || !waiting_.empty()) changed_.Wait(&mu_);
}

size_t FlagWaiter::waiting() const {
  MutexLock lock(&mu_);
  return waiting_.size();
}

bool FlagWaiter::IsOver(const Waiting& waiting, MonoTime now, absl::Status* why) const {
  if (draining_) {
    *why = Draining();
  } else if (waiting.ended->load()) {
    *why = absl::AbortedError("");
  } else if (now >= waiting.op.deadline || (waiting.op.cancelled != nullptr && waiting.op.cancelled->load())) {
    *why = waiting.op.Check(*clock_);
  } else {
    return !waiting.until.has_value() || waiting.words->Reached(*waiting.until);
  }
  return true;
}

void FlagWaiter::Run() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNs, 0, 0, 0);
  MutexLock lock(&mu_);
  for (;;) {
    std::list<Waiting> over;
    std::list<absl::Status> whys;
    const MonoTime now = clock_->Now();
    // From the newest to the oldest: where words are set in the order of the calls, those before one that is reached
    // are reached as well, and are seen so.
    for (auto after = waiting_.end(); after != waiting_.begin();) {
      const auto it = std::prev(after);
      absl::Status why;
      if (IsOver(*it, now, &why)) {
        over.splice(over.begin(), waiting_, it);
        whys.push_front(std::move(why));
      } else {
        after = it;
      }
    }
    if (!over.empty()) {
      telling_ = true;
      {
        MutexUnlock unlock(&mu_);
        for (; !over.empty(); over.pop_front(), whys.pop_front()) over.front().then(std::move(whys.front()));
      }
      telling_ = false;
      changed_.SignalAll();
      continue;
    }
    if (draining_) return;
    if (waiting_.empty()) {
      changed_.Wait(&mu_);
      continue;
    }
    const std::chrono::nanoseconds age(now - waiting_.back().since);
    changed_.WaitFor(&mu_, std::clamp(age / kLooksInAge, kLookMin, kLookMax));
  }
}

}  // namespace statepool
