// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/record_codec.h"

#include <gtest/gtest.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <iostream>
#include <random>
#include <string>

namespace statepool {
namespace {

class RecordCodecTest : public testing::Test {
 protected:
  RecordCodecTest() { std::cout << "seed " << seed_ << std::endl; }

  uint64_t Number() { return random_() >> (random_() % 64); }
  std::string String(size_t max) {
    std::string s(random_() % (max + 1), 0);
    for (char& c : s) c = static_cast<char>(random_());
    return s;
  }
  NameRecord Record() {
    NameRecord record;
    record.key = {static_cast<TenantId>(Number()), static_cast<NameKind>(1 + random_() % 3), String(40)};
    record.layout = String(64);
    record.revision = Number();
    record.created = Number();
    record.create_time = absl::FromUnixNanos(static_cast<int64_t>(Number() / 2));
    record.durability = static_cast<Durability>(1 + random_() % 3);
    record.max_history = static_cast<uint32_t>(Number());
    if (random_() % 2) record.ttl = absl::Nanoseconds(static_cast<int64_t>(Number() / 2));
    if (random_() % 2) record.expire_time = absl::FromUnixNanos(static_cast<int64_t>(Number() / 2));
    record.versions.resize(1 + random_() % 8);
    for (RecordedVersion& v : record.versions) {
      v = {Number(), Number(), static_cast<int64_t>(Number()), static_cast<Exactness>(1 + random_() % 3), Number(),
           Number(), Number(), static_cast<uint32_t>(Number())};
    }
    record.requests.resize(random_() % 9);
    for (AnsweredRequest& r : record.requests)
      r = {String(64), Number(), Number(), Number(), static_cast<int64_t>(Number()), Number()};
    record.prefix = {Number(), Number(), Number()};
    return record;
  }

