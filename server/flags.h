// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The daemon's flags: from the command line, from files (--flagfile), and from the environment (STATEPOOL_<FLAG>).
//
// Names are written with dashes everywhere (--data-dir; underscores do as well). The environment is read first, then
// the command line from left to right with each --flagfile's lines in its place; the last value counts. `statepoold
// --help` lists them all.
#ifndef STATEPOOL_SERVER_FLAGS_H_
#define STATEPOOL_SERVER_FLAGS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/name.h"
#include "server/core/write_behind.h"

namespace statepool {

// A flag's type: bytes as 1048576, 512KiB, 8GiB, 1TiB (powers of 1,024), 500MB, 2GB (powers of 1,000).
struct ByteSize {
  uint64_t bytes = 0;
};
bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error);
std::string AbslUnparseFlag(const ByteSize& size);

// Everything that may be set, checked.
struct DaemonFlags {
  std::vector<std::string> listen;
  std::string metrics;  // empty: none
  std::string data_dir;
  std::vector<std::string> devices;  // "host" alone; "far", once for each; "cuda" alone; "cuda:UUID", each another
  uint64_t hot_bytes = 0, warm_bytes = 0, cold_bytes = 0;
  uint64_t staging_bytes = 0;
  uint64_t chunk_bytes = 0;        // 0: as the device sees fit
  uint64_t max_message_bytes = 0;  // of states: the transport's limit is a little higher
  uint64_t max_bytes_in_flight = 0;
  uint32_t max_uploads = 0;
  uint64_t max_upload_bytes = 0;
  absl::Duration upload_timeout, stream_timeout;
  std::string arena_socket;  // "auto", a path, or empty: no arenas
  std::vector<uint32_t> arena_uids;
  uint32_t max_arenas = 0;
  uint64_t max_arena_bytes = 0;
  absl::Duration arena_token_timeout;
  bool direct = false;
  uint64_t max_pinned_bytes = 0, max_granted_bytes = 0;
  size_t copy_threads = 0;
  uint64_t max_names = 0;
  Durability default_durability = Durability::kWriteBehind;
  absl::Duration default_ttl, max_ttl, flush_interval, max_lag, drain_grace;
  uint64_t max_dirty_bytes = 0;
  uint64_t flush_bytes_per_second = UINT64_MAX;
  LagPolicy lag_policy = LagPolicy::kDegrade;
  size_t executor_threads = 0, executor_queue = 0;
  std::string log_level;
};

// Prints and exits for --help and --version (0), and for what Abseil finds wrong (1).
// Errors: INVALID_ARGUMENT with a sentence.
absl::StatusOr<DaemonFlags> ParseDaemonFlags(int argc, char** argv, absl::string_view version);

// The arguments that Abseil shall parse, in the order in which they count: environment, then `arguments` (argv without
// the program's name) with flagfiles in their places, names with underscores. Pure, for tests: `names` are the flags
// there are, `environment` looks a variable up, `read_file` gives a file's content. Errors: INVALID_ARGUMENT (a
// flagfile that can't be read, or that holds something else than flags, or too many within each other).
absl::StatusOr<std::vector<std::string>> ExpandArguments(
    const std::vector<std::string>& arguments, const std::vector<std::string>& names,
    const std::function<std::optional<std::string>(const std::string&)>& environment,
    const std::function<absl::StatusOr<std::string>(const std::string&)>& read_file);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_FLAGS_H_
