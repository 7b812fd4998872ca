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

// A file that is written all or nothing: to a temporary file beside `path`, synced, and renamed over it by Commit. What
// is no regular file (stdout, a pipe, a device) is written as it is. Without Commit a regular file stays what it was.
// Not thread-safe. After an error only the destructor may be called.
class FileWriter {
 public:
  static absl::StatusOr<FileWriter> Open(absl::string_view flag, const std::string& path);
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&&) = delete;
  ~FileWriter();

  absl::Status Append(absl::string_view bytes);
  absl::Status Commit();

 private:
  FileWriter() = default;

  std::string flag_, path_, temporary_;  // temporary_ is empty for what is written as it is
  int fd_ = -1;
};

absl::Status WriteFile(absl::string_view flag, const std::string& path, absl::Span<const absl::string_view> pieces);

// Bytes to send, from a file of any size or from stdin, without holding them all. Not thread-safe.
class FileReader {
 public:
  static absl::StatusOr<FileReader> Open(absl::string_view flag, const std::string& path);
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&&) = delete;
  ~FileReader();

  // Of a regular file; 0 for others, whose size shows at their end.
  uint64_t size() const { return size_; }
  bool is_regular() const { return is_regular_; }

  // Up to `max` bytes from `offset` on; 0: the end is there. What is no regular file can only be read on, or again from
  // among its last 24 MiB. Errors: also FAILED_PRECONDITION for what is gone.
  absl::StatusOr<size_t> Read(uint64_t offset, char* to, size_t max);

 private:
  FileReader() = default;

  std::string flag_, path_;
  int fd_ = -1;
  bool is_regular_ = false;
  uint64_t size_ = 0;
  std::string window_;  // the last bytes that were read from what is no regular file
  uint64_t window_offset_ = 0;
};

// One token a line, 0..2^32-1; blank lines don't count.
absl::StatusOr<std::vector<uint32_t>> ReadTokens(absl::string_view flag, const std::string& path);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_FILES_H_
