// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// SyncedLogs: how far RocksDB's write-ahead logs were synced, so that a damaged log is not taken for one that a crash
// cut off.
//
// RocksDB reads a log up to its first damage: behind it may lie what a crash left half-written. But what was synced had
// been written. So a small file, DIR/SYNCED, tells of each log how many of its bytes were synced, and their XXH3-64. It
// is written in place after each sync and never synced itself: it may lag behind, and then a damage to the newest bytes
// goes unnoticed; it is never ahead.
#ifndef STATEPOOL_SERVER_TIERS_SYNCED_LOGS_H_
#define STATEPOOL_SERVER_TIERS_SYNCED_LOGS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "server/core/mutex.h"

namespace rocksdb {
class Env;
}  // namespace rocksdb

namespace statepool {

// Thread-safe.
class SyncedLogs {
 public:
  // Of the data directory `path`, whose database is in `path`/db. Writes nothing yet.
  explicit SyncedLogs(std::string path);
  ~SyncedLogs();
  SyncedLogs(const SyncedLogs&) = delete;
  SyncedLogs& operator=(const SyncedLogs&) = delete;

  // Before the database is opened. DATA_LOSS / CORRUPT when a log has not all that was synced. No file, or a damaged
  // one, proves nothing: then this is OK.
  absl::Status Check();

  // `env`, but that the logs of the database in it are followed. Both must outlive what uses it; this must outlive it.
  std::unique_ptr<rocksdb::Env> Follow(rocksdb::Env* env);

  // All that is in the logs is in tables as well: a damage to them costs nothing that counts.
  void Forget();

 private:
  class FileSystem;
  class Log;
  struct Synced {
    uint64_t bytes = 0, sum = 0;
  };

  void Record(uint64_t log, Synced synced);
  void Remove(uint64_t log);
  void Save() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  Mutex mu_;
  std::map<uint64_t, Synced> logs_ ABSL_GUARDED_BY(mu_);
  int file_ ABSL_GUARDED_BY(mu_) = -1;
  bool warned_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_SYNCED_LOGS_H_
