// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of server/tiers share: layouts of a given size, bytes, cold stores that can be damaged.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_
#define STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/error.h"
#include "server/core/image_store.h"
#include "server/core/layout.h"
#include "server/tiers/record_codec.h"
#include "server/tiers/rocksdb_cold_store.h"
#include "tiers/memory_cold_store.h"

namespace statepool {

inline constexpr uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
inline constexpr uint64_t operator""_MiB(unsigned long long n) { return n << 20; }

inline LayoutRef MakeLayout(uint64_t state_bytes, const std::string& model_id = "m") {
  LayoutSpec spec{.model_id = model_id, .tensors = {}};
  TensorSpec tensor;
  tensor.name = "s";
  tensor.layers = {0};
  tensor.dtype = DType::kInt8;
  tensor.axes = {{"n", state_bytes}};
  tensor.initial = ConstantInitial{7};
  spec.tensors.push_back(std::move(tensor));
  return *Layout::Create(std::move(spec));
}

// Bytes that differ from those of any other seed, in every word.
inline std::string MakeBytes(uint64_t size, uint64_t seed) {
  std::string bytes(size, 0);
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < size; at += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, std::min<size_t>(8, size - at));
  }
  return bytes;
}

inline ImageInfo MakeInfo(ImageId id, LayoutRef layout, absl::string_view state, absl::string_view attachment = {}) {
  return {.id = id,
          .tenant = kDefaultTenant,
          .layout = std::move(layout),
          .checksum = ChecksumOf(state),
          .attachment_checksum = ChecksumOf(attachment),
          .attachment_bytes = static_cast<uint32_t>(attachment.size())};
}

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
inline constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// A directory of its own, in memory where the system has that; gone afterwards.
class TempDirectory {
 public:
  TempDirectory() {
    static std::atomic<int> made{0};
    const std::filesystem::path memory = "/dev/shm";
    const auto base = access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path();
    path_ = base / absl::StrCat("statepool-test-", getpid(), "-", made++);
    std::filesystem::create_directory(path_);
  }
  ~TempDirectory() { std::filesystem::remove_all(path_); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  std::string path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// All of a pinned image, wherever it is.
inline std::string BytesOf(const PinnedImage& pin) {
  std::string bytes(pin.size(), 0);
  const absl::Status status = pin.CopyOut(0, bytes.size(), bytes.data());
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

inline absl::Status ReadImage(ColdStore* cold, const ImageInfo& info, std::string* state, std::string* attachment) {
  StateFiller filler(state->data(), state->size());
  return cold->ReadImage(info, &filler, attachment);
}

// Flips one bit of a file.
inline void DamageFile(const std::string& path, uint64_t at) {
  FILE* const file = fopen(path.c_str(), "r+b");
  ASSERT_NE(file, nullptr) << path;
  ASSERT_EQ(fseek(file, static_cast<long>(at), SEEK_SET), 0);
  const int byte = fgetc(file);
  ASSERT_NE(byte, EOF);
  ASSERT_EQ(fseek(file, static_cast<long>(at), SEEK_SET), 0);
  ASSERT_EQ(fputc(byte ^ 1, file), byte ^ 1);
  ASSERT_EQ(fclose(file), 0);
}

// Flips one bit of a stored image's state or attachment, behind the store's back.
inline void DamageImage(RocksDbColdStore* cold, const std::string& directory, ImageId id, uint64_t at) {
  const std::string key = EncodeImageKey(id);
  std::string value;
  rocksdb::DB* const db = cold->db_for_testing();
  ASSERT_TRUE(db->Get({}, cold->manifests_for_testing(), key, &value).ok());
  const ImagePlace place = DecodeManifest(key, value)->place;
  if (place.file != 0)
    return DamageFile(absl::StrFormat("%s/images/%016x.img", directory, place.file), place.offset + at);
  ASSERT_TRUE(db->Get({}, cold->images_for_testing(), key, &value).ok());
  value[at] = static_cast<char>(value[at] ^ 1);
  ASSERT_TRUE(db->Put({}, cold->images_for_testing(), key, value).ok());
}

// RocksDB over a directory that outlives it: Restart is an end without a clean stop. Not for ThreadSanitizer.
class RocksDbTest : public testing::Test {
 protected:
  void SetUp() override {
    if (kThreadSanitizer) GTEST_SKIP() << "RocksDB is not instrumented";
    Restart();
  }

  void Restart() {
    cold_.reset();
    auto opened = RocksDbColdStore::Open(Options());
    ASSERT_TRUE(opened.ok()) << opened.status();
    cold_ = *std::move(opened);
  }
  RocksDbColdStoreOptions Options() const {
    RocksDbColdStoreOptions options;
    options.path = directory_ / "data";
    options.budget_bytes = cold_budget_;
    options.image_memtable_bytes = 1_MiB;
    options.collect_min_bytes = 1_MiB;
    return options;
  }

  absl::Status Put(const ImageInfo& info, absl::string_view state, absl::string_view attachment = {}) {
    StateReader reader(state);
    return cold_->PutImage(info, &reader, HashLeaves(state), attachment);
  }
  void Damage(ImageId id, uint64_t at) { DamageImage(cold_.get(), directory_ / "data", id, at); }
  std::vector<ImageId> Stored() { return *cold_->ListImages(0, 1'000'000); }

  uint64_t cold_budget_ = UINT64_MAX;
  const TempDirectory directory_;
  std::unique_ptr<RocksDbColdStore> cold_;
};

// The same for tests that need any cold store: RocksDB, or under ThreadSanitizer a map.
class AnyColdStoreTest : public testing::Test {
 protected:
  AnyColdStoreTest() { Restart(); }

  void Restart() {
    cold_.reset();
    if (kThreadSanitizer) {
      cold_ = std::make_unique<MemoryColdStore>(&disk_, cold_budget_);
      return;
    }
    RocksDbColdStoreOptions options;
    options.path = directory_ / "data";
    options.budget_bytes = cold_budget_;
    options.image_memtable_bytes = 1_MiB;
    auto opened = RocksDbColdStore::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    cold_ = *std::move(opened);
  }
  absl::Status Put(const ImageInfo& info, absl::string_view state) {
    StateReader reader(state);
    return cold_->PutImage(info, &reader, HashLeaves(state), {});
  }
  // Flips one bit of a stored image.
  void Damage(ImageId id, size_t at) {
    if (kThreadSanitizer) {
      MutexLock lock(&disk_.mu);
      disk_.images.at(id).state[at] ^= 1;
      return;
    }
    DamageImage(static_cast<RocksDbColdStore*>(cold_.get()), directory_ / "data", id, at);
  }
  std::vector<ImageId> Stored() { return *cold_->ListImages(0, 1'000'000); }

  uint64_t cold_budget_ = UINT64_MAX;
  MemoryDisk disk_;
  const TempDirectory directory_;
  std::unique_ptr<ColdStore> cold_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_