  const uint64_t seed_ = std::random_device()();
  std::mt19937_64 random_{seed_};
};

void ExpectEqual(const NameRecord& a, const NameRecord& b) {
  EXPECT_EQ(a.key, b.key);
  EXPECT_EQ(a.layout, b.layout);
  EXPECT_EQ(a.revision, b.revision);
  EXPECT_EQ(a.created, b.created);
  EXPECT_EQ(a.create_time, b.create_time);
  EXPECT_EQ(a.durability, b.durability);
  EXPECT_EQ(a.max_history, b.max_history);
  EXPECT_EQ(a.ttl, b.ttl);
  EXPECT_EQ(a.expire_time, b.expire_time);
  ASSERT_EQ(a.versions.size(), b.versions.size());
  for (size_t i = 0; i < a.versions.size(); ++i) {
    const RecordedVersion &x = a.versions[i], &y = b.versions[i];
    EXPECT_EQ(std::tie(x.id, x.parent, x.position, x.exactness, x.image, x.checksum, x.attachment_checksum,
                       x.attachment_bytes),
              std::tie(y.id, y.parent, y.position, y.exactness, y.image, y.checksum, y.attachment_checksum,
                       y.attachment_bytes));
  }
  ASSERT_EQ(a.requests.size(), b.requests.size());
  for (size_t i = 0; i < a.requests.size(); ++i) {
    const AnsweredRequest &x = a.requests[i], &y = b.requests[i];
    EXPECT_EQ(std::tie(x.id, x.body_hash, x.revision, x.version, x.position, x.checksum),
              std::tie(y.id, y.body_hash, y.revision, y.version, y.position, y.checksum));
  }
  EXPECT_EQ(std::tie(a.prefix.stem_high, a.prefix.stem_low, a.prefix.check),
            std::tie(b.prefix.stem_high, b.prefix.stem_low, b.prefix.check));
}

TEST_F(RecordCodecTest, RandomRecordsComeBackEqual) {
  for (int i = 0; i < 2'000; ++i) {
    const NameRecord record = Record();
    const std::string key = EncodeNameKey(record.key);
    const auto back = DecodeNameRecord(key, EncodeNameRecord(key, record));
    ASSERT_TRUE(back.has_value());
    ExpectEqual(record, *back);
  }
}

TEST_F(RecordCodecTest, EveryTruncationAndEveryFlippedBitIsRefused) {
  for (int i = 0; i < 20; ++i) {
    const NameRecord record = Record();
    const std::string key = EncodeNameKey(record.key);
    const std::string value = EncodeNameRecord(key, record);
    for (size_t size = 0; size < value.size(); ++size) ASSERT_FALSE(DecodeNameRecord(key, value.substr(0, size)));
    ASSERT_FALSE(DecodeNameRecord(key, value + '\0'));
    for (int flips = 0; flips < 300; ++flips) {
      std::string damaged = value;
      damaged[random_() % damaged.size()] ^= static_cast<char>(1 << random_() % 8);
      ASSERT_FALSE(DecodeNameRecord(key, damaged));
    }
  }
}

// The checksum keeps damage out; this is about bodies that no encoder made, under checksums that are good.
TEST_F(RecordCodecTest, NoLengthInsideABodyIsTrusted) {
  for (int i = 0; i < 20'000; ++i) {
    const NameRecord record = Record();
    const std::string key = EncodeNameKey(record.key);
    std::string body = EncodeNameRecord(key, record);
    body.resize(body.size() - 8);
    for (uint64_t changes = 1 + random_() % 4; changes > 0; --changes)
      body[1 + random_() % (body.size() - 1)] = static_cast<char>(random_());
    if (random_() % 2) body.resize(1 + random_() % body.size());
    const uint64_t sum = XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(key.data(), key.size()));
    body.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
    (void)DecodeNameRecord(key, body);  // any answer, but no read out of bounds and no huge allocation
    (void)DecodeLayoutRecord(key, body);
    (void)DecodeManifest(key, body);
    (void)DecodeMeta(key, body);
    (void)DecodeMetaNumber(key, body);
  }
}

TEST_F(RecordCodecTest, AValueUnderAnotherKeyIsRefused) {
  const NameRecord record = Record();
  const std::string key = EncodeNameKey(record.key);
  EXPECT_FALSE(DecodeNameRecord(key + "x", EncodeNameRecord(key, record)));
  std::string neighbour = key;
  neighbour.back() ^= 1;
  EXPECT_FALSE(DecodeNameRecord(neighbour, EncodeNameRecord(key, record)));
}

TEST_F(RecordCodecTest, NameKeysSortByTenantKindAndName) {
  std::vector<NameKey> keys;
  for (int i = 0; i < 200; ++i)
    keys.push_back({static_cast<TenantId>(random_() % 3 ? random_() % 4 : random_()),
                    static_cast<NameKind>(1 + random_() % 3), String(3)});
  for (const NameKey& key : keys) EXPECT_EQ(DecodeNameKey(EncodeNameKey(key)), key);
  std::sort(keys.begin(), keys.end());
  for (size_t i = 1; i < keys.size(); ++i) EXPECT_LE(EncodeNameKey(keys[i - 1]), EncodeNameKey(keys[i]));
}

TEST_F(RecordCodecTest, KeysThatAreNoneAreRefused) {
  EXPECT_FALSE(DecodeNameKey(""));
  EXPECT_FALSE(DecodeNameKey(std::string("\0\0\0\0", 4)));
  EXPECT_FALSE(DecodeNameKey(std::string("\0\0\0\0\0x", 6)));
  EXPECT_FALSE(DecodeNameKey(std::string("\0\0\0\0\4x", 6)));
  EXPECT_FALSE(DecodeImageKey("1234567"));
}

TEST_F(RecordCodecTest, LayoutsManifestsAndMetaComeBackEqual) {
  for (int i = 0; i < 500; ++i) {
    const std::string key = String(20);
    LayoutRecord layout{static_cast<TenantId>(Number()), String(300), {}};
    for (uint64_t n = random_() % 4; n > 0; --n) layout.aliases.push_back(String(20));
    const auto layout_back = DecodeLayoutRecord(key, EncodeLayoutRecord(key, layout));
    ASSERT_TRUE(layout_back.has_value());
    EXPECT_EQ(layout_back->tenant, layout.tenant);
    EXPECT_EQ(layout_back->canonical, layout.canonical);
    EXPECT_EQ(layout_back->aliases, layout.aliases);
    const ImageManifest manifest{Number(), Number(), static_cast<uint32_t>(Number()), Number(), {Number(), Number()}};
    EXPECT_EQ(DecodeManifest(key, EncodeManifest(key, manifest)), manifest);
    const std::string bytes = String(100);
    EXPECT_EQ(DecodeMeta(key, EncodeMeta(key, bytes)), bytes);
    const uint64_t number = Number();
    EXPECT_EQ(DecodeMetaNumber(key, EncodeMetaNumber(key, number)), number);
  }
}

TEST_F(RecordCodecTest, InfiniteTimesStayInfinite) {
  NameRecord record = Record();
  record.ttl = absl::InfiniteDuration();
  record.expire_time = absl::InfiniteFuture();
  const std::string key = EncodeNameKey(record.key);
  ExpectEqual(record, *DecodeNameRecord(key, EncodeNameRecord(key, record)));
  record.expire_time = absl::FromUnixSeconds(int64_t{1} << 50);  // beyond what nanoseconds hold
  EXPECT_EQ(DecodeNameRecord(key, EncodeNameRecord(key, record))->expire_time, absl::InfiniteFuture());
}

}  // namespace
}  // namespace statepool
