// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/image_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tiers/test_support.h"

namespace statepool {
namespace {

class ImageFilesTest : public testing::Test {
 protected:
  ImageFilesTest() { Restart(1); }

  void Restart(uint64_t first_file) {
    files_.reset();
    auto opened = ImageFiles::Open(path_, first_file);
    EXPECT_TRUE(opened.ok()) << opened.status();
    files_ = *std::move(opened);
  }
  void Sweep() { ASSERT_TRUE(files_->Sweep(std::atomic<bool>(false)).ok()); }
  ImagePlace Append(absl::string_view state, absl::string_view tail = {}) {
    StateReader reader(state);
    const absl::StatusOr<ImagePlace> place = files_->Append(&reader, tail);
    EXPECT_TRUE(place.ok()) << place.status();
    return *place;
  }
  absl::Status Read(ImagePlace place, char* state, uint64_t state_bytes, std::string* tail) {
    StateFiller filler(state, state_bytes);
    std::vector<LeafHash> leaves;
    const absl::Status status = files_->Read(place, &filler, &leaves, tail);
    if (status.ok()) {
      EXPECT_EQ(leaves, HashLeaves({state, state_bytes}));
    }
    return status;
  }
  bool IsThere(ImagePlace place, absl::string_view state, absl::string_view tail = {}) {
    std::string back(state.size(), 0), back_tail(tail.size(), 0);
    return Read(place, back.data(), back.size(), &back_tail).ok() && back == state && back_tail == tail;
  }
  uint64_t BytesOnDisk() {
    uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      struct stat info;
      EXPECT_EQ(stat(entry.path().c_str(), &info), 0);
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
    return bytes;
  }
  size_t FilesOnDisk() {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

  const TempDirectory directory_;
  const std::string path_ = directory_ / "images";
  std::unique_ptr<ImageFiles> files_;
};

TEST_F(ImageFilesTest, ExtentsOfEverySizeAndAlignmentComeBackEqual) {
  const std::unique_ptr<char, decltype(&std::free)> memory(static_cast<char*>(std::aligned_alloc(4096, 20_MiB)),
                                                           &std::free);
  const std::string bytes = MakeBytes(20_MiB, 1);
  std::memcpy(memory.get(), bytes.data(), bytes.size());
  for (const uint64_t state_bytes : {uint64_t{1}, 4_KiB - 1, 4_KiB, 4_KiB + 1, 1_MiB, 8_MiB, 8_MiB + 1, 17_MiB + 3}) {
    for (const uint64_t tail_bytes : {uint64_t{0}, uint64_t{1}, 4_KiB, 1_MiB + 5}) {
      for (const uint64_t skew : {0, 8}) {
        const absl::string_view state(memory.get() + skew, state_bytes);
        const std::string tail = MakeBytes(tail_bytes, 2);
        const ImagePlace place = Append(state, tail);
        EXPECT_EQ(place.offset % ImageFiles::kBlockBytes, 0);
        EXPECT_TRUE(IsThere(place, state, tail)) << state_bytes << " " << tail_bytes << " " << skew;
        // Into memory that direct reads take, or nearly.
        const std::unique_ptr<char, decltype(&std::free)> back(
            static_cast<char*>(std::aligned_alloc(4096, state_bytes / 4096 * 4096 + 8192)), &std::free);
        std::string back_tail(tail_bytes, 0);
        ASSERT_TRUE(Read(place, back.get() + skew, state_bytes, &back_tail).ok());
        EXPECT_TRUE(absl::string_view(back.get() + skew, state_bytes) == state && back_tail == tail);
      }
    }
  }
}

TEST_F(ImageFilesTest, AFreedExtentIsAHoleAndItsNeighboursStay) {
  const std::string a = MakeBytes(1_MiB, 1), b = MakeBytes(1_MiB + 1, 2), c = MakeBytes(1_MiB, 3);
  const ImagePlace at_a = Append(a), at_b = Append(b), at_c = Append(c);
  ASSERT_TRUE(files_->Sync().ok());
  const uint64_t before = BytesOnDisk();
  files_->Free(at_b, b.size());
  EXPECT_LE(BytesOnDisk() + 1_MiB, before);
  EXPECT_TRUE(IsThere(at_a, a) && IsThere(at_c, c));
  EXPECT_FALSE(IsThere(at_b, b));
}

TEST_F(ImageFilesTest, WhatNobodyAdoptsIsGivenBackByTheSweep) {
  const std::string a = MakeBytes(1_MiB, 1), b = MakeBytes(1_MiB + 1, 2), c = MakeBytes(300'000, 3);
  Append(a);
  const ImagePlace at_b = Append(b, "tail");
  Append(c);
  ASSERT_TRUE(files_->Sync().ok());
  Restart(2);
  files_->Adopt(at_b, b.size() + 4);
  const ImagePlace at_new = Append(c);  // of this run: not the sweep's
  Sweep();
  EXPECT_LE(BytesOnDisk(), b.size() + c.size() + 4 * ImageFiles::kBlockBytes);
  EXPECT_TRUE(IsThere(at_b, b, "tail") && IsThere(at_new, c));
  EXPECT_EQ(FilesOnDisk(), 2u);
  files_->Free(at_b, b.size() + 4);
  EXPECT_EQ(FilesOnDisk(), 1u);  // with its last extent the file goes
  Restart(3);
  Sweep();
  EXPECT_EQ(FilesOnDisk(), 0u);
}

TEST_F(ImageFilesTest, AFullFileIsFollowedByAnotherAndGoesWithItsLastExtent) {
  const std::string state = MakeBytes(32_MiB, 1);
  std::vector<ImagePlace> places;
  for (int i = 0; i < 9; ++i) places.push_back(Append(state));
  EXPECT_EQ(places[7].file, 1u);
  EXPECT_EQ(places[8].file, 2u);
  EXPECT_EQ(places[8].offset, 0u);
  for (int i = 0; i < 8; ++i) files_->Free(places[i], state.size());
  EXPECT_EQ(FilesOnDisk(), 1u);
  EXPECT_TRUE(IsThere(places[8], state));
}

TEST_F(ImageFilesTest, AFileThatGoesBeforeItWasSyncedKeepsNoSpace) {
  const std::string state = MakeBytes(64_MiB, 1);
  std::vector<ImagePlace> places;
  for (int i = 0; i < 5; ++i) places.push_back(Append(state));
  ASSERT_NE(places[4].file, places[0].file);
  for (const ImagePlace& place : places) files_->Free(place, state.size());
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone);
    EXPECT_FALSE(target.ends_with("(deleted)") && target.find(path_) != std::string::npos) << target;
  }
  EXPECT_TRUE(files_->Sync().ok());
}

TEST_F(ImageFilesTest, AFileThatSomebodyRemovedIsNoPlaceForWhatIsAcknowledged) {
  Append(MakeBytes(1_MiB, 1));
  std::filesystem::remove_all(path_);
  EXPECT_EQ(files_->Sync().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ImageFilesTest, FilesOfALaterRunAreNotWrittenOver) {
  Restart(7);
  const std::string state = MakeBytes(1_MiB, 1);
  const ImagePlace later = Append(state);
  Restart(3);  // an older database
  EXPECT_GT(Append(state).file, later.file);
}

TEST_F(ImageFilesTest, WhatIsNoDirectoryIsRefusedAtOnce) {
  files_.reset();
  std::filesystem::remove_all(path_);
  fclose(fopen(path_.c_str(), "w"));
  EXPECT_FALSE(ImageFiles::Open(path_, 1).ok());
}

TEST_F(ImageFilesTest, AMissingOrShortFileIsDataLoss) {
  const std::string state = MakeBytes(1_MiB, 1);
  const ImagePlace place = Append(state);
  std::string tail;
  std::string back(state.size(), 0);
  const std::string file = path_ + "/0000000000000001.img";
  std::filesystem::resize_file(file, 1_MiB - 1);
  EXPECT_EQ(Read(place, back.data(), back.size(), &tail).code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(file);
  EXPECT_EQ(Read(place, back.data(), back.size(), &tail).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ImageFilesTest, ManyThreadsAppendSyncReadAndFreeAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 40; ++i) {
        const std::string state = MakeBytes(70'000 + 10'000 * t, t * 1000 + i);
        StateReader reader(state);
        const absl::StatusOr<ImagePlace> place = files_->Append(&reader, "t");
        if (!place.ok() || !files_->Sync().ok() || !IsThere(*place, state, "t")) ++wrong;
        if (place.ok() && i % 3 != 0) files_->Free(*place, state.size() + 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace statepool
