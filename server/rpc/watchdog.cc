// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/watchdog.h"

#include <chrono>

namespace statepool {
namespace {

constexpr std::chrono::milliseconds kTick{250};  // an injected clock may jump; so it is looked at often

}  // namespace

Watchdog::Watchdog(const Clock* clock) : clock_(clock) { thread_ = std::thread(&Watchdog::Run, this); }

Watchdog::~Watchdog() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

Watchdog::Id Watchdog::Watch(MonoTime deadline, std::function<void()> late) {
  MutexLock lock(&mu_);
  const Id id = next_id_++;
  entries_.emplace(id, Entry{deadline, std::move(late)});
  deadlines_.emplace(deadline, id);
  return id;
}

void Watchdog::Extend(Id id, MonoTime deadline) {
  MutexLock lock(&mu_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  deadlines_.erase({it->second.deadline, id});
  it->second.deadline = deadline;
  deadlines_.emplace(deadline, id);
}

void Watchdog::Forget(Id id) {
  std::function<void()> late;  // destroyed without the lock
  MutexLock lock(&mu_);
  if (const auto it = entries_.find(id); it != entries_.end()) {
    deadlines_.erase({it->second.deadline, id});
    late = std::move(it->second.late);
    entries_.erase(it);
  }
  while (running_ == id && id != 0 && std::this_thread::get_id() != thread_.get_id()) changed_.Wait(&mu_);
}

void Watchdog::Run() {
  MutexLock lock(&mu_);
  while (!stopping_) {
    if (deadlines_.empty() || deadlines_.begin()->first > clock_->Now()) {
      changed_.WaitFor(&mu_, kTick);
      continue;
    }
    const Id id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto it = entries_.find(id);
    std::function<void()> late = std::move(it->second.late);
    entries_.erase(it);
    running_ = id;
    {
      MutexUnlock unlock(&mu_);
      late();
      late = nullptr;
    }
    running_ = 0;
    changed_.SignalAll();
  }
}

}  // namespace statepool
