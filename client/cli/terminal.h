// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Text that has to fit a terminal. A character of UTF-8 counts as one column. All functions are thread-safe.
#ifndef STATEPOOL_CLIENT_CLI_TERMINAL_H_
#define STATEPOOL_CLIENT_CLI_TERMINAL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace statepool::cli {

// The width of the terminal at this file descriptor: $COLUMNS, else what the terminal says, else 80. 0: it is none.
size_t TerminalColumns(int fd);

size_t Columns(absl::string_view text);

// The text with its middle replaced by "…", so that it has at most `columns` columns. REQUIRES: columns >= 1.
std::string CutMiddle(absl::string_view text, size_t columns);

// 1536 as "1.5 KiB".
std::string HumanBytes(uint64_t bytes);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_TERMINAL_H_
