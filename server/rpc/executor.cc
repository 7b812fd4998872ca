// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/executor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/error.h"

namespace statepool {

Executor::Executor(size_t threads, size_t queue_limit) : queue_limit_(queue_limit), workers_(threads) {
  for (Worker& worker : workers_) threads_.emplace_back([this, &worker] { Run(&worker); });
}

Executor::~Executor() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    for (Worker& worker : workers_) worker.wake.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status Executor::Submit(Task task) {
  MutexLock lock(&mu_);
  if (!idle_.empty()) {
    Worker* worker = idle_.back();
    idle_.pop_back();
    worker->idle = false;
    worker->task = std::move(task);
    worker->wake.SignalAll();
    return absl::OkStatus();
  }
  if (queue_.size() >= queue_limit_) {
    return Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                 absl::StrCat(queue_limit_, " calls are waiting already; retry later"))
        .Meta("limit", queue_limit_)
        .RetryAfter(absl::Milliseconds(100));
  }
  queue_.push_back(std::move(task));
  return absl::OkStatus();
}

size_t Executor::queued() const {
  MutexLock lock(&mu_);
  return queue_.size();
}

void Executor::Run(Worker* self) {
  while (true) {
    Task task;
    {
      MutexLock lock(&mu_);
      if (queue_.empty()) {
        self->idle = true;
        idle_.push_back(self);
        while (self->idle && !stopping_) self->wake.Wait(&mu_);
        task = std::move(self->task);
        self->task = nullptr;
        if (task == nullptr) return;  // stopping, and the queue was empty: it stays so
      } else {
        task = std::move(queue_.front());
        queue_.pop_front();
      }
    }
    task();
  }
}

}  // namespace statepool
