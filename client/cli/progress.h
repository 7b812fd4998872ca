// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How far a transfer is, for people who watch: one line on stderr that is drawn over and over. Without a terminal there
// is none.
#ifndef STATEPOOL_CLIENT_CLI_PROGRESS_H_
#define STATEPOOL_CLIENT_CLI_PROGRESS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace statepool::cli {

// "chat/42  [#####     ]  50%  1.0 MiB of 2.0 MiB  1.0 MiB/s  0:01 left", without what is not known, in at most
// `columns` columns: the bar gets narrower, then the name loses its middle, then the bar goes. `moved_bytes` came in
// `elapsed`.
std::string ProgressLine(absl::string_view name, uint64_t done_bytes, uint64_t total_bytes, uint64_t moved_bytes,
                         absl::Duration elapsed, size_t columns);

// The line of one transfer. Small ones (less than a MiB) draw nothing. The destructor leaves the last line of a
// transfer that came to its end, and wipes that of any other. Not thread-safe.
class Progress {
 public:
  explicit Progress(absl::string_view name);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // For client::CallOptions::progress; empty without a terminal. REQUIRES: used while this lives.
  std::function<void(uint64_t, uint64_t)> Callback();

 private:
  void Update(uint64_t done_bytes, uint64_t total_bytes);
  void Draw();

  const std::string name_;
  const bool on_;
  absl::Time started_, drawn_;
  uint64_t first_bytes_ = 0, done_bytes_ = 0, total_bytes_ = 0;
  bool began_ = false;
};

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_PROGRESS_H_
