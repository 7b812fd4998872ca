// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/speculation.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "client/cpp/errors.h"

namespace statepool::client {
namespace {

constexpr uint64_t kMost = uint64_t{1} << 53;  // tokens, and blocks

using Path = std::vector<uint32_t>;

TEST(Speculation, PathsOfTreesBeginAtARootAndEndAtTheAcceptedToken) {
  const uint64_t seed = std::random_device()();
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> parents;
    const size_t tokens = 1 + random() % kStepsMax;
    for (size_t step = 0; step < tokens; ++step) {
      const bool is_root = step == 0 || random() % 5 == 0;
      parents.push_back(is_root ? -1 : static_cast<int32_t>(random() % step));
    }
    const auto accepted = static_cast<uint32_t>(random() % tokens);
    const absl::StatusOr<Path> path = PathOf(parents, accepted);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(path->back(), accepted);
    EXPECT_EQ(parents[path->front()], -1);
    for (size_t i = 1; i < path->size(); ++i) EXPECT_EQ(parents[(*path)[i]], static_cast<int32_t>((*path)[i - 1]));
    const absl::StatusOr<v1::AdvanceItem> item = AdvanceAlong(7, parents, accepted);
    ASSERT_TRUE(item.ok());
    EXPECT_EQ(item->row(), 7u);
    EXPECT_EQ(Path(item->path().begin(), item->path().end()), *path);
  }
}

TEST(Speculation, EveryOtherTreeIsRefused) {
  const auto field_of = [](const absl::Status& status) {
    EXPECT_EQ(GetErrorDetail(status).reason, "INVALID_PATH") << status;
    return GetErrorDetail(status).field;
  };
  EXPECT_EQ(field_of(PathOf({}, 0).status()), "parents");
  EXPECT_EQ(field_of(PathOf(std::vector<int32_t>(65, -1), 0).status()), "parents");
  EXPECT_EQ(field_of(PathOf({0}, 0).status()), "parents[0]");
  EXPECT_EQ(field_of(PathOf({-1, 1}, 1).status()), "parents[1]");
  EXPECT_EQ(field_of(PathOf({-1, -2}, 0).status()), "parents[1]");
  EXPECT_EQ(field_of(PathOf({-1, 0}, 2).status()), "accepted");
  EXPECT_EQ(field_of(AdvanceAlong(0, {-1, 0}, 2).status()), "accepted");
  EXPECT_EQ(*ChainOf({-1, 0, 1}), 3u);
  EXPECT_EQ(field_of(ChainOf({-1, 0, 0}).status()), "parents[2]");
  EXPECT_EQ(field_of(ChainOf({-1, -1}).status()), "parents[1]");
  EXPECT_EQ(field_of(ChainOf({}).status()), "parents");
}

// Blocks walked position by position.
TEST(Speculation, AlignModeIsWhatBruteForceGives) {
  for (uint64_t block = 1; block < 6; ++block) {
    const auto block_of = [block](uint64_t tokens) {  // of the last of so many
      int64_t index = 0;
      while (static_cast<uint64_t>(index + 1) * block < tokens) ++index;
      return tokens == 0 ? -1 : index;
    };
    for (uint64_t computed = 0; computed < 12; ++computed) {
      for (uint64_t scheduled = 1; scheduled < 8; ++scheduled) {
        for (uint64_t stored = 0; stored < 4; ++stored) {
          const absl::StatusOr<BlockCopy> copy = AlignBefore(block, computed, scheduled, stored);
          ASSERT_TRUE(copy.ok()) << copy.status();
          EXPECT_EQ(copy->source, stored > 0 ? static_cast<int64_t>(stored) : block_of(computed));
          EXPECT_EQ(copy->target, block_of(computed + scheduled));
          EXPECT_EQ(copy->copies, copy->source != -1 && copy->source != copy->target);
        }
        for (uint64_t draft = 0; draft < scheduled; ++draft) {
          for (uint64_t accepted = 1; accepted <= draft + 1; ++accepted) {
            uint64_t length = 0;  // the accepted length whose state ends a block, the last of them
            for (uint64_t a = 1; a <= accepted; ++a) {
              if ((computed + scheduled - draft + a - 1) % block == 0) length = a;
            }
            const absl::StatusOr<BlockCache> cache = AlignAfter(block, computed, scheduled, draft, accepted);
            ASSERT_TRUE(cache.ok()) << cache.status();
            EXPECT_EQ(cache->caches, length > 0);
            EXPECT_EQ(cache->accepted, length);
            if (length == 0) continue;
            EXPECT_EQ(cache->position, static_cast<int64_t>(computed + scheduled - draft + length - 1));
            EXPECT_EQ(cache->block, block_of(static_cast<uint64_t>(cache->position)));
          }
        }
      }
    }
  }
}

TEST(Speculation, StepsMayBeLongerThan32BitsTell) {
  const uint64_t block = uint64_t{1} << 34, tokens = block - 1;
  const absl::StatusOr<BlockCache> cache = AlignAfter(block, 0, tokens + 1, tokens, tokens + 1);
  ASSERT_TRUE(cache.ok());
  EXPECT_TRUE(cache->caches);
  EXPECT_EQ(cache->position, static_cast<int64_t>(block));
  EXPECT_EQ(cache->accepted, block);
  EXPECT_EQ(AlignAfter(block, 0, kMost, kMost - 1, kMost)->accepted, kMost);
}

TEST(Speculation, StepsThatCantBeAreRefused) {
  const auto field_of = [](const absl::Status& status) {
    EXPECT_EQ(GetErrorDetail(status).reason, "INVALID_OPTION") << status;
    return GetErrorDetail(status).field;
  };
  EXPECT_EQ(field_of(AlignBefore(0, 1, 1).status()), "block");
  EXPECT_EQ(field_of(AlignBefore(4, ~uint64_t{0}, 1).status()), "computed");
  EXPECT_EQ(field_of(AlignBefore(4, 1, 0).status()), "scheduled");
  EXPECT_EQ(field_of(AlignBefore(4, 1, 1, ~uint64_t{0}).status()), "stored");
  EXPECT_EQ(field_of(AlignAfter(4, 1, 2, 2, 1).status()), "draft");
  EXPECT_EQ(field_of(AlignAfter(4, 1, 2, 1, 3).status()), "accepted");
  EXPECT_EQ(field_of(AlignAfter(4, 1, 2, 1, 0).status()), "accepted");
  for (const auto& status : {AlignBefore(kMost + 1, 1, 1).status(), AlignAfter(kMost + 1, 1, 1, 0, 1).status()})
    EXPECT_EQ(field_of(status), "block");
  for (const auto& status : {AlignBefore(1, kMost + 1, 1).status(), AlignAfter(1, kMost + 1, 1, 0, 1).status()})
    EXPECT_EQ(field_of(status), "computed");
  for (const auto& status : {AlignBefore(1, 1, kMost + 1).status(), AlignAfter(1, 1, kMost + 1, 0, 1).status()})
    EXPECT_EQ(field_of(status), "scheduled");
  EXPECT_TRUE(AlignBefore(kMost, kMost, kMost, kMost).ok());
}

}  // namespace
}  // namespace statepool::client
