// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Power loss under load: tests/crash, with a disk that forgets what was not synced.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/crash/cycles.h"
#include "tests/fault/disk.h"
#include "tests/fault/metric.h"
#include "tests/fault/parts.h"

namespace statepool::fault {
namespace {

using crash::Violation;

constexpr int kLoadMillisMin = 20, kLoadMillisMax = 400;
constexpr uint64_t kCallsMax = 400;        // of the load, before the disk stands still
constexpr int kFrozenPercent = 50;         // of the cuts come at a chosen call, the others at a moment
constexpr uint32_t kSyncMicrosMax = 3000;  // so that there is something between a write and its sync

class PowerLossCycles final : public crash::Cycles {
 public:
  explicit PowerLossCycles(const bench::Arguments& arguments)
      : Cycles("fault/power-loss", arguments),
        disk_(arguments.Text("directory"), arguments.Text("shim"), static_cast<uint64_t>(arguments.Number("seed"))) {}

 protected:
  std::vector<std::string> Command(const std::vector<std::string>& command) override {
    disk_.Reset();
    disk_.control()->sync_micros_max = kSyncMicrosMax;
    recorded_up_to_ = 0;
    return disk_.Behind(command);
  }

  void WaitToKill() override {
    Control* const control = disk_.control();
    const bool frozen = Below(100) < kFrozenPercent;
    const auto end =
        std::chrono::steady_clock::now() +
        std::chrono::milliseconds(frozen ? 2000 : kLoadMillisMin + Below(kLoadMillisMax - kLoadMillisMin + 1));
    if (frozen) {
      control->at = control->calls + 1 + Below(kCallsMax);
      control->action = Action::kFreeze;
    }
    while (control->reached == 0 && std::chrono::steady_clock::now() < end) {
      const int64_t asked = std::chrono::steady_clock::now().time_since_epoch().count();
      const std::optional<double> lag = ReadMetric(daemon().metrics(), "statepool_flush_lag_seconds");
      if (lag.has_value()) {
        ++lag_samples_;
        lag_max_ = std::max(lag_max_, *lag);
        recorded_up_to_ = std::max(recorded_up_to_, asked - static_cast<int64_t>(std::ceil(*lag * 1e9)));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  void Killed(bool while_starting) override {
    const bool frozen = disk_.control()->reached != 0;
    frozen_ += frozen;
    if (!while_starting) {
      for (const auto& worker : workers()) worker->RecordedUpTo(recorded_up_to_);
    }
    const uint64_t kind = Below(10);
    Cut(kind < 4 ? Keep::kNothing : kind < 9 ? Keep::kSome : Keep::kAll, frozen);
  }

  void Ended() override { Cut(Keep::kAll, /*compare=*/true); }

  void AddTo(bench::Figure* figure) override {
    figure->Set("cuts_with_loss", with_loss_)
        .Set("frozen", frozen_)
        .Set("compared", compared_)
        .Set("lost_files", static_cast<double>(lost_.files))
        .Set("lost_bytes", static_cast<double>(lost_.bytes))
        .Set("lost_entries", static_cast<double>(lost_.entries))
        .Set("lag_samples", static_cast<double>(lag_samples_))
        .Set("lag_max_seconds", lag_max_);
  }

 private:
  void Cut(Keep keep, bool compare) {
    const CutFigures cut = disk_.Cut(keep, compare);
    compared_ += compare;
    with_loss_ += cut.files + cut.entries > 0;
    lost_.files += cut.files;
    lost_.bytes += cut.bytes;
    lost_.entries += cut.entries;
    if (!cut.not_as_is.empty())
      run()->Report(Violation::kUnexpected, "the disk", "what the journal says", cut.not_as_is);
  }

  Disk disk_;
  int64_t recorded_up_to_ = 0;  // steady clock, ns
  int with_loss_ = 0, frozen_ = 0, compared_ = 0;
  int64_t lag_samples_ = 0;
  double lag_max_ = 0;
  CutFigures lost_;
};

}  // namespace

int PowerLoss(const bench::Arguments& arguments) { return PowerLossCycles(arguments).Main(); }

}  // namespace statepool::fault
