// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FaultyFileSystem: a file system under RocksDB whose log can be made to fail. Writes to files ending in ".log" give
// `append_error`, their syncs `sync_error`; everything else is the file system below.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_
#define STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_

#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

namespace statepool {

enum class LogFault { kNone, kNoSpaceOnAppend, kIoErrorOnSync };

class FaultyFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultyFileSystem(std::shared_ptr<rocksdb::FileSystem> below) : FileSystemWrapper(std::move(below)) {}
  const char* Name() const override { return "FaultyFileSystem"; }

  std::atomic<LogFault> fault{LogFault::kNone};

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
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_FAULTY_FILE_SYSTEM_H_
