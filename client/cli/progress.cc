// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/terminal.h"

namespace statepool::cli {
namespace {

constexpr uint64_t kWorthIt = 1 << 20;
constexpr size_t kBarColumnsMax = 30;
constexpr size_t kBarColumnsMin = 6;
constexpr size_t kNameColumnsMin = 8;
constexpr size_t kNameBesideBarMin = 12;
constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kRateNeeds = absl::Milliseconds(200);  // before this it says nothing

std::string Clock(int64_t seconds) {
  if (seconds < 3600) return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
  return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

}  // namespace

std::string ProgressLine(absl::string_view name, uint64_t done_bytes, uint64_t total_bytes, uint64_t moved_bytes,
                         absl::Duration elapsed, size_t columns) {
  const bool known = total_bytes > 0 && done_bytes <= total_bytes;
  std::string facts;
  if (known) {
    facts =
        absl::StrFormat("  %3d%%  %s of %s",
                        static_cast<int>(100.0 * static_cast<double>(done_bytes) / static_cast<double>(total_bytes)),
                        HumanBytes(done_bytes), HumanBytes(total_bytes));
  } else {
    facts = absl::StrCat("  ", HumanBytes(done_bytes));
  }
  if (elapsed >= kRateNeeds && moved_bytes > 0) {
    const double rate = static_cast<double>(moved_bytes) / absl::ToDoubleSeconds(elapsed);
    absl::StrAppend(&facts, "  ", HumanBytes(static_cast<uint64_t>(rate)), "/s");
    if (known && done_bytes < total_bytes) {
      const double left = static_cast<double>(total_bytes - done_bytes) / rate;
      if (left < 360000) absl::StrAppend(&facts, "  ", Clock(static_cast<int64_t>(left) + 1), " left");
    } else if (known) {
      absl::StrAppend(&facts, "  in ", Clock(static_cast<int64_t>(absl::ToInt64Seconds(elapsed))));
    }
  }
  std::string shown = CutMiddle(name, std::max(kNameColumnsMin, columns - std::min(columns, facts.size())));
  constexpr size_t kBarRoom = kBarColumnsMin + 4;  // with its brackets and what keeps it apart
  if (!known || facts.size() + kBarRoom + std::min(Columns(name), kNameBesideBarMin) > columns)
    return absl::StrCat(shown, facts);
  shown = CutMiddle(name, columns - facts.size() - kBarRoom);
  const size_t inside = std::min(kBarColumnsMax, columns - facts.size() - Columns(shown) - 4);
  const size_t full = static_cast<size_t>(static_cast<double>(inside) * static_cast<double>(done_bytes) /
                                          static_cast<double>(total_bytes));
  return absl::StrCat(shown, "  [", std::string(full, '#'), std::string(inside - full, ' '), "]", facts);
}

Progress::Progress(absl::string_view name) : name_(name), on_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (!began_) return;
  if (total_bytes_ > 0 && done_bytes_ == total_bytes_) {
    Draw();
    fputc('\n', stderr);
  } else {
    fputs("\r\033[K", stderr);
  }
  fflush(stderr);
}

std::function<void(uint64_t, uint64_t)> Progress::Callback() {
  if (!on_) return nullptr;
  return [this](uint64_t done_bytes, uint64_t total_bytes) { Update(done_bytes, total_bytes); };
}

void Progress::Update(uint64_t done_bytes, uint64_t total_bytes) {
  const absl::Time now = absl::Now();
  done_bytes_ = done_bytes;
  total_bytes_ = total_bytes;
  if (!began_) {
    if (total_bytes > 0 && total_bytes < kWorthIt) return;
    began_ = true;
    started_ = drawn_ = now;
    first_bytes_ = done_bytes;
    Draw();
  } else if (now - drawn_ >= kRedraw) {
    drawn_ = now;
    Draw();
  }
}

void Progress::Draw() {
  first_bytes_ = std::min(first_bytes_, done_bytes_);  // a stream that was sent again
  const size_t columns = TerminalColumns(STDERR_FILENO);
  // The last column stays free: some terminals wrap there.
  const std::string line = ProgressLine(name_, done_bytes_, total_bytes_, done_bytes_ - first_bytes_,
                                        absl::Now() - started_, columns > 1 ? columns - 1 : 79);
  absl::FPrintF(stderr, "\r%s\033[K", line);
  fflush(stderr);
}

}  // namespace statepool::cli
