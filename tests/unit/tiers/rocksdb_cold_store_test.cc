// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The store over a file system in memory, and where the file system itself matters, over a directory that goes
// afterwards.
#include "server/tiers/rocksdb_cold_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tiers/test_support.h"

namespace statepool {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

NameChange MakeChange(const std::string& name, Revision revision) {
  NameRecord record;
  record.key = {kDefaultTenant, NameKind::kSequence, name};
  record.layout = "f";
  record.revision = revision;
  record.create_time = absl::FromUnixSeconds(1);
  record.versions.resize(1);
  return {record.key, record};
}

class RocksDbColdStoreTest : public RocksDbTest {
 protected:
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    EXPECT_TRUE(cold_
                    ->LoadNames([&](NameChange change) {
                      names.push_back(change.record ? absl::StrCat(change.key.name, "@", change.record->revision)
                                                    : change.key.name + "?");
                      return absl::OkStatus();
                    })
                    .ok());
    return names;
  }
};

// ---- images

TEST_F(RocksDbColdStoreTest, ImagesOfEverySizeComeBackEqual) {
  ImageId id = 0;
  for (uint64_t size : {1_KiB - 1, 60_KiB, 64_KiB - 1, 64_KiB, 64_KiB + 1, 1_MiB, 9_MiB + 70'001}) {
    for (uint64_t attachment_size : {uint64_t{0}, uint64_t{1}, 100_KiB}) {
      const std::string state = MakeBytes(size, ++id), attachment = MakeBytes(attachment_size, 99);
      const ImageInfo info = MakeInfo(id, MakeLayout(size), state, attachment);
      ASSERT_TRUE(Put(info, state, attachment).ok());
      std::string back(size, 0), back_attachment;
      ASSERT_TRUE(ReadImage(cold_.get(), info, &back, &back_attachment).ok());
      EXPECT_TRUE(back == state && back_attachment == attachment) << size;
    }
  }
}

TEST_F(RocksDbColdStoreTest, AFlippedByteIsCorruptWhereverItIs) {
  ImageId id = 0;
  for (const uint64_t size : {10_KiB, 2_MiB + 5}) {
    const std::string state = MakeBytes(size, 1), attachment = "attached";
    const LayoutRef layout = MakeLayout(size);
    std::string back(size, 0), back_attachment;
    const uint64_t hashes = size < 64_KiB ? 0 : 8 * LeafCount(size);  // which prove nothing
    for (const uint64_t at : {uint64_t{0}, size / 2, size - 1, size + hashes, size + hashes + attachment.size() - 1}) {
      const ImageInfo info = MakeInfo(++id, layout, state, attachment);
      ASSERT_TRUE(Put(info, state, attachment).ok());
      Damage(id, at);
      const absl::Status status = ReadImage(cold_.get(), info, &back, &back_attachment);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size << " " << at;
      EXPECT_EQ(ReasonOf(status), "CORRUPT");
    }
  }
  EXPECT_FALSE(cold_->failed());
}

TEST_F(RocksDbColdStoreTest, AnotherImagesBytesAreCorruptThoughTheyAgreeWithThemselves) {
  const LayoutRef layout = MakeLayout(64_KiB);
  const std::string a = MakeBytes(64_KiB, 1), b = MakeBytes(64_KiB, 2);
  ASSERT_TRUE(Put(MakeInfo(1, layout, a), a).ok());
  ImageInfo wrong = MakeInfo(1, layout, b);
  std::string back(64_KiB, 0), attachment;
  EXPECT_EQ(ReasonOf(ReadImage(cold_.get(), wrong, &back, &attachment)), "CORRUPT");
  wrong.id = 2;
  EXPECT_EQ(ReasonOf(ReadImage(cold_.get(), wrong, &back, &attachment)), "CORRUPT");
}

TEST_F(RocksDbColdStoreTest, DeletedImagesAreGoneAndNoLongerCounted) {
  const std::string state = MakeBytes(30'000, 1);
  const LayoutRef layout = MakeLayout(state.size());
  for (ImageId id : {1, 2, 3}) ASSERT_TRUE(Put(MakeInfo(id, layout, state, "abc"), state, "abc").ok());
  EXPECT_EQ(cold_->used_bytes(), 3 * 30'003u);
  EXPECT_THAT(Stored(), ElementsAre(1, 2, 3));
  EXPECT_THAT(*cold_->ListImages(1, 1), ElementsAre(2));
  ASSERT_TRUE(cold_->DeleteImages({1, 3, 17}).ok());
  EXPECT_THAT(Stored(), ElementsAre(2));
  EXPECT_EQ(cold_->used_bytes(), 30'003u);
  const std::unique_ptr<rocksdb::Iterator> it(cold_->db_for_testing()->NewIterator({}, cold_->images_for_testing()));
  int values = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) ++values;
  EXPECT_EQ(values, 1);
}

TEST_F(RocksDbColdStoreTest, TheBudgetIsCheckedBeforeAnythingIsWritten) {
  cold_budget_ = 2_MiB;
  Restart();
  const std::string state = MakeBytes(1_MiB, 1);
  const LayoutRef layout = MakeLayout(state.size());
  ASSERT_TRUE(Put(MakeInfo(1, layout, state), state).ok());
  const absl::Status refused = Put(MakeInfo(2, layout, state, "a"), state, "a");  // one byte too much
  ASSERT_TRUE(Put(MakeInfo(3, layout, state), state).ok());
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "COLD_FULL");
  EXPECT_GT(GetErrorDetail(refused).retry_after, absl::ZeroDuration());
  EXPECT_THAT(Stored(), ElementsAre(1, 3));
  Restart();
  EXPECT_EQ(cold_->used_bytes(), 2_MiB);
  ASSERT_TRUE(cold_->DeleteImages({1}).ok());
  EXPECT_TRUE(Put(MakeInfo(2, layout, state), state).ok());
}

TEST_F(RocksDbColdStoreTest, TheSpaceOfDeletedImagesInTheDatabaseReallyComesBack) {
  const std::string state = MakeBytes(32_KiB, 1);
  const LayoutRef layout = MakeLayout(state.size());
  const auto disk_bytes = [this] {
    uint64_t bytes = 0;
    cold_->db_for_testing()->GetIntProperty(cold_->images_for_testing(), rocksdb::DB::Properties::kTotalBlobFileSize,
                                            &bytes);
    return bytes;
  };
  std::vector<ImageId> most;
  for (ImageId id = 1; id <= 400; ++id) {
    ASSERT_TRUE(Put(MakeInfo(id, layout, state), state).ok());
    if (id % 10 != 0) most.push_back(id);  // so that no file is garbage alone
  }
  ASSERT_TRUE(cold_->db_for_testing()->Flush({}, cold_->images_for_testing()).ok());
  ASSERT_GE(disk_bytes(), 400 * 32_KiB);
  ASSERT_TRUE(cold_->DeleteImages(most).ok());
  ASSERT_TRUE(cold_->CollectGarbage().ok());
  EXPECT_LE(disk_bytes(), 2 * 40 * 32_KiB);
  std::string back(state.size(), 0), attachment;
  for (ImageId id : {10, 20, 30, 40})
    EXPECT_TRUE(ReadImage(cold_.get(), MakeInfo(id, layout, state), &back, &attachment).ok());
}

TEST_F(RocksDbColdStoreTest, ImagesSurviveARestart) {
  const std::string state = MakeBytes(2_MiB, 1);
  const ImageInfo info = MakeInfo(5, MakeLayout(state.size()), state, "abc");
  ASSERT_TRUE(Put(info, state, "abc").ok());
  ASSERT_TRUE(cold_->Commit({}, /*sync=*/true).ok());
  Restart();
  std::string back(2_MiB, 0), attachment;
  ASSERT_TRUE(ReadImage(cold_.get(), info, &back, &attachment).ok());
  EXPECT_TRUE(back == state && attachment == "abc");
  EXPECT_EQ(cold_->used_bytes(), 2_MiB + 3);
}

// ---- names

TEST_F(RocksDbColdStoreTest, NamesComeBackInOrder) {
  ASSERT_TRUE(cold_->Commit({MakeChange("b", 2), MakeChange("a", 1), MakeChange("c", 3)}, true).ok());
  ASSERT_TRUE(cold_->Commit({MakeChange("a", 4), {MakeChange("b", 0).key, std::nullopt}}, true).ok());
  EXPECT_THAT(Names(), ElementsAre("a@4", "c@3"));
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@4", "c@3"));
}

TEST_F(RocksDbColdStoreTest, ADamagedRecordIsReportedByItsNameAndStays) {
  ASSERT_TRUE(cold_->Commit({MakeChange("a", 1), MakeChange("b", 2)}, true).ok());
  rocksdb::DB* db = cold_->db_for_testing();
  // The names table is the third family.
  cold_.reset();
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const char* name : {"default", "layouts", "names", "manifests", "images"})
    descriptors.emplace_back(name, rocksdb::ColumnFamilyOptions());
  rocksdb::DBOptions options;
  ASSERT_TRUE(rocksdb::DB::Open(options, directory_ / "data/db", descriptors, &handles, &db).ok());
  const std::string key = EncodeNameKey({kDefaultTenant, NameKind::kSequence, "a"});
  ASSERT_TRUE(db->Put({}, handles[2], key, "damaged").ok());
  for (auto* handle : handles) ASSERT_TRUE(db->DestroyColumnFamilyHandle(handle).ok());
  delete db;
  for (int i = 0; i < 2; ++i) {
    Restart();
    EXPECT_THAT(Names(), ElementsAre("a?", "b@2"));
  }
}

TEST_F(RocksDbColdStoreTest, LayoutsAreReplacedByFingerprint) {
  const LayoutRef a = MakeLayout(16, "a"), b = MakeLayout(16, "b");
  ASSERT_TRUE(cold_->CommitLayout({kDefaultTenant, a->canonical(), {}}).ok());
  ASSERT_TRUE(cold_->CommitLayout({kDefaultTenant, b->canonical(), {"x"}}).ok());
  ASSERT_TRUE(cold_->CommitLayout({kDefaultTenant, a->canonical(), {"y", "z"}}).ok());
  Restart();
  std::map<std::string, std::vector<std::string>> found;
  ASSERT_TRUE(cold_
                  ->LoadLayouts([&](LayoutRecord record) {
                    found[record.canonical] = record.aliases;
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(found,
            (std::map<std::string, std::vector<std::string>>{{a->canonical(), {"y", "z"}}, {b->canonical(), {"x"}}}));
}

TEST_F(RocksDbColdStoreTest, CommitsFromManyThreadsAllArrive) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (Revision i = 1; i <= 25; ++i)
        EXPECT_TRUE(cold_->Commit({MakeChange(absl::StrCat(t, "/", i), i)}, i % 2 == 0).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Names().size(), 100u);
}

// ---- starting

TEST_F(RocksDbColdStoreTest, TheEpochGrowsWithEveryStartAndTheHashKeyStays) {
  EXPECT_FALSE(cold_->last_run().existed);
  EXPECT_FALSE(cold_->last_run().clean);
  EXPECT_EQ(cold_->epoch(), 1u);
  const std::string hash_key = cold_->hash_key();
  EXPECT_EQ(hash_key.size(), 32u);
  EXPECT_NE(hash_key, std::string(32, 0));
  for (uint64_t epoch = 2; epoch < 5; ++epoch) {
    Restart();
    EXPECT_TRUE(cold_->last_run().existed);
    EXPECT_EQ(cold_->epoch(), epoch);
    EXPECT_EQ(cold_->hash_key(), hash_key);
  }
}

TEST_F(RocksDbColdStoreTest, ACleanStopIsSeenOnce) {
  ASSERT_TRUE(cold_->CommitCleanStop("tombs").ok());
  Restart();
  EXPECT_TRUE(cold_->last_run().clean);
  EXPECT_EQ(cold_->last_run().tombstones, "tombs");
  Restart();
  EXPECT_FALSE(cold_->last_run().clean);
  EXPECT_EQ(cold_->last_run().tombstones, "");
}

class WentBackTest : public RocksDbColdStoreTest {
 protected:
  rocksdb::Env* const env_ = rocksdb::Env::Default();

  // Closes a store that has more on disk than an earlier one; gives the path of its manifest.
  std::string CloseWithMore() {
    EXPECT_TRUE(cold_->Commit({MakeChange("a", 1)}, true).ok() && cold_->CommitCleanStop("").ok());
    Restart();
    EXPECT_TRUE(cold_->Commit({MakeChange("a", 2)}, true).ok() && cold_->CommitCleanStop("").ok());
    cold_.reset();
    std::string current;
    EXPECT_TRUE(rocksdb::ReadFileToString(env_, directory_ / "data/db/CURRENT", &current).ok());
    return directory_ / ("data/db/" + current.substr(0, current.size() - 1));
  }
  void ExpectRefused() {
    const auto opened = RocksDbColdStore::Open(Options());
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss) << opened.status();
  }
};

TEST_F(WentBackTest, AManifestThatLostItsEndIsNotTakenForAnOlderState) {
  const std::string manifest = CloseWithMore();
  std::string whole;
  ASSERT_TRUE(rocksdb::ReadFileToString(env_, manifest, &whole).ok());
  for (const size_t size : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
    ASSERT_TRUE(rocksdb::WriteStringToFile(env_, whole.substr(0, size), manifest).ok());
    ExpectRefused();
  }
  ASSERT_TRUE(rocksdb::WriteStringToFile(env_, whole, manifest).ok());
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@2"));
}

TEST_F(WentBackTest, APreviousManifestIsNotTakenForTheNewest) {
  const std::string manifest = CloseWithMore();
  const size_t digits = manifest.rfind('-') + 1;
  std::string number = std::to_string(std::stoull(manifest.substr(digits)) - 1);
  number.insert(0, manifest.size() - digits - number.size(), '0');
  ASSERT_TRUE(std::filesystem::copy_file(manifest, manifest.substr(0, digits) + number));
  ASSERT_TRUE(rocksdb::WriteStringToFile(env_, "MANIFEST-" + number + "\n", directory_ / "data/db/CURRENT").ok());
  ExpectRefused();
}

TEST_F(WentBackTest, ALostDatabaseIsNotTakenForANewOne) {
  CloseWithMore();
  ASSERT_TRUE(env_->DeleteFile(directory_ / "data/db/CURRENT").ok());
  ExpectRefused();
}

TEST_F(WentBackTest, ADamagedWitnessProvesNothing) {
  CloseWithMore();
  ASSERT_TRUE(
      rocksdb::WriteStringToFile(env_, "manifest 99 bytes 1 epoch 9 0123456789abcdef\n", directory_ / "data/WITNESS")
          .ok());
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@2"));
}

class DamagedLogTest : public RocksDbColdStoreTest {
 protected:
  // Ends as a crash does; gives the log's path.
  std::string CrashWithLog() {
    EXPECT_TRUE(cold_->Commit({MakeChange("a", 1)}, true).ok() && cold_->Commit({MakeChange("b", 2)}, true).ok());
    cold_.reset();
    std::string log;
    for (const auto& entry : std::filesystem::directory_iterator(directory_ / "data/db")) {
      if (entry.path().extension() == ".log" && entry.file_size() > 0) log = entry.path();
    }
    EXPECT_NE(log, "");
    return log;
  }
  absl::Status Reopen() { return RocksDbColdStore::Open(Options()).status(); }
};

TEST_F(DamagedLogTest, WhatWasSyncedAndIsDamagedIsNotTakenForTheEndOfACrash) {
  const std::string log = CrashWithLog();
  const uint64_t size = std::filesystem::file_size(log);
  for (const uint64_t at : {size / 4, size / 2, size - 1}) {
    DamageFile(log, at);
    EXPECT_EQ(ReasonOf(Reopen()), "CORRUPT") << at << " of " << size;
    DamageFile(log, at);
  }
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@1", "b@2"));
}

TEST_F(DamagedLogTest, ALogThatLostSyncedBytesIsRefusedUntilSomeoneSaysThatItMayBe) {
  const std::string log = CrashWithLog();
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 1);
  EXPECT_EQ(ReasonOf(Reopen()), "CORRUPT");
  EXPECT_EQ(ReasonOf(Reopen()), "CORRUPT");
  std::filesystem::remove(directory_ / "data/SYNCED");
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@1"));
}

TEST_F(DamagedLogTest, BytesThatWereNeverSyncedMayBeMissing) {
  ASSERT_TRUE(cold_->Commit({MakeChange("a", 1)}, true).ok());
  ASSERT_TRUE(cold_->Commit({MakeChange("a", 2)}, false).ok());
  const uint64_t synced = [&] {
    cold_.reset();
    uint64_t page[3];
    FILE* const file = fopen((directory_ / "data/SYNCED").c_str(), "rb");
    EXPECT_EQ(fread(page, 1, sizeof(page), file), sizeof(page));
    fclose(file);
    std::filesystem::resize_file(absl::StrFormat("%s/db/%06d.log", directory_ / "data", page[0]), page[1]);
    return page[1];
  }();
  EXPECT_GT(synced, 0u);
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@1"));
}

TEST_F(DamagedLogTest, AfterAnOrderlyStopADamagedLogCostsTheMarkAtMost) {
  ASSERT_TRUE(cold_->Commit({MakeChange("a", 1)}, true).ok());
  ASSERT_TRUE(cold_->CommitCleanStop("").ok());
  cold_.reset();
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "data/db")) {
    if (entry.path().extension() == ".log" && entry.file_size() > 0) DamageFile(entry.path(), entry.file_size() / 2);
  }
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@1"));
}

