// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FlagWaiter: waits for flag words in the place of calls.
//
// A GPU could wait for a word by itself (cuStreamWaitValue32). But streams share the few channels that a device has, so
// a stream of the daemon's that waits for a worker that died, hangs or lies would hold up whatever is behind it, copies
// of others too; and it can't be called off. Here nothing of the daemon waits but one thread, which looks at the words
// of all calls: no stream and no thread of a call's own. What no word needs is the same on every device.
//
// It looks at all words every 20 us while one was asked for lately, and less often the longer the newest of them waits:
// after a 64th of its age, at least every millisecond. So a word is seen late by a 64th of the time that it took. With
// nothing to wait for, the thread sleeps.
#ifndef STATEPOOL_SERVER_MEMORY_FLAG_WAITER_H_
#define STATEPOOL_SERVER_MEMORY_FLAG_WAITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"
#include "server/core/op.h"
#include "server/memory/flag_words.h"

namespace statepool {

// Thread-safe.
class FlagWaiter {
 public:
  // Told once. OK: the word is reached; ABORTED without a reason: `ended`; DEADLINE, CANCELLED; DRAINING. Called on the
  // waiter's thread: it must not block, and may call Wait.
  using Then = absl::AnyInvocable<void(absl::Status why)>;

  // `clock` must outlive it. At most `waits_max` wait at a time.
  FlagWaiter(size_t waits_max, const Clock* clock);
  ~FlagWaiter();  // Drain
  FlagWaiter(const FlagWaiter&) = delete;
  FlagWaiter& operator=(const FlagWaiter&) = delete;

  // Calls `then` when the word is reached, `*ended` is set, or `op` is over, whichever is first seen; of several that
  // are seen at once in the order of these calls. No `until`: it is reached. `ended`, and what `op` refers to, must
  // live until then, which `then` can see to. Errors: QUEUE_FULL, DRAINING; `then` is not called.
  absl::Status Wait(std::shared_ptr<const FlagWords> words, std::optional<FlagValue> until, const Op& op,
                    const std::atomic<bool>* ended, Then then) ABSL_LOCKS_EXCLUDED(mu_);

  // All that wait are told DRAINING before this returns, and nobody waits any more.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);

  size_t waiting() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Waiting {
    std::shared_ptr<const FlagWords> words;
    std::optional<FlagValue> until;
    Op op;
    const std::atomic<bool>* ended;
    Then then;
    MonoTime since;
  };

  void Run();
  // Whether it waits no more, and why not.
  bool IsOver(const Waiting& waiting, MonoTime now, absl::Status* why) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t waits_max_;
  const Clock* const clock_;
  mutable Mutex mu_;
  CondVar changed_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool telling_ ABSL_GUARDED_BY(mu_) = false;        // the thread calls somebody's `then`
  std::list<Waiting> waiting_ ABSL_GUARDED_BY(mu_);  // in the order of their calls
  std::thread thread_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_FLAG_WAITER_H_
