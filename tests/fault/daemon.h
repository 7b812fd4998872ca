// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the parts with a single client share: how the daemon is started, how it may end, the end of a figure.
#ifndef STATEPOOL_TESTS_FAULT_DAEMON_H_
#define STATEPOOL_TESTS_FAULT_DAEMON_H_

#include <sys/wait.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/crash/worker.h"

namespace statepool::fault {

inline constexpr int kReadySeconds = 30, kStopSeconds = 30;

inline std::vector<std::string> DaemonCommand(const std::string& binary, const std::string& data) {
  return {binary,
          "--listen=127.0.0.1:0",
          "--metrics=127.0.0.1:0",
          "--data-dir=" + data,
          "--hot-bytes=2MiB",  // states of up to 500 KB: they come and go
          "--warm-bytes=0",
          "--cold-bytes=1GiB",
          "--devices=host",
          "--flush-interval=50ms",
          "--log-level=warn"};
}

// How a daemon ended, from waitpid's status: its exit code, or 1000 + the signal.
inline int EndOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status); }
inline bool IsCrash(int end) { return end >= 1000; }  // also one that had to be killed because it did not end

// Value, violations by kind and what the oracle counts.
inline bench::Figure ViolationFigure(const std::string& name, const crash::Run& run, int64_t others, int64_t n) {
  bench::Figure figure(name);
  figure.Set("value", static_cast<double>(run.violations() + others))
      .Text("unit", "violations")
      .Set("n", static_cast<double>(n))
      .Goal("value", 0);
  for (int i = 0; i < crash::kViolations; ++i)
    figure.Set(crash::kViolationNames[i], static_cast<double>(run.counts[static_cast<size_t>(i)]));
  figure.Set("acked_sync", run.acked_sync).Set("forks", run.forks).Set("operations", run.operations);
  return figure;
}

}  // namespace statepool::fault

#endif  // STATEPOOL_TESTS_FAULT_DAEMON_H_
