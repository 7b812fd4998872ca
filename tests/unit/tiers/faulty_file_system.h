// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FaultyFileSystem: a file system under RocksDB whose log can be made to fail. Writes to files ending in ".log" give
// `append_error`, their syncs `sync_error`; everything else is the file system below. It knows which directories were
// synced.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_
#define STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_

#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "server/core/mutex.h"

namespace statepool {

enum class LogFault { kNone, kNoSpaceOnAppend, kIoErrorOnSync };

class FaultyFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultyFileSystem(std::shared_ptr<rocksdb::FileSystem> below) : FileSystemWrapper(std::move(below)) {}
  const char* Name() const override { return "FaultyFileSystem"; }

  std::atomic<LogFault> fault{LogFault::kNone};

  bool WasSynced(const std::string& directory) {
    MutexLock lock(&mu_);
    return synced_.contains(directory);
  }
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* debug) override {
    std::unique_ptr<rocksdb::FSDirectory> below;
    rocksdb::IOStatus status = target()->NewDirectory(name, options, &below, debug);
    if (status.ok()) *directory = std::make_unique<Directory>(this, name, std::move(below));
    return status;
  }

  // RocksDB recovers from a full disk only where it can ask for this.
  rocksdb::IOStatus GetFreeSpace(const std::string&, const rocksdb::IOOptions&, uint64_t* bytes,
                                 rocksdb::IODebugContext*) override {
    *bytes = fault == LogFault::kNoSpaceOnAppend ? 0 : uint64_t{1} << 40;
    return rocksdb::IOStatus::OK();
  }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override {
    std::unique_ptr<rocksdb::FSWritableFile> below;
    rocksdb::IOStatus status = target()->NewWritableFile(name, options, &below, debug);
    if (!status.ok() || !name.ends_with(".log")) {
      *file = std::move(below);
      return status;
    }
    *file = std::make_unique<Log>(this, std::move(below));
    return status;
  }

 private:
  class Directory final : public rocksdb::FSDirectoryWrapper {
   public:
    Directory(FaultyFileSystem* system, std::string name, std::unique_ptr<rocksdb::FSDirectory> below)
        : FSDirectoryWrapper(std::move(below)), system_(system), name_(std::move(name)) {}
    rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
      return FsyncWithDirOptions(options, debug, rocksdb::DirFsyncOptions());
    }
    rocksdb::IOStatus FsyncWithDirOptions(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug,
                                          const rocksdb::DirFsyncOptions& how) override {
      MutexLock lock(&system_->mu_);
      system_->synced_.insert(name_);
      return FSDirectoryWrapper::FsyncWithDirOptions(options, debug, how);
    }

   private:
    FaultyFileSystem* const system_;
    const std::string name_;
  };

  class Log final : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    Log(FaultyFileSystem* system, std::unique_ptr<rocksdb::FSWritableFile> below)
        : FSWritableFileOwnerWrapper(std::move(below)), system_(system) {}
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* debug) override {
      if (system_->fault == LogFault::kNoSpaceOnAppend) return rocksdb::IOStatus::NoSpace("planted");
      return target()->Append(data, options, debug);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* debug) override {
      return Append(data, options, debug);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
      if (system_->fault == LogFault::kIoErrorOnSync) return rocksdb::IOStatus::IOError("planted");
      return target()->Sync(options, debug);
    }
    rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
      return Sync(options, debug);
    }

   private:
    FaultyFileSystem* const system_;
  };

  Mutex mu_;
  std::set<std::string> synced_ ABSL_GUARDED_BY(mu_);
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_
