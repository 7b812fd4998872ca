// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/synced_logs.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/xxh3.h"
#include "server/core/error.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr char kFile[] = "/SYNCED";
// As it lies on disk, little-endian: the newest logs, ascending, zeros behind them, and the XXH3-64 of all before it.
constexpr size_t kLogsMax = 16;
struct Entry {
  uint64_t log, bytes, sum;
};
struct Page {
  std::array<Entry, kLogsMax> entries;
  uint64_t sum;
};
static_assert(sizeof(Page) == kLogsMax * 24 + 8);

uint64_t SumOf(const Page& page) { return Xxh3(reinterpret_cast<const char*>(&page), offsetof(Page, sum)); }

// The number of a log, by the name of its file; 0: it is none.
uint64_t LogNumber(absl::string_view path) {
  uint64_t number = 0;
  const size_t slash = path.rfind('/');
  if (slash != absl::string_view::npos) path.remove_prefix(slash + 1);
  return absl::ConsumeSuffix(&path, ".log") && absl::SimpleAtoi(path, &number) ? number : 0;
}

class Hash {
 public:
  Hash() { XXH3_64bits_reset(state_.get()); }
  void Add(const char* data, size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  uint64_t sum() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const std::unique_ptr<XXH3_state_t, Free> state_{XXH3_createState()};
};

}  // namespace

// A log that is being written.
class SyncedLogs::Log final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  Log(SyncedLogs* logs, uint64_t number, std::unique_ptr<rocksdb::FSWritableFile> below)
      : FSWritableFileOwnerWrapper(std::move(below)), logs_(logs), number_(number) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* debug) override {
    return Appended(data, target()->Append(data, options, debug));
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           const rocksdb::DataVerificationInfo& verification, rocksdb::IODebugContext* debug) override {
    return Appended(data, target()->Append(data, options, verification, debug));
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    const Synced now = Now();
    return WasSynced(now, target()->Sync(options, debug));
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
    const Synced now = Now();
    return WasSynced(now, target()->Fsync(options, debug));
  }

 private:
  rocksdb::IOStatus Appended(const rocksdb::Slice& data, rocksdb::IOStatus status) {
    MutexLock lock(&mu_);
    // How much of a refused write is in the file nobody says: what comes behind it is not followed.
    if (!status.ok()) known_ = false;
    if (known_) {
      hash_.Add(data.data(), data.size());
      bytes_ += data.size();
    }
    return status;
  }
  Synced Now() {
    MutexLock lock(&mu_);
    return {bytes_, hash_.sum()};
  }
  rocksdb::IOStatus WasSynced(Synced synced, rocksdb::IOStatus status) {
    if (status.ok()) logs_->Record(number_, synced);
    return status;
  }

  SyncedLogs* const logs_;
  const uint64_t number_;
  Mutex mu_;
  bool known_ ABSL_GUARDED_BY(mu_) = true;
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  Hash hash_ ABSL_GUARDED_BY(mu_);
};

class SyncedLogs::FileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FileSystem(SyncedLogs* logs, const std::shared_ptr<rocksdb::FileSystem>& below)
      : FileSystemWrapper(below), logs_(logs) {}
  const char* Name() const override { return "StatepoolSyncedLogs"; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override {
    rocksdb::IOStatus status = target()->NewWritableFile(name, options, file, debug);
    if (const uint64_t number = LogNumber(name); status.ok() && number != 0) {
      logs_->Remove(number);  // one of this name there was before, if any
      *file = std::make_unique<Log>(logs_, number, std::move(*file));
    }
    return status;
  }
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override {
    if (const uint64_t number = LogNumber(name); number != 0) logs_->Remove(number);
    return target()->DeleteFile(name, options, debug);
  }

 private:
  SyncedLogs* const logs_;
};

SyncedLogs::SyncedLogs(std::string path) : path_(std::move(path)) {}

SyncedLogs::~SyncedLogs() {
  MutexLock lock(&mu_);
  if (file_ >= 0) close(file_);
}

absl::Status SyncedLogs::Check() {
  std::string text;
  if (rocksdb::Status status = rocksdb::ReadFileToString(rocksdb::Env::Default(), path_ + kFile, &text); !status.ok()) {
    if (!status.IsNotFound() && !status.IsPathNotFound()) spdlog::warn("{}{}: {}", path_, kFile, status.ToString());
    return absl::OkStatus();
  }
  Page page;
  if (text.size() == sizeof(page)) std::memcpy(&page, text.data(), sizeof(page));
  if (text.size() != sizeof(page) || page.sum != SumOf(page)) {
    spdlog::warn("{}{} is damaged, and replaced", path_, kFile);
    return absl::OkStatus();
  }
  MutexLock lock(&mu_);
  for (const Entry& entry : page.entries) {
    if (entry.log == 0) break;
    std::unique_ptr<rocksdb::SequentialFile> file;
    const std::string name = absl::StrFormat("%s/db/%06d.log", path_, entry.log);
    // A log that is gone is one that RocksDB needs no more, or its own recovery will miss it.
    if (!rocksdb::Env::Default()->NewSequentialFile(name, &file, rocksdb::EnvOptions()).ok()) continue;
    Hash hash;
    std::vector<char> buffer(1 << 20);
    uint64_t left = entry.bytes;
    while (left > 0) {
      rocksdb::Slice read;
      if (!file->Read(std::min<uint64_t>(left, buffer.size()), &read, buffer.data()).ok() || read.empty()) break;
      hash.Add(read.data(), read.size());
      left -= read.size();
    }
    if (left > 0 || hash.sum() != entry.sum) {
      return Error(absl::StatusCode::kDataLoss, "CORRUPT",
                   absl::StrCat("the log ", name, " is damaged in its first ", entry.bytes,
                                " bytes, which were on disk: what was written last would be lost; bring the whole "
                                "directory back from a copy, or remove its file SYNCED to go on with what was before"));
    }
    logs_[entry.log] = {entry.bytes, entry.sum};
  }
  return absl::OkStatus();
}

std::unique_ptr<rocksdb::Env> SyncedLogs::Follow(rocksdb::Env* env) {
  return rocksdb::NewCompositeEnv(std::make_shared<FileSystem>(this, env->GetFileSystem()));
}

void SyncedLogs::Record(uint64_t log, Synced synced) {
  MutexLock lock(&mu_);
  Synced& known = logs_[log];
  if (synced.bytes <= known.bytes) return;
  known = synced;
  while (logs_.size() > kLogsMax) logs_.erase(logs_.begin());
  Save();
}

void SyncedLogs::Remove(uint64_t log) {
  MutexLock lock(&mu_);
  if (logs_.erase(log) > 0) Save();
}

void SyncedLogs::Forget() {
  MutexLock lock(&mu_);
  logs_.clear();
  Save();
}

void SyncedLogs::Save() {
  Page page = {};
  size_t used = 0;
  for (const auto& [log, synced] : logs_) page.entries[used++] = {log, synced.bytes, synced.sum};
  page.sum = SumOf(page);
  if (file_ < 0) file_ = open((path_ + kFile).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (file_ >= 0 && pwrite(file_, &page, sizeof(page), 0) == static_cast<ssize_t>(sizeof(page))) return;
  if (!std::exchange(warned_, true))
    spdlog::warn("{}{} can't be written, so a damage to a log may go unnoticed: {}", path_, kFile, strerror(errno));
}

}  // namespace statepool
