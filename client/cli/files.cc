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
constexpr size_t kReadBytes = size_t{1} << 20;     // from what does not tell its size
constexpr size_t kWindowBytes = size_t{24} << 20;  // more than a connection holds on its way

absl::Status FileError(absl::string_view flag, absl::string_view path) {
  return client::MakeError(absl::StatusCode::kUnknown, "FILE", flag, absl::StrCat(path, ": ", strerror(errno)));
}

bool WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
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

absl::StatusOr<FileWriter> FileWriter::Open(absl::string_view flag, const std::string& path) {
  FileWriter file;
  file.flag_ = std::string(flag);
  file.path_ = path;
  struct stat info = {};
  const bool exists = path != "-" && stat(path.c_str(), &info) == 0;
  if (path == "-") {
    fflush(stdout);
    file.fd_ = STDOUT_FILENO;
    return file;
  }
  if (exists && !S_ISREG(info.st_mode)) {
    file.fd_ = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (file.fd_ < 0) return FileError(flag, path);
    return file;
  }
  std::string temporary = absl::StrCat(path, ".XXXXXX");
  file.fd_ = mkostemp(temporary.data(), O_CLOEXEC);
  if (file.fd_ < 0) return FileError(flag, path);
  file.temporary_ = std::move(temporary);
  const mode_t mask = umask(0);
  umask(mask);
  if (fchmod(file.fd_, exists ? info.st_mode & 07777 : 0666 & ~mask) != 0) return FileError(flag, path);
  return file;
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : flag_(std::move(other.flag_)),
      path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, "")),
      fd_(std::exchange(other.fd_, -1)) {}

FileWriter::~FileWriter() {
  if (fd_ > STDERR_FILENO) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status FileWriter::Append(absl::string_view bytes) {
  return WriteAll(fd_, bytes) ? absl::OkStatus() : FileError(flag_, path_);
}

absl::Status FileWriter::Commit() {
  if (temporary_.empty()) return absl::OkStatus();
  if (fsync(fd_) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) return FileError(flag_, path_);
  temporary_.clear();
  return absl::OkStatus();
}

absl::Status WriteFile(absl::string_view flag, const std::string& path, absl::Span<const absl::string_view> pieces) {
  absl::StatusOr<FileWriter> file = FileWriter::Open(flag, path);
  if (!file.ok()) return file.status();
  for (absl::string_view piece : pieces) {
    if (absl::Status status = file->Append(piece); !status.ok()) return status;
  }
  return file->Commit();
}

absl::StatusOr<FileReader> FileReader::Open(absl::string_view flag, const std::string& path) {
  FileReader file;
  file.flag_ = std::string(flag);
  file.path_ = path;
  file.fd_ = path == "-" ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  if (file.fd_ < 0 || fstat(file.fd_, &info) != 0) return FileError(flag, path);
  // A regular file on stdin may be read up to somewhere already.
  file.is_regular_ = S_ISREG(info.st_mode) && (path != "-" || lseek(file.fd_, 0, SEEK_CUR) == 0);
  if (file.is_regular_) file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

FileReader::FileReader(FileReader&& other) noexcept
    : flag_(std::move(other.flag_)),
      path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      is_regular_(other.is_regular_),
      size_(other.size_),
      window_(std::move(other.window_)),
      window_offset_(other.window_offset_) {}

FileReader::~FileReader() {
  if (fd_ > STDERR_FILENO) close(fd_);
}

absl::StatusOr<size_t> FileReader::Read(uint64_t offset, char* to, size_t max) {
  const uint64_t end = window_offset_ + window_.size();  // as far as it was read
  if (!is_regular_ && (offset < window_offset_ || offset > end)) {
    return client::MakeError(absl::StatusCode::kFailedPrecondition, "FILE", flag_,
                             absl::StrCat(path_, ": what was sent can't be read again"));
  }
  if (!is_regular_ && offset < end) {
    const absl::string_view again = absl::string_view(window_).substr(offset - window_offset_, max);
    memcpy(to, again.data(), again.size());
    return again.size();
  }
  ssize_t n;
  do {
    n = is_regular_ ? pread(fd_, to, max, static_cast<off_t>(offset)) : read(fd_, to, max);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return FileError(flag_, path_);
  if (!is_regular_) {
    if (window_.empty()) window_.reserve(kWindowBytes + kWindowBytes / 2);  // takes memory only as it fills
    window_.append(to, static_cast<size_t>(n));
    if (window_.size() > kWindowBytes + kWindowBytes / 4) {  // not at each read: the rest moves
      const size_t gone = window_.size() - kWindowBytes;
      window_.erase(0, gone);
      window_offset_ += gone;
    }
  }
  return static_cast<size_t>(n);
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
