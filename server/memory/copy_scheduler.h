// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyScheduler: the threads that copy between slots and arenas.
//
// A copy is a job of tasks that may run in any order, at the same time. Threads take one task at a time, of the tenants
// in turn and of a tenant's jobs in turn: so a large job delays a small one by a task a thread, whoever they belong to,
// and jobs that wait together are worked off together, without a wake-up for each. A job's caller works along, as one
// of these threads, until its own job is begun whole: waking another takes about as long as copying 1 MiB. Never do
// more than `threads` work at the same time.
//
// A job ends early when its caller gives up, its deadline passes or it is abandoned: tasks not begun are dropped, those
// under way finish. When Run returns, nobody uses the job's memory any more. A job of few bytes runs in its caller's
// thread: waking another would cost more than the copy.
#ifndef STATEPOOL_SERVER_MEMORY_COPY_SCHEDULER_H_
#define STATEPOOL_SERVER_MEMORY_COPY_SCHEDULER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "server/core/clock.h"
#include "server/core/mutex.h"
#include "server/core/op.h"

namespace statepool {

struct CopySchedulerOptions {
  size_t threads = 1;                 // that work at the same time
  size_t max_jobs = 1024;             // that wait or run, but for inline ones
  uint64_t inline_bytes = 256 << 10;  // a job of up to so many runs in its caller alone
};

struct CopySchedulerStats {
  uint64_t jobs = 0;           // waiting or running, but for inline ones
  uint64_t waiting_bytes = 0;  // of tasks not begun
  uint64_t jobs_total = 0;     // since the start, inline ones too
  uint64_t dropped_total = 0;  // jobs that ended early
  uint64_t refused_total = 0;  // QUEUE_FULL
};

// Thread-safe.
class CopyScheduler {
 public:
  // `clock` must outlive it.
  CopyScheduler(CopySchedulerOptions options, const Clock* clock);
  ~CopyScheduler();  // REQUIRES: no Run is under way
  CopyScheduler(const CopyScheduler&) = delete;
  CopyScheduler& operator=(const CopyScheduler&) = delete;

  // Runs task(0) ... task(tasks - 1), which move about bytes / tasks each, and waits for them. `abandoned` ends the job
  // early when it becomes true; may be null. Errors: DEADLINE, CANCELLED (some tasks were not run), QUEUE_FULL (none).
  absl::Status Run(const Op& op, const std::atomic<bool>* abandoned, uint64_t bytes, size_t tasks,
                   absl::FunctionRef<void(size_t)> task) ABSL_LOCKS_EXCLUDED(mu_);

  CopySchedulerStats stats() const;

 private:
  struct Job;
  using TenantJobs = std::pair<TenantId, std::deque<Job*>>;  // with tasks not begun; never empty

  void WorkLoop();
  absl::Status Check(const Job& job) const;
  void Enqueue(Job* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Job* TakeTask(size_t* task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // null: none waits
  // Runs the task whose turn it is; false if none waits, or as many run as may. Gives the lock back meanwhile.
  bool WorkOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropRest(Job* job, absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CopySchedulerOptions options_;
  const Clock* const clock_;

  mutable Mutex mu_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<TenantJobs> turns_ ABSL_GUARDED_BY(mu_);  // whose turn is next, first
  size_t working_ ABSL_GUARDED_BY(mu_) = 0;            // tasks that run now; at most options_.threads
  CopySchedulerStats stats_ ABSL_GUARDED_BY(mu_);

  std::vector<std::thread> threads_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_COPY_SCHEDULER_H_
