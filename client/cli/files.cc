// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/args.h"
#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

constexpr size_t kTokenFileBytesMax = size_t{1} << 30;
constexpr size_t kReadBytes = size_t{1} << 20;  // from what does not tell its size

absl::Status FileError(absl::string_view flag, absl::string_view path) {
  return client::MakeError(absl::StatusCode::kUnknown, "FILE", flag, absl::StrCat(path, ": ", strerror(errno)));
}

bool WriteAll(int fd, absl::Span<const absl::string_view> pieces) {
  for (absl::string_view piece : pieces) {
    while (!piece.empty()) {
      const ssize_t n = write(fd, piece.data(), piece.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return false;
      piece.remove_prefix(static_cast<size_t>(n));
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path, size_t max_bytes) {
  const int fd = path == "-" ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(flag, path);
  const auto close_it = absl::MakeCleanup([fd] {
    if (fd != STDIN_FILENO) close(fd);
  });
  struct stat info = {};
  if (fstat(fd, &info) != 0) return FileError(flag, path);

  // One byte more than expected shows the end without another turn.
  std::string bytes;
  const size_t expected = S_ISREG(info.st_mode) ? static_cast<size_t>(info.st_size) : 0;
  size_t used = 0;
  while (used <= max_bytes) {
    if (used == bytes.size())
      bytes.resize(std::min(max_bytes, std::max(expected, used + std::max(used, kReadBytes))) + 1);
    const ssize_t n = read(fd, bytes.data() + used, bytes.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(flag, path);
    if (n == 0) {
      bytes.resize(used);
      return bytes;
    }
    used += static_cast<size_t>(n);
  }
  return UsageError(flag, absl::StrCat(path, " has more than ", max_bytes, " bytes"));
}

absl::Status WriteFile(absl::string_view flag, const std::string& path, absl::Span<const absl::string_view> pieces) {
  struct stat info;
  const bool exists = path != "-" && stat(path.c_str(), &info) == 0;
  if (path == "-" || (exists && !S_ISREG(info.st_mode))) {
    if (path == "-") fflush(stdout);
    const int fd = path == "-" ? STDOUT_FILENO : open(path.c_str(), O_WRONLY | O_CLOEXEC);
    const bool written = fd >= 0 && WriteAll(fd, pieces);
    const absl::Status status = written ? absl::OkStatus() : FileError(flag, path);
    if (fd > STDERR_FILENO) close(fd);
    return status;
  }

  std::string temporary = absl::StrCat(path, ".XXXXXX");
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return FileError(flag, path);
  const mode_t mask = umask(0);
  umask(mask);
  const mode_t mode = exists ? info.st_mode & 07777 : 0666 & ~mask;
  const bool written = fchmod(fd, mode) == 0 && WriteAll(fd, pieces) && fsync(fd) == 0;
  if (written && rename(temporary.c_str(), path.c_str()) == 0) {
    close(fd);
    return absl::OkStatus();
  }
  const absl::Status status = FileError(flag, path);
  close(fd);
  unlink(temporary.c_str());
  return status;
}

absl::StatusOr<std::vector<uint32_t>> ReadTokens(absl::string_view flag, const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(flag, path, kTokenFileBytesMax);
  if (!text.ok()) return text.status();
  std::vector<uint32_t> tokens;
  size_t line_number = 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    tokens.emplace_back();
    if (!absl::SimpleAtoi(line, &tokens.back())) {
      return UsageError(flag, absl::StrCat(path, ", line ", line_number, ": '", line.substr(0, 40),
                                           "' is no token: one integer in 0..4294967295 a line"));
    }
  }
  return tokens;
}

}  // namespace statepool::cli
