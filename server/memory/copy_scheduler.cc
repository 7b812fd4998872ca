// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/copy_scheduler.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "server/core/error.h"

namespace statepool {

// Lives on its caller's stack. Guarded by mu_, but for what stands still.
struct CopyScheduler::Job {
  const Op& op;
  const std::atomic<bool>* const abandoned;
  const absl::FunctionRef<void(size_t)> task;
  const uint64_t task_bytes;
  const size_t tasks;
  size_t next = 0;  // the first task not begun; `tasks` once the rest was dropped
  size_t running = 0;
  absl::Status status = absl::OkStatus();
  CondVar done;
};

CopyScheduler::CopyScheduler(CopySchedulerOptions options, const Clock* clock) : options_(options), clock_(clock) {
  assert(options_.threads >= 1);
  for (size_t i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { WorkLoop(); });
}

CopyScheduler::~CopyScheduler() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    wake_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status CopyScheduler::Check(const Job& job) const {
  if (job.abandoned != nullptr && job.abandoned->load(std::memory_order_relaxed))
    return Error(absl::StatusCode::kCancelled, "CANCELLED", "the arena's lease ended while it was copied");
  return job.op.Check(*clock_);
}

absl::Status CopyScheduler::Run(const Op& op, const std::atomic<bool>* abandoned, uint64_t bytes, size_t tasks,
                                absl::FunctionRef<void(size_t)> task) {
  if (tasks == 0) return absl::OkStatus();
  Job job{op, abandoned, task, bytes / tasks, tasks, 0, 0, absl::OkStatus(), {}};
  if (bytes <= options_.inline_bytes) {
    for (size_t i = 0; i < tasks && job.status.ok(); ++i) {
      job.status = Check(job);
      if (job.status.ok()) task(i);
    }
    MutexLock lock(&mu_);
    ++stats_.jobs_total;
    if (!job.status.ok()) ++stats_.dropped_total;
    return job.status;
  }
  MutexLock lock(&mu_);
  if (stats_.jobs >= options_.max_jobs) {
    ++stats_.refused_total;
    return Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "too many copies wait already")
        .Meta("limit", options_.max_jobs)
        .RetryAfter(absl::Milliseconds(20));
  }
  ++stats_.jobs;
  ++stats_.jobs_total;
  stats_.waiting_bytes += job.task_bytes * job.tasks;
  Enqueue(&job);
  for (size_t i = working_ + 1; i < std::min(options_.threads, working_ + tasks); ++i) wake_.Signal();
  while (job.next < job.tasks && WorkOnce()) continue;
  if (!turns_.empty()) wake_.Signal();  // this one leaves: who works on?
  while (job.next < job.tasks || job.running > 0) job.done.Wait(&mu_);
  --stats_.jobs;
  if (!job.status.ok()) ++stats_.dropped_total;
  return job.status;
}

void CopyScheduler::Enqueue(Job* job) {
  const auto tenant = std::find_if(turns_.begin(), turns_.end(),
                                   [job](const TenantJobs& jobs) { return jobs.first == job->op.tenant; });
  if (tenant != turns_.end()) {
    tenant->second.push_back(job);
  } else {
    turns_.push_back({job->op.tenant, {job}});
  }
}

CopyScheduler::Job* CopyScheduler::TakeTask(size_t* task) {
  if (turns_.empty()) return nullptr;
  TenantJobs tenant = std::move(turns_.front());
  turns_.pop_front();
  Job* job = tenant.second.front();
  tenant.second.pop_front();
  *task = job->next++;
  ++job->running;
  stats_.waiting_bytes -= job->task_bytes;
  if (job->next < job->tasks) tenant.second.push_back(job);
  if (!tenant.second.empty()) turns_.push_back(std::move(tenant));
  return job;
}

void CopyScheduler::DropRest(Job* job, absl::Status why) {
  if (!job->status.ok()) return;
  job->status = std::move(why);
  if (job->next == job->tasks) return;
  stats_.waiting_bytes -= job->task_bytes * (job->tasks - job->next);
  job->next = job->tasks;
  for (auto tenant = turns_.begin(); tenant != turns_.end(); ++tenant) {
    const auto at = std::find(tenant->second.begin(), tenant->second.end(), job);
    if (at == tenant->second.end()) continue;
    tenant->second.erase(at);
    if (tenant->second.empty()) turns_.erase(tenant);
    return;
  }
}

bool CopyScheduler::WorkOnce() {
  if (working_ >= options_.threads) return false;
  size_t task;
  Job* const job = TakeTask(&task);
  if (job == nullptr) return false;
  ++working_;
  absl::Status status;
  {
    MutexUnlock unlock(&mu_);
    status = Check(*job);
    if (status.ok()) job->task(task);
  }
  --working_;
  if (!status.ok()) DropRest(job, std::move(status));
  --job->running;
  if (job->next == job->tasks && job->running == 0) job->done.SignalAll();
  return true;
}

void CopyScheduler::WorkLoop() {
  MutexLock lock(&mu_);
  for (;;) {
    if (WorkOnce()) continue;
    if (stopping_) return;
    wake_.Wait(&mu_);
  }
}

CopySchedulerStats CopyScheduler::stats() const {
  MutexLock lock(&mu_);
  return stats_;
}

}  // namespace statepool
