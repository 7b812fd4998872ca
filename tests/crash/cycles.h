// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Cycles: the daemon is started, looked at, loaded from several threads and killed, again and again on one data
// directory. What becomes of that directory when the daemon dies is up to the derived class: nothing, or a power cut.
#ifndef STATEPOOL_TESTS_CRASH_CYCLES_H_
#define STATEPOOL_TESTS_CRASH_CYCLES_H_

#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/crash/worker.h"

namespace statepool::crash {

// Not thread-safe.
class Cycles {
 public:
  // --daemon=BINARY --directory=DIR --cycles=N --seed=N --stop-at-first=0|1 [--least=FIELD:N,FIELD:N,...]; `name` is
  // the figure's. While one of these fields of it is below its N there are more cycles, up to four times as many: a
  // slow machine does less in each.
  Cycles(std::string name, const bench::Arguments& arguments);
  virtual ~Cycles() = default;

  // All cycles; prints the figure. Gives the exit status: 0 measured.
  int Main();

 protected:
  // The command that starts the daemon. A start that is killed soon is one too.
  virtual std::vector<std::string> Command(const std::vector<std::string>& command) { return command; }
  // The load has begun: gives when to kill the daemon.
  virtual void WaitToKill();
  // The same for a start that is killed.
  virtual void WaitToKillStart();
  // The daemon is dead; it will be started again.
  virtual void Killed(bool /*while_starting*/) {}
  // The daemon ended in order after the last cycle.
  virtual void Ended() {}
  virtual void AddTo(bench::Figure* /*figure*/) {}
  // What has happened so far, by field of the figure.
  virtual std::vector<std::pair<std::string, int64_t>> Happened() const;

  Run* run() { return &run_; }
  const std::string& directory() const { return directory_; }
  const DaemonProcess& daemon() const { return *daemon_; }
  const std::vector<std::unique_ptr<Worker>>& workers() const { return workers_; }
  uint64_t Below(uint64_t n) { return random_() % n; }

 private:
  bool GoOn() const { return failed_starts_ == 0 && !(stop_at_first_ && run_.violations() > 0); }
  bool IsEnough() const;
  void Progress();
  bool Start();  // false: it did not get ready, which counts
  void RegisterLayouts();
  template <typename Work>
  std::vector<std::thread> ForEachWorker(Work work);
  void Verify();
  void LoadAndKill();

  const std::string name_, binary_, directory_;
  const int cycles_;
  const bool stop_at_first_;
  std::map<std::string, int64_t> least_;
  Run run_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<DaemonProcess> daemon_;
  int kills_in_flight_ = 0, failed_starts_ = 0, killed_starts_ = 0;
};

}  // namespace statepool::crash

#endif  // STATEPOOL_TESTS_CRASH_CYCLES_H_
