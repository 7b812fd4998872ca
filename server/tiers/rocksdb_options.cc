// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/rocksdb_options.h"

#include <rocksdb/env.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/table_properties_collectors.h>
#include <rocksdb/write_buffer_manager.h>

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr uint64_t kRecordMemtableBytes = 4 << 20;
constexpr uint64_t kBlobFileBytes =
    16 << 20;  // what is reclaimed at a time; also the most that one rewrite needs beside it
constexpr uint64_t kMinBlobBytes = 4 << 10;  // smaller values would cost more as a file reference than inside the tree
constexpr uint64_t kMaxWalBytes = 64 << 20;  // what a start after a crash reads

// RocksDB's own messages go where the daemon's go.
class DaemonLog final : public rocksdb::Logger {
 public:
  DaemonLog() : Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < GetInfoLogLevel() || level == rocksdb::InfoLogLevel::HEADER_LEVEL) return;
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, arguments);
    // Warnings at most: what it calls an error may be none (a new data directory is), and real ones come as a Status.
    spdlog::warn("rocksdb: {}", std::string(absl::StripTrailingAsciiWhitespace(text)));
  }
  void Logv(const char* format, va_list arguments) override {
    Logv(rocksdb::InfoLogLevel::WARN_LEVEL, format, arguments);
  }
  void LogHeader(const char*, va_list) override {}
};

rocksdb::ColumnFamilyOptions Common(const RocksDbMemory& memory) {
  rocksdb::ColumnFamilyOptions options;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = memory.block_cache;  // small: records are read at recovery only, image bytes never go through it
  table.cache_index_and_filter_blocks = true;
  table.checksum = rocksdb::kXXH3;  // Debian's CRC32 is not accelerated
  table.format_version = 5;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kNoCompression;
  // A memtable takes memory as it fills, not in steps of a megabyte.
  options.arena_block_size = 64 << 10;
  // Deletes alone give no space back: a file half full of them is compacted.
  options.table_properties_collector_factories = {rocksdb::NewCompactOnDeletionCollectorFactory(128, 64, 0.5)};
  return options;
}

}  // namespace

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env, const RocksDbMemory& memory) {
  rocksdb::DBOptions options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(3 * memory.image_memtable_bytes);
  options.max_total_wal_size = kMaxWalBytes;
  // After a crash the log is good up to a point, and nothing behind that point counts: that is the order which we
  // promise.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  // Unsynced image bytes trickle out, so that the next synced commit does not wait for all of them.
  options.wal_bytes_per_sync = 4 << 20;
  options.bytes_per_sync = 4 << 20;
  options.max_background_jobs = 3;
  options.max_open_files = 512;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // Never a file beside the data: its writer (7.8) aborts when it is used again after a full disk refused it once.
  options.info_log = std::make_shared<DaemonLog>();
  return options;
}

rocksdb::ColumnFamilyOptions MakeRecordOptions(const RocksDbMemory& memory) {
  rocksdb::ColumnFamilyOptions options = Common(memory);
  options.write_buffer_size = kRecordMemtableBytes;
  options.target_file_size_base = 8 << 20;
  return options;
}

rocksdb::ColumnFamilyOptions MakeImageOptions(const RocksDbMemory& memory) {
  rocksdb::ColumnFamilyOptions options = Common(memory);
  options.write_buffer_size = memory.image_memtable_bytes;
  options.max_write_buffer_number = 3;
  options.enable_blob_files = true;
  options.min_blob_size = kMinBlobBytes;
  options.blob_file_size = kBlobFileBytes;
  // Automatic compactions move references, not blobs: with garbage collection in them each would rewrite all blobs that
  // it meets, and the tree is so small (40 bytes an image) that it meets nearly all. RocksDbColdStore collects by
  // itself, when half is garbage.
  options.enable_blob_garbage_collection = false;
  options.target_file_size_base = 1 << 20;
  return options;
}

}  // namespace statepool
