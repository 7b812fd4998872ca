// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the cold store says, and still does, when its disk is full or fails.
#include <gtest/gtest.h>
#include <rocksdb/env.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tiers/faulty_file_system.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

class DiskFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    if (kThreadSanitizer) GTEST_SKIP() << "RocksDB is not instrumented";
  }
  void Open() {
    cold_.reset();
    RocksDbColdStoreOptions options;
    options.path = directory_ / "data";
    options.image_memtable_bytes = 1_MiB;
    options.env = env_.get();
    options.on_failed = [this](const absl::Status&) { ++failures_; };
    auto opened = RocksDbColdStore::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    cold_ = *std::move(opened);
  }
  absl::Status Put(ImageId id) {
    StateReader reader(state_);
    return cold_->PutImage(MakeInfo(id, layout_, state_), &reader, HashLeaves(state_), "");
  }
  absl::Status Get(ImageId id) {
    std::string attachment;
    return ReadImage(cold_.get(), MakeInfo(id, layout_, state_), &back_, &attachment);
  }

  const TempDirectory directory_;
  const std::shared_ptr<FaultyFileSystem> files_ = std::make_shared<FaultyFileSystem>(rocksdb::FileSystem::Default());
  const std::unique_ptr<rocksdb::Env> env_ = rocksdb::NewCompositeEnv(files_);
  const std::string state_ = MakeBytes(100'000, 1);
  std::string back_ = std::string(100'000, 0);
  const LayoutRef layout_ = MakeLayout(100'000);
  std::atomic<int> failures_{0};
  std::unique_ptr<RocksDbColdStore> cold_;
};

TEST_F(DiskFaultTest, TheDirectoriesThatAStartMakesAreDurableBeforeItServes) {
  Open();
  EXPECT_TRUE(files_->WasSynced(directory_ / "data"));  // which holds the database's
  EXPECT_TRUE(files_->WasSynced(directory_.path()));
}

TEST_F(DiskFaultTest, RocksDbHasNoLogFileOfItsOwnThatAFullDiskCouldRefuse) {
  Open();
  std::vector<std::string> files;
  ASSERT_TRUE(env_->GetChildren(directory_ / "data/db", &files).ok());
  for (const std::string& file : files) EXPECT_FALSE(file.starts_with("LOG")) << file;
}

TEST_F(DiskFaultTest, AFailedSyncOfTheLogEndsAllWritesForGood) {
  Open();
  ASSERT_TRUE(Put(1).ok());
  files_->fault = LogFault::kIoErrorOnSync;
  const absl::Status failed = cold_->Commit({}, true);
  const absl::Status layout_failed = cold_->CommitLayout({kDefaultTenant, layout_->canonical(), {}});
  EXPECT_EQ(ReasonOf(layout_failed), "DISK_FAILED") << layout_failed << " after " << failed;
  EXPECT_EQ(layout_failed.code(), absl::StatusCode::kUnavailable);
  files_->fault = LogFault::kNone;
  EXPECT_TRUE(cold_->failed());
  EXPECT_EQ(ReasonOf(Put(2)), "DISK_FAILED");
  EXPECT_EQ(ReasonOf(cold_->DeleteImages({1})), "DISK_FAILED");
  EXPECT_EQ(failures_, 1);
  EXPECT_TRUE(Get(1).ok());  // reads go on until the daemon ends
  Open();
  EXPECT_FALSE(cold_->failed());
  EXPECT_TRUE(Put(2).ok());
}

TEST_F(DiskFaultTest, AFullDiskRefusesWritesAndServesReadsUntilThereIsSpace) {
  Open();
  ASSERT_TRUE(Put(1).ok());
  files_->fault = LogFault::kNoSpaceOnAppend;
  absl::Status full = Put(2);
  if (full.ok()) full = cold_->CommitLayout({kDefaultTenant, layout_->canonical(), {}});
  EXPECT_EQ(ReasonOf(full), "COLD_FULL") << full;
  EXPECT_GT(GetErrorDetail(full).retry_after, absl::ZeroDuration());
  EXPECT_FALSE(cold_->failed());
  EXPECT_TRUE(Get(1).ok());
  EXPECT_EQ(cold_->used_bytes(), 100'000u);
  files_->fault = LogFault::kNone;
  // RocksDB notices by itself, within seconds.
  absl::Status again = Put(3);
  for (int i = 0; i < 200 && !again.ok(); ++i) {
    EXPECT_EQ(ReasonOf(again), "COLD_FULL") << again;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    again = Put(3);
  }
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_TRUE(Get(3).ok() && Get(1).ok());
  EXPECT_EQ(failures_, 0);
}

}  // namespace
}  // namespace statepool
