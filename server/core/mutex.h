// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The one mutex of the project: std::mutex with clang's thread-safety annotations. (absl::Mutex would give
// ThreadSanitizer false races, because Debian's Abseil is not instrumented.)
#ifndef STATEPOOL_SERVER_CORE_MUTEX_H_
#define STATEPOOL_SERVER_CORE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

namespace statepool {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// absl has no word for "releases exclusively", which clang wants where a scope begins by unlocking.
#if defined(__clang__)
#define STATEPOOL_RELEASE(...) __attribute__((release_capability(__VA_ARGS__)))
#else
#define STATEPOOL_RELEASE(...)
#endif

// Gives a held mutex back for the length of a scope: for I/O in the middle of an operation.
class ABSL_SCOPED_LOCKABLE MutexUnlock {
 public:
  explicit MutexUnlock(Mutex* mu) STATEPOOL_RELEASE(mu) : mu_(mu) { mu_->Unlock(); }
  ~MutexUnlock() STATEPOOL_RELEASE() { mu_->Lock(); }  // to the analysis: the scope's end undoes its beginning
  MutexUnlock(const MutexUnlock&) = delete;
  MutexUnlock& operator=(const MutexUnlock&) = delete;

 private:
  Mutex* const mu_;
};

class CondVar {
 public:
  // May wake for no reason: call it in a loop that checks the condition.
  void Wait(Mutex* mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // The same, for at most `timeout`.
  void WaitFor(Mutex* mu, std::chrono::nanoseconds timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait_for(lock, timeout);
    lock.release();
  }
  void Signal() { cv_.notify_one(); }  // one of those that wait
  void SignalAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_MUTEX_H_
