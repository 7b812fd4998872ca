// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Executor: the threads on which calls may block. gRPC's own threads are few and must never wait, so everything that
// may touch disk, or copies a state, runs here.
//
// Idle threads are woken one at a time, the last to fall asleep first: its stack and caches are warm, and one call
// wakes one thread.
#ifndef STATEPOOL_SERVER_RPC_EXECUTOR_H_
#define STATEPOOL_SERVER_RPC_EXECUTOR_H_

#include <cstddef>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "server/core/mutex.h"

namespace statepool {

// Thread-safe.
class Executor {
 public:
  using Task = absl::AnyInvocable<void()>;

  // At most `threads` tasks run at a time, and `queue_limit` more wait.
  Executor(size_t threads, size_t queue_limit);
  // Runs what is queued, then ends the threads. No Submit may be under way.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Runs `task` on one of the threads, first come first served. Never blocks.
  // Errors: RESOURCE_EXHAUSTED / QUEUE_FULL with `limit`, worth retrying; the task was not taken, and is destroyed.
  absl::Status Submit(Task task);

  size_t queued() const;

 private:
  struct Worker {
    CondVar wake;
    Task task;  // handed over while idle; empty: look at the queue
    bool idle = false;
  };
  void Run(Worker* self);

  const size_t queue_limit_;
  mutable Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Task> queue_ ABSL_GUARDED_BY(mu_);
  std::vector<Worker*> idle_ ABSL_GUARDED_BY(mu_);  // a stack
  std::deque<Worker> workers_;                      // fields guarded by mu_
  std::vector<std::thread> threads_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_EXECUTOR_H_
