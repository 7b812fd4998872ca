// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace statepool::cli {
namespace {

constexpr size_t kColumnsDefault = 80;

bool BeginsCharacter(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

// Where character number `n` begins.
size_t ByteOf(absl::string_view text, size_t n) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (BeginsCharacter(text[at]) && n-- == 0) break;
  }
  return at;
}

}  // namespace

size_t TerminalColumns(int fd) {
  if (isatty(fd) == 0) return 0;
  size_t columns = 0;
  const char* const environment = getenv("COLUMNS");
  if (environment != nullptr && absl::SimpleAtoi(environment, &columns) && columns > 0) return columns;
  winsize size = {};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return kColumnsDefault;
}

size_t Columns(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), BeginsCharacter));
}

std::string CutMiddle(absl::string_view text, size_t columns) {
  const size_t all = Columns(text);
  if (all <= columns) return std::string(text);
  const size_t head = columns / 2;
  const size_t tail = columns - head - 1;
  return absl::StrCat(text.substr(0, ByteOf(text, head)), "…", text.substr(ByteOf(text, all - tail)));
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double scaled = static_cast<double>(bytes);
  size_t unit = 0;
  for (; scaled >= 1024 && unit + 1 < std::size(kUnits); ++unit) scaled /= 1024;
  return absl::StrFormat("%.1f %s", scaled, kUnits[unit]);
}

}  // namespace statepool::cli
