// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Watchdog: does something when a time is over, unless it was told otherwise before: ends calls whose client neither
// sends nor takes anything, and drops what broken-off uploads left.
//
// One thread; times are met to within a second. Thread-safe.
#ifndef STATEPOOL_SERVER_RPC_WATCHDOG_H_
#define STATEPOOL_SERVER_RPC_WATCHDOG_H_

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"

namespace statepool {

class Watchdog {
 public:
  using Id = uint64_t;  // 0: none

  explicit Watchdog(const Clock* clock);  // must outlive it
  ~Watchdog();                            // what is still watched is forgotten, not done
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // `late` runs once, on the watchdog's thread without its lock, after `deadline`. It must be short, and may call Watch
  // and Forget.
  Id Watch(MonoTime deadline, std::function<void()> late);
  // Not known any more: no effect.
  void Extend(Id id, MonoTime deadline);
  // After it `late` neither runs nor will. (Called by `late` itself it only forgets.)
  void Forget(Id id);

 private:
  struct Entry {
    MonoTime deadline;
    std::function<void()> late;
  };
  void Run();

  const Clock* const clock_;
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Id next_id_ ABSL_GUARDED_BY(mu_) = 1;
  Id running_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<Id, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<MonoTime, Id>> deadlines_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_WATCHDOG_H_
