// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A race on purpose: a counter that four threads change while only half of them hold its lock. The ThreadSanitizer
// build must catch it (tests/sanitize); a build that does not proves nothing by being green.
#include <thread>
#include <vector>

#include "server/core/mutex.h"

int main() {
  statepool::Mutex mu;
  long counter = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100'000; ++i) {
        if (t % 2 == 0) {
          statepool::MutexLock lock(&mu);
          ++counter;
        } else {
          ++counter;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return counter == 0;
}
