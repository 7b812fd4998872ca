// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// PointCycles: half of the kills come at a point of the daemon's work that has a name, "before sync image" or "after
// rename CURRENT", chosen at random with a random count. The shim sees the call from outside and lets the disk stand
// still there, so what the kill leaves is as of that call. A point that does not come is given up after a while, and
// the daemon killed then.
#ifndef STATEPOOL_TESTS_CRASH_POINT_CYCLES_H_
#define STATEPOOL_TESTS_CRASH_POINT_CYCLES_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/crash/cycles.h"
#include "tests/shim/control_page.h"

namespace statepool::crash {

// Not thread-safe.
class PointCycles final : public Cycles {
 public:
  // As Cycles, and --shim=LIBRARY.
  explicit PointCycles(const bench::Arguments& arguments);

 protected:
  std::vector<std::string> Command(const std::vector<std::string>& command) override;
  void WaitToKill() override;
  void WaitToKillStart() override;
  // at_points: kills under load; starts_at_points.
  std::vector<std::pair<std::string, int64_t>> Happened() const override;
  // How many of both by point, and those that never came.
  void AddTo(bench::Figure* figure) override;

 private:
  // Chooses a point of the start or of the load, and waits for it. Whether it came.
  bool WaitForPoint(bool of_start);

  const std::string shim_;
  shim::ControlPage page_;
  int64_t at_points_ = 0, starts_at_points_ = 0, missed_ = 0;
  std::map<std::string, int64_t> by_point_;
};

}  // namespace statepool::crash

#endif  // STATEPOOL_TESTS_CRASH_POINT_CYCLES_H_
