// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of server/tiers share: layouts of a given size, bytes, cold stores that can be damaged.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_
#define STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
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

// RocksDB over a file system in memory, which outlives it: Restart is an end without a clean stop. Not for
// ThreadSanitizer.
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
    options.path = "/statepool";
    options.budget_bytes = cold_budget_;
    options.image_memtable_bytes = 1_MiB;
    options.collect_min_bytes = 1_MiB;
    options.env = env_.get();
    return options;
  }

  absl::Status Put(const ImageInfo& info, absl::string_view state, absl::string_view attachment = {}) {
    return cold_->PutImage(info, state, HashLeaves(state), attachment);
  }
  // Flips one bit of a stored chunk, behind the store's back.
  void Damage(ImageId id, uint32_t chunk, size_t at) {
    const std::string key = EncodeChunkKey(id, chunk);
    std::string value;
    ASSERT_TRUE(cold_->db_for_testing()->Get({}, cold_->images_for_testing(), key, &value).ok());
    value[at] = static_cast<char>(value[at] ^ 1);
    ASSERT_TRUE(cold_->db_for_testing()->Put({}, cold_->images_for_testing(), key, value).ok());
  }
  std::vector<ImageId> Stored() { return *cold_->ListImages(0, 1'000'000); }

  uint64_t cold_budget_ = UINT64_MAX;
  const std::unique_ptr<rocksdb::Env> env_{rocksdb::NewMemEnv(rocksdb::Env::Default())};
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
    options.path = "/statepool";
    options.budget_bytes = cold_budget_;
    options.image_memtable_bytes = 1_MiB;
    options.env = env_.get();
    auto opened = RocksDbColdStore::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    cold_ = *std::move(opened);
  }
  absl::Status Put(const ImageInfo& info, absl::string_view state) {
    return cold_->PutImage(info, state, HashLeaves(state), {});
  }
  // Flips one bit of the first chunk of a stored image.
  void Damage(ImageId id, size_t at) {
    if (kThreadSanitizer) {
      MutexLock lock(&disk_.mu);
      disk_.images.at(id).state[at] ^= 1;
      return;
    }
    auto* cold = static_cast<RocksDbColdStore*>(cold_.get());
    std::string value;
    ASSERT_TRUE(cold->db_for_testing()->Get({}, cold->images_for_testing(), EncodeChunkKey(id, 0), &value).ok());
    value[at] = static_cast<char>(value[at] ^ 1);
    ASSERT_TRUE(cold->db_for_testing()->Put({}, cold->images_for_testing(), EncodeChunkKey(id, 0), value).ok());
  }
  std::vector<ImageId> Stored() { return *cold_->ListImages(0, 1'000'000); }

  uint64_t cold_budget_ = UINT64_MAX;
  MemoryDisk disk_;
  const std::unique_ptr<rocksdb::Env> env_{rocksdb::NewMemEnv(rocksdb::Env::Default())};
  std::unique_ptr<ColdStore> cold_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_TEST_SUPPORT_H_
