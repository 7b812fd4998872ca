// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What people see at a terminal: texts that are cut, and the line of a transfer.
#include "client/cli/progress.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "client/cli/terminal.h"

namespace statepool::cli {
namespace {

constexpr uint64_t kMiB = 1 << 20;

TEST(CutMiddleTest, KeepsBothEndsAndWholeCharacters) {
  EXPECT_EQ(CutMiddle("abcdef", 6), "abcdef");
  EXPECT_EQ(CutMiddle("abcdefg", 6), "abc…fg");
  EXPECT_EQ(CutMiddle("abcdefg", 5), "ab…fg");
  EXPECT_EQ(CutMiddle("abcdefg", 2), "a…");
  EXPECT_EQ(CutMiddle("abcdefg", 1), "…");
  EXPECT_EQ(CutMiddle("äöüßéèê", 5), "äö…èê");
  EXPECT_EQ(Columns("äöüßéèê"), 7u);
  EXPECT_EQ(Columns(CutMiddle("äöüßéèê", 4)), 4u);
}

TEST(HumanBytesTest, HasOneDigitAfterThePoint) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(900 * kMiB), "900.0 MiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16.0 EiB");
}

TEST(TerminalTest, WhatIsNoTerminalHasNoWidth) { EXPECT_EQ(TerminalColumns(-1), 0u); }

TEST(ProgressLineTest, TellsBytesRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine("a", 3 * kMiB, 4 * kMiB, 3 * kMiB, absl::Seconds(2), 80),
            "a  [####################       ]   75%  3.0 MiB of 4.0 MiB  1.5 MiB/s  0:01 left");
  EXPECT_EQ(ProgressLine("a", kMiB, 1025 * kMiB, kMiB, absl::Seconds(4), 60),
            "a    0%  1.0 MiB of 1.0 GiB  256.0 KiB/s  1:08:17 left");
  EXPECT_EQ(ProgressLine("a", 4 * kMiB, 4 * kMiB, 4 * kMiB, absl::Seconds(65), 60),
            "a  [########]  100%  4.0 MiB of 4.0 MiB  63.0 KiB/s  in 1:05");
}

TEST(ProgressLineTest, SaysNothingThatIsNotKnown) {
  EXPECT_EQ(ProgressLine("a", 3 * kMiB, 0, 3 * kMiB, absl::Seconds(2), 80), "a  3.0 MiB  1.5 MiB/s");
  EXPECT_EQ(ProgressLine("a", 3 * kMiB, 0, 0, absl::ZeroDuration(), 80), "a  3.0 MiB");
}

TEST(ProgressLineTest, FitsWhateverTheWidthDownToItsNumbers) {
  const std::string name(100, 'n');
  for (size_t columns = 70; columns <= 200; ++columns) {
    const std::string line = ProgressLine(name, 3 * kMiB, 4 * kMiB, 3 * kMiB, absl::Seconds(2), columns);
    EXPECT_LE(Columns(line), columns);
    EXPECT_TRUE(absl::StrContains(line, "75%") && absl::EndsWith(line, "0:01 left")) << line;
    EXPECT_TRUE(absl::StrContains(line, "  [####")) << line;
  }
  for (size_t columns = 56; columns < 70; ++columns) {
    EXPECT_LE(Columns(ProgressLine(name, 3 * kMiB, 4 * kMiB, 3 * kMiB, absl::Seconds(2), columns)), columns);
  }
}

}  // namespace
}  // namespace statepool::cli
