// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// RocksDbColdStore: the ColdStore of every deployment. What lies on disk stands in FORMAT.md.
//
// Records, manifests and small images are in RocksDB; larger images in files of our own (ImageFiles). Memory is
// bounded: memtables, one block cache, 8 MiB per call under way. A synced Commit waits for a sync of the files, if its
// records need images that are only written so far, and for one of the write-ahead log; concurrent ones share both.
#ifndef STATEPOOL_SERVER_TIERS_ROCKSDB_COLD_STORE_H_
#define STATEPOOL_SERVER_TIERS_ROCKSDB_COLD_STORE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "server/core/mutex.h"
#include "server/tiers/cold_store.h"
#include "server/tiers/image_files.h"
#include "server/tiers/synced_logs.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
class Env;
class FileLock;
class Iterator;
class Status;
class WriteBatch;
}  // namespace rocksdb

namespace statepool {

struct RocksDbColdStoreOptions {
  std::string path;                    // the data directory; made if its parent exists
  uint64_t budget_bytes = UINT64_MAX;  // of states and attachments
  uint64_t image_memtable_bytes = 16 << 20;
  uint64_t block_cache_bytes = 8 << 20;
  uint64_t collect_min_bytes = 64 << 20;  // deleted since the last collection before there is another
  rocksdb::Env* env = nullptr;            // not owned; null: the real one
  // Called once, from any thread, when the disk has failed for good. Must not block or call back.
  std::function<void(const absl::Status&)> on_failed;
};

class RocksDbColdStore final : public ColdStore {
 public:
  // Opens or creates a data directory, takes the next epoch and removes the mark of a clean stop; all of it durable
  // when this returns. Errors: FAILED_PRECONDITION with DATA_DIR_LOCKED (another daemon has it), FORMAT_UNKNOWN (a
  // newer version wrote it; nothing was changed), DATA_DIR_UNUSABLE (permissions, not a directory …); DATA_LOSS /
  // CORRUPT; COLD_FULL.
  static absl::StatusOr<std::unique_ptr<RocksDbColdStore>> Open(RocksDbColdStoreOptions options);
  // REQUIRES: no call under way.
  ~RocksDbColdStore() override;

  absl::Status PutImage(const ImageInfo& info, StateReader* state, absl::Span<const LeafHash> leaves,
                        absl::string_view attachment) override;
  absl::Status ReadImage(const ImageInfo& info, StateFiller* state, std::string* attachment) override;
  absl::Status DeleteImages(absl::Span<const ImageId> ids) override;
  absl::StatusOr<std::vector<ImageId>> ListImages(ImageId after, size_t limit) override;
  uint64_t used_bytes() const override { return used_bytes_.load(); }
  uint64_t budget_bytes() const override { return options_.budget_bytes; }
  bool failed() const override { return failed_.load(); }

  absl::Status Commit(absl::Span<const NameChange> changes, bool sync) override;
  absl::Status CommitLayout(const LayoutRecord& layout) override;
  absl::Status DeleteLayout(TenantId tenant, absl::string_view fingerprint) override;
  absl::Status CommitCleanStop(absl::string_view tombstones) override;
  LastRun last_run() const override { return last_run_; }
  uint64_t epoch() const override { return epoch_; }
  const std::string& hash_key() const override { return hash_key_; }
  absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) override;
  absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) override;

  // Gives the space of deleted images that were in the database back to the file system: drops blob files that are all
  // garbage, and rewrites the others once at least half of all their bytes is garbage (so a byte is rewritten once for
  // each byte that was deleted). Runs by itself after enough deletes; blocks.
  absl::Status CollectGarbage();

  // For tests and the fault harness: the database under this store.
  rocksdb::DB* db_for_testing() { return db_.get(); }
  rocksdb::ColumnFamilyHandle* images_for_testing() { return images_; }
  rocksdb::ColumnFamilyHandle* manifests_for_testing() { return manifests_; }

 private:
  class Listener;

  explicit RocksDbColdStore(RocksDbColdStoreOptions options);
  absl::Status OpenDatabase();
  absl::Status SyncDirectory(const std::string& path);
  absl::Status CheckSpaceToStart();
  absl::Status ReadMeta();
  absl::Status OpenFiles();
  // Best effort: without it only a damage may go unnoticed.
  void Witness(rocksdb::DB* db);
  absl::Status Write(rocksdb::WriteBatch* batch, bool sync);
  bool TryResume();
  bool HasSpace();
  absl::Status FromWrite(const rocksdb::Status& status);
  absl::Status FromRead(const rocksdb::Status& status);
  absl::Status FromFiles(const absl::Status& status);
  void Fail(const absl::Status& status);
  // COLD_FULL unless `bytes` fit on the disk and leave `reserve` free.
  absl::Status CheckFreeSpace(uint64_t bytes, uint64_t reserve) const;
  absl::Status PutBytes(const ImageInfo& info, StateReader* state, absl::Span<const LeafHash> leaves,
                        absl::string_view attachment);
  // The images that these records need are durable then.
  absl::Status SyncImagesOf(absl::Span<const NameChange> changes);
  std::unique_ptr<rocksdb::Iterator> Scan(rocksdb::ColumnFamilyHandle* family);
  void CollectLoop();

  const RocksDbColdStoreOptions options_;
  rocksdb::Env* const env_;
  SyncedLogs synced_logs_;
  std::unique_ptr<rocksdb::Env> db_env_;  // env_, with the logs followed
  rocksdb::FileLock* lock_ = nullptr;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> families_;
  rocksdb::ColumnFamilyHandle *meta_ = nullptr, *layouts_ = nullptr, *names_ = nullptr, *manifests_ = nullptr,
                              *images_ = nullptr;

  std::unique_ptr<ImageFiles> files_;
  uint64_t reserve_bytes_ = 0;  // of the disk, that images leave free
  LastRun last_run_;
  uint64_t epoch_ = 0;
  std::string hash_key_;
  uint64_t least_epoch_ = 0;  // that the database may have, as the witness says
  std::atomic<bool> opened_{false};
  Mutex witness_mu_;  // held while the witness is written
  std::atomic<uint64_t> used_bytes_{0};
  std::atomic<bool> failed_{false};

  Mutex mu_;
  CondVar wake_;
  absl::flat_hash_set<ImageId> unsynced_ ABSL_GUARDED_BY(mu_);  // in files, not known to be durable
  uint64_t deleted_bytes_ ABSL_GUARDED_BY(mu_) = 0;             // in the database, since the last collection
  int stuck_ ABSL_GUARDED_BY(mu_) = 0;                          // tries to resume that failed though there is space
  absl::Time resumed_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::atomic<bool> cancel_collection_{false};
  std::thread collector_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_ROCKSDB_COLD_STORE_H_
