// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/checksum.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>

#include "kernels/xxh3.h"

namespace statepool {
namespace {

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// The definition in the .proto, written down a second time.
Checksum ByDefinition(const std::string& bytes) {
  std::string leaves;
  for (size_t at = 0; at < bytes.size(); at += 65536) {
    const uint64_t leaf = XXH3_64bits(bytes.data() + at, std::min<size_t>(65536, bytes.size() - at));
    for (int i = 0; i < 8; ++i) leaves.push_back(static_cast<char>(leaf >> (8 * i)));
  }
  return XXH3_64bits(leaves.data(), leaves.size());
}

TEST(Checksum, IsTheRootOverLeavesOf64KiB) {
  for (size_t size : {1u, 100u, 65535u, 65536u, 65537u, 131072u, 300000u}) {
    const std::string bytes = RandomBytes(size, size);
    EXPECT_EQ(ChecksumOf(bytes), ByDefinition(bytes)) << size;
  }
}

TEST(Xxh3, IsTheSameWithEverySetOfVectorInstructions) {
  const std::string bytes = RandomBytes(200'000, 9);
  size_t variants = 0;
  for (const auto variant : Xxh3Variants()) {
    ++variants;
    for (size_t size = 0; size < bytes.size(); size = size < 1100 ? size + 1 : size * 2 + 13) {
      ASSERT_EQ(variant(bytes.data() + 1, size), XXH3_64bits(bytes.data() + 1, size)) << variants << ": " << size;
    }
  }
  EXPECT_GE(variants, 1u);
}

TEST(ChecksumOfPieces, DoesNotDependOnTheCuts) {
  std::mt19937 random(1);
  for (const size_t size : {size_t{0}, size_t{1}, kLeafBytes - 1, kLeafBytes, kLeafBytes + 1, 5 * kLeafBytes + 7}) {
    const std::string image = RandomBytes(size, 3);
    for (int round = 0; round < 20; ++round) {
      std::vector<absl::string_view> pieces;
      for (absl::string_view rest = image; !rest.empty();) {
        const size_t n = std::uniform_int_distribution<size_t>(0, std::min(rest.size(), 2 * kLeafBytes + 1))(random);
        pieces.push_back(rest.substr(0, n));
        rest.remove_prefix(n);
      }
      EXPECT_EQ(ChecksumOfPieces(pieces), ChecksumOf(image)) << size << " bytes in " << pieces.size() << " pieces";
    }
  }
}

TEST(Checksum, OfTheEmptyImageIsThatOfNoLeaves) { EXPECT_EQ(ChecksumOf(""), XXH3_64bits("", 0)); }

TEST(Checksum, ChangesWithEveryBit) {
  std::string bytes = RandomBytes(70000, 7);
  const Checksum before = ChecksumOf(bytes);
  for (size_t at : {0u, 1u, 65535u, 65536u, 69999u}) {
    bytes[at] ^= 0x10;
    EXPECT_NE(ChecksumOf(bytes), before) << at;
    bytes[at] ^= 0x10;
  }
  EXPECT_EQ(ChecksumOf(bytes), before);
}

TEST(CopyHasher, CopiesPiecesOfAnySizeAndHashesTheSameLeaves) {
  const std::string bytes = RandomBytes(400'001, 3);
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    std::string copy(bytes.size(), 'x');
    CopyHasher hasher(copy.data(), copy.size());
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = std::min<size_t>(bytes.size() - at, random() % 100'000);
      hasher.Append({bytes.data() + at, n});
      at += n;
    }
    EXPECT_EQ(hasher.Finish(), HashLeaves(bytes));
    EXPECT_EQ(copy, bytes);
  }
}

TEST(ChecksumHex, RoundTripsAndRefusesAnythingElse) {
  Checksum parsed;
  for (Checksum c : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}, uint64_t{0x0123456789abcdef}}) {
    ASSERT_TRUE(ChecksumFromHex(ChecksumToHex(c), &parsed));
    EXPECT_EQ(parsed, c);
  }
  EXPECT_EQ(ChecksumToHex(0x0123456789abcdef), "0123456789abcdef");
  for (const char* bad : {"", "0", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0"}) {
    EXPECT_FALSE(ChecksumFromHex(bad, &parsed)) << bad;
  }
}

}  // namespace
}  // namespace statepool
