// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/crash/point_cycles.h"

#include <array>
#include <chrono>
#include <thread>

namespace statepool::crash {
namespace {

using shim::Call, shim::File, shim::Moment;

constexpr int kAtPointPercent = 50;
// A point that has not come by then does not; a start takes less.
constexpr std::chrono::milliseconds kLoadPatience(1500), kStartPatience(400);

struct Point {
  const char* name;
  Call call;
  File file;
  uint64_t under_load;  // the count is up to this; 0: it does not come, or too rarely
  uint64_t of_start;
};
constexpr std::array kPoints = {
    Point{"create image", Call::kCreate, File::kImage, 1, 0},
    Point{"write image", Call::kWrite, File::kImage, 100, 0},
    Point{"sync image", Call::kSync, File::kImage, 40, 0},
    Point{"sync images directory", Call::kSync, File::kImages, 1, 0},
    Point{"hole in image", Call::kPunch, File::kImage, 60, 8},
    Point{"remove image", Call::kRemove, File::kImage, 1, 1},
    Point{"write log", Call::kWrite, File::kLog, 200, 2},
    Point{"sync log", Call::kSync, File::kLog, 100, 2},
    Point{"create log", Call::kCreate, File::kLog, 1, 1},
    Point{"remove log", Call::kRemove, File::kLog, 1, 1},
    Point{"write table", Call::kWrite, File::kTable, 4, 6},
    Point{"sync table", Call::kSync, File::kTable, 1, 6},
    Point{"write blob", Call::kWrite, File::kBlob, 4, 4},
    Point{"sync blob", Call::kSync, File::kBlob, 1, 1},
    Point{"write MANIFEST", Call::kWrite, File::kManifest, 4, 20},
    Point{"sync MANIFEST", Call::kSync, File::kManifest, 1, 5},
    Point{"rename CURRENT", Call::kRename, File::kCurrent, 0, 1},
    Point{"remove MANIFEST", Call::kRemove, File::kManifest, 0, 1},
    Point{"sync database directory", Call::kSync, File::kDatabase, 2, 9},
    Point{"write WITNESS", Call::kWrite, File::kWitness, 1, 2},
    Point{"rename WITNESS", Call::kRename, File::kWitness, 1, 2},
    Point{"write SYNCED", Call::kWrite, File::kSynced, 100, 2},
    Point{"sync data directory", Call::kSync, File::kData, 1, 6},
};

const char* NameOf(Moment moment) {
  return moment == Moment::kBefore ? "before " : moment == Moment::kWithin ? "within " : "after ";
}

}  // namespace

PointCycles::PointCycles(const bench::Arguments& arguments)
    : Cycles("crash", arguments), shim_(arguments.Text("shim")), page_(directory() + "/control") {}

std::vector<std::string> PointCycles::Command(const std::vector<std::string>& command) {
  page_.Reset();
  return page_.Behind(shim_, directory() + "/data", command, /*journal=*/"");
}

bool PointCycles::WaitForPoint(bool of_start) {
  const Point* point = nullptr;
  while (point == nullptr || (of_start ? point->of_start : point->under_load) == 0)
    point = &kPoints[Below(kPoints.size())];
  const Moment moment = Below(2) == 0                 ? Moment::kBefore
                        : point->call == Call::kWrite ? Moment::kWithin
                                                      : Moment::kAfter;
  page_->point_call = point->call;
  page_->point_file = point->file;
  page_->point_moment = moment;
  const auto& seen = page_->seen[static_cast<size_t>(point->call)][static_cast<size_t>(point->file)];
  page_->point_at = seen + 1 + Below(of_start ? point->of_start : point->under_load);
  const auto end = std::chrono::steady_clock::now() + (of_start ? kStartPatience : kLoadPatience);
  while (page_->reached == 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (page_->reached == 0) {
    ++missed_;
    return false;
  }
  ++by_point_[absl::StrCat(NameOf(moment), point->name)];
  return true;
}

void PointCycles::WaitToKill() {
  if (Below(100) >= kAtPointPercent) return Cycles::WaitToKill();
  at_points_ += WaitForPoint(/*of_start=*/false);
}

void PointCycles::WaitToKillStart() {
  if (Below(100) >= kAtPointPercent) return Cycles::WaitToKillStart();
  starts_at_points_ += WaitForPoint(/*of_start=*/true);
}

std::vector<std::pair<std::string, int64_t>> PointCycles::Happened() const {
  auto happened = Cycles::Happened();
  happened.emplace_back("at_points", at_points_);
  happened.emplace_back("starts_at_points", starts_at_points_);
  return happened;
}

void PointCycles::AddTo(bench::Figure* figure) {
  figure->Set("points_missed", static_cast<double>(missed_)).Counts("points", by_point_);
}

}  // namespace statepool::crash