TEST_F(DamagedLogTest, ADamagedSyncedProvesNothing) {
  CrashWithLog();
  DamageFile(directory_ / "data/SYNCED", 9);
  Restart();
  EXPECT_THAT(Names(), ElementsAre("a@1", "b@2"));
}

TEST_F(RocksDbColdStoreTest, ANewerFormatIsRefusedAndLeftAsItIs) {
  rocksdb::DB* db = cold_->db_for_testing();
  ASSERT_TRUE(db->Put({}, "format", EncodeMetaNumber("format", 3)).ok());
  cold_.reset();
  for (int i = 0; i < 2; ++i) {
    const auto refused = RocksDbColdStore::Open(Options());
    EXPECT_EQ(ReasonOf(refused.status()), "FORMAT_UNKNOWN");
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(RocksDbColdStoreTest, ASecondOpenOfOneDirectoryIsRefused) {
  const absl::Status refused = RocksDbColdStore::Open(Options()).status();
  EXPECT_EQ(ReasonOf(refused), "DATA_DIR_LOCKED") << refused;
  EXPECT_TRUE(cold_->Commit({}, true).ok());
}

TEST(RocksDbColdStoreOnDisk, ADirectoryThatAnotherProcessHasIsRefused) {
  if (kThreadSanitizer) GTEST_SKIP() << "RocksDB is not instrumented";
  const auto directory = std::filesystem::temp_directory_path() / absl::StrCat("statepool-test-locked-", getpid());
  std::filesystem::create_directory(directory);
  const std::string lock_file = directory / "LOCK";
  int ready[2], done[2];
  ASSERT_EQ(pipe(ready) | pipe(done), 0);
  const pid_t child = fork();
  if (child == 0) {  // holds the lock until the parent has seen it
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    const int fd = open(lock_file.c_str(), O_RDWR | O_CREAT, 0600);
    char byte = fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0 ? 'y' : 'n';
    close(done[1]);
    if (write(ready[1], &byte, 1) == 1) (void)!read(done[0], &byte, 1);
    _exit(0);
  }
  char locked = 0;
  ASSERT_EQ(read(ready[0], &locked, 1), 1);
  EXPECT_EQ(locked, 'y');
  RocksDbColdStoreOptions options;
  options.path = directory;
  const absl::Status refused = RocksDbColdStore::Open(options).status();
  EXPECT_EQ(ReasonOf(refused), "DATA_DIR_LOCKED") << refused;
  for (int fd : {ready[0], ready[1], done[0], done[1]}) close(fd);
  waitpid(child, nullptr, 0);
  std::filesystem::remove_all(directory);
}

TEST(RocksDbColdStoreOnDisk, ASecondOpenIsRefusedAndSoIsADirectoryThatIsNone) {
  if (kThreadSanitizer) GTEST_SKIP() << "RocksDB is not instrumented";
  const auto directory = std::filesystem::temp_directory_path() / absl::StrCat("statepool-test-", getpid());
  std::filesystem::create_directory(directory);
  RocksDbColdStoreOptions options;
  options.path = directory / "data";
  {
    const auto first = RocksDbColdStore::Open(options);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(ReasonOf(RocksDbColdStore::Open(options).status()), "DATA_DIR_LOCKED");
  }
  EXPECT_TRUE(RocksDbColdStore::Open(options).ok());
  options.path = directory / "data/LOCK/below";
  EXPECT_EQ(ReasonOf(RocksDbColdStore::Open(options).status()), "DATA_DIR_UNUSABLE");
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace statepool
