// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Files named on the command line; "-" is stdin or stdout. `flag` names the argument in errors, whose reason is FILE
// (code UNKNOWN: not a miss, whatever errno says) or USAGE.
#ifndef STATEPOOL_CLIENT_CLI_FILES_H_
#define STATEPOOL_CLIENT_CLI_FILES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace statepool::cli {

// Errors: also USAGE when there are more than `max_bytes`.
absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path, size_t max_bytes);

// Writes all or nothing: to a temporary file beside `path`, synced, and renamed over it. What is no regular file
// (stdout, a pipe, a device) is written as it is.
absl::Status WriteFile(absl::string_view flag, const std::string& path, absl::Span<const absl::string_view> pieces);

// One token a line, 0..2^32-1; blank lines don't count.
absl::StatusOr<std::vector<uint32_t>> ReadTokens(absl::string_view flag, const std::string& path);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_FILES_H_
