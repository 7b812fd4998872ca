// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How RocksDB is set up: every figure that bounds its memory or shapes its files, and why. For rocksdb_cold_store.cc
// alone.
#ifndef STATEPOOL_SERVER_TIERS_ROCKSDB_OPTIONS_H_
#define STATEPOOL_SERVER_TIERS_ROCKSDB_OPTIONS_H_

#include <rocksdb/cache.h>
#include <rocksdb/options.h>

#include <memory>

namespace statepool {

struct RocksDbMemory {
  uint64_t image_memtable_bytes = 0;            // three may exist at a time
  std::shared_ptr<rocksdb::Cache> block_cache;  // one for all families
};

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env, const RocksDbMemory& memory);
// For meta, layouts, names and manifests: many small records.
rocksdb::ColumnFamilyOptions MakeRecordOptions(const RocksDbMemory& memory);
// For images that have no file of their own: blobs.
rocksdb::ColumnFamilyOptions MakeImageOptions(const RocksDbMemory& memory);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_ROCKSDB_OPTIONS_H_
