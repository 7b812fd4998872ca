// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/prefix_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace statepool {
namespace {

const PrefixHasher kHasher(std::string(32, 's'));
const Hash128 kRoot = kHasher.Root(0, "fingerprint", "");

std::vector<uint64_t> Found(const PrefixIndex& index, const std::vector<uint32_t>& tokens) {
  std::vector<uint64_t> lengths;
  for (const auto& c : index.Find(kHasher, PrefixIndex::Stems(kHasher, kRoot, tokens), tokens, tokens.size(), 1000))
    lengths.push_back(c.length);
  return lengths;
}

TEST(PrefixIndex, FindsExactlyWhatWasPublishedAgainstASimpleReference) {
  constexpr uint64_t kSeed = 20;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::map<std::vector<uint32_t>, PrefixIndex::Place> published;
  PrefixIndex index;
  const auto sequence = [&] {  // few symbols and long shared stems, so that prefixes nest
    std::vector<uint32_t> tokens(random() % 300 + 1, 7);
    if (random() % 2) tokens[random() % tokens.size()] = random() % 3;
    return tokens;
  };
  for (int step = 0; step < 3000; ++step) {
    const std::vector<uint32_t> tokens = sequence();
    if (published.contains(tokens) && random() % 2) {
      index.Erase(published.at(tokens));
      published.erase(tokens);
    } else if (!published.contains(tokens)) {
      const auto place = PrefixIndex::Locate(kHasher, kRoot, tokens);
      index.Insert(place);
      published.emplace(tokens, place);
    }
    EXPECT_EQ(index.size(), published.size());
    const std::vector<uint32_t> query = sequence();
    std::vector<uint64_t> expected;
    std::vector<Hash128> expected_keys, keys;
    for (size_t n = query.size(); n >= 1; --n) {
      const auto it = published.find({query.begin(), query.begin() + static_cast<long>(n)});
      if (it == published.end()) continue;
      expected.push_back(n);
      expected_keys.push_back(it->second.key);
    }
    // Candidates may be more than what is published (tails of other prefixes below the same stem), never less.
    std::vector<uint64_t> real;
    for (const auto& c : index.Find(kHasher, PrefixIndex::Stems(kHasher, kRoot, query), query, query.size(), 1000)) {
      const auto it = published.find({query.begin(), query.begin() + static_cast<long>(c.length)});
      if (it == published.end()) continue;
      real.push_back(c.length);
      keys.push_back(c.key);
    }
    ASSERT_EQ(real, expected);
    ASSERT_EQ(keys, expected_keys);
  }
  for (const auto& [tokens, place] : published) index.Erase(place);
  EXPECT_TRUE(Found(index, std::vector<uint32_t>(300, 7)).empty());
}

TEST(PrefixIndex, GivesBatchesLongestFirst) {
  const std::vector<uint32_t> tokens(300, 7);
  PrefixIndex index;
  std::vector<uint64_t> expected;
  for (size_t n : {300u, 256u, 200u, 192u, 129u, 128u, 127u, 65u, 64u, 63u, 2u, 1u}) {
    index.Insert(PrefixIndex::Locate(kHasher, kRoot, absl::MakeConstSpan(tokens).first(n)));
    expected.push_back(n);
  }
  const std::vector<Hash128> stems = PrefixIndex::Stems(kHasher, kRoot, tokens);
  for (size_t limit = 1; limit <= expected.size() + 1; ++limit) {
    std::vector<uint64_t> lengths;
    for (uint64_t longest = tokens.size(); longest > 0;) {
      const auto batch = index.Find(kHasher, stems, tokens, longest, limit);
      ASSERT_LE(batch.size(), limit);
      for (const auto& candidate : batch) lengths.push_back(candidate.length);
      longest = batch.size() < limit ? 0 : batch.back().length - 1;
    }
    EXPECT_EQ(lengths, expected) << limit;
  }
}

TEST(PrefixHasher, KeepsTenantsLayoutsAndExtraKeysApart) {
  const Hash128 root = kHasher.Root(0, "f", "k");
  EXPECT_FALSE(root == kHasher.Root(1, "f", "k"));
  EXPECT_FALSE(root == kHasher.Root(0, "g", "k"));
  EXPECT_FALSE(root == kHasher.Root(0, "f", "l"));
  EXPECT_FALSE(root == kHasher.Root(0, "fk", ""));
  EXPECT_FALSE(root == PrefixHasher(std::string(32, 't')).Root(0, "f", "k"));
}

TEST(PrefixHasher, KeysAndChecksDependOnEveryTokenAndOnTheLength) {
  for (size_t n : {1u, 64u, 100u, 128u}) {
    std::vector<uint32_t> tokens(n, 5);
    const auto place = PrefixIndex::Locate(kHasher, kRoot, tokens);
    for (size_t i = 0; i < n; ++i) {
      tokens[i] ^= 1u << 31;
      const auto other = PrefixIndex::Locate(kHasher, kRoot, tokens);
      EXPECT_FALSE(other.key == place.key) << n << " " << i;
      EXPECT_NE(other.locator.check, place.locator.check) << n << " " << i;
      tokens[i] ^= 1u << 31;
    }
    tokens.push_back(0);
    EXPECT_FALSE(PrefixIndex::Locate(kHasher, kRoot, tokens).key == place.key);
  }
}

TEST(Hash128, GoesToHexAndBack) {
  Hash128 back;
  ASSERT_TRUE(Hash128FromHex("0123456789abcdeffedcba9876543210", &back));
  EXPECT_EQ(Hash128ToHex(back), "0123456789abcdeffedcba9876543210");
  EXPECT_FALSE(Hash128FromHex("0123456789ABCDEFfedcba9876543210", &back));
  EXPECT_FALSE(Hash128FromHex("0123", &back));
}

}  // namespace
}  // namespace statepool
