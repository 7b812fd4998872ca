// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States out of slots and into them, through memory that the CPU can reach and through staging.
#include "server/memory/state_io.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/core/error.h"
#include "server/memory/far_device.h"
#include "server/memory/host_device.h"

namespace statepool {
namespace {

constexpr uint64_t kBlock = StagingPool::kBlockBytes;
constexpr uint64_t kMiB = 1 << 20;

std::string RandomBytes(uint64_t size, uint64_t seed) {
  std::string bytes(size, 0);
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < size; at += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, std::min<size_t>(8, size - at));
  }
  return bytes;
}

class StateIoTest : public testing::Test {
 protected:
  // Fills the extent's beginning with these bytes, piece by piece.
  absl::Status Fill(absl::string_view bytes, StagingPool* staging) {
    StateFiller filler(&far_, *staging->Take({}), extent_->data(), bytes.size());
    while (filler.left() > 0) {
      const uint64_t done = bytes.size() - filler.left();
      const absl::StatusOr<absl::Span<char>> room = filler.Room();
      if (!room.ok()) return room.status();
      EXPECT_EQ(room->data(), filler.Room()->data());
      std::memcpy(room->data(), bytes.data() + done, room->size());
      if (absl::Status status = filler.Filled(); !status.ok()) return status;
    }
    return filler.Finish();
  }
  absl::StatusOr<std::string> Read(uint64_t bytes, StagingPool* staging) {
    StateReader reader(&far_, *staging->Take({}), extent_->data(), bytes);
    std::string read;
    while (reader.left() > 0) {
      const absl::StatusOr<absl::string_view> piece = reader.Next();
      if (!piece.ok()) return piece.status();
      EXPECT_TRUE(reader.left() == 0 || piece->size() % kLeafBytes == 0);
      read.append(piece->data(), piece->size());
    }
    return read;
  }

  const std::unique_ptr<HostDevice> host_ = *HostDevice::Create({.budget_bytes = 64 * kMiB, .chunk_bytes = kMiB});
  FarDevice far_{host_.get()};
  const std::unique_ptr<Extent> extent_ = *far_.AllocateExtent(kDefaultTenant, 40);
  ManualClock clock_;
};

TEST_F(StateIoTest, BytesOfEveryLengthGoThroughStagingAndBack) {
  const std::unique_ptr<StagingPool> staging = *StagingPool::Create(&far_, 0, &clock_);
  EXPECT_EQ(staging->bytes(), 2 * kBlock);
  for (const uint64_t size : {uint64_t{1}, kBlock - 1, kBlock, kBlock + 1, 2 * kBlock, 3 * kBlock + 5, 4 * kBlock,
                              uint64_t{4 * kBlock + 4096}}) {
    const std::string bytes = RandomBytes(size, size);
    ASSERT_TRUE(Fill(bytes, staging.get()).ok());
    EXPECT_EQ(std::memcmp(far_.Behind(extent_->data(), size), bytes.data(), size), 0) << size;
    EXPECT_TRUE(*Read(size, staging.get()) == bytes) << size;
  }
}

TEST_F(StateIoTest, WhatTheCpuCanReachIsOnePieceInPlace) {
  std::string bytes = RandomBytes(3 * kBlock, 1);
  StateReader reader{bytes};
  const absl::StatusOr<absl::string_view> piece = reader.Next();
  EXPECT_EQ(piece->data(), bytes.data());
  EXPECT_EQ(piece->size(), bytes.size());
  EXPECT_EQ(reader.left(), 0u);
  StateFiller filler(bytes.data(), bytes.size());
  EXPECT_EQ(filler.Room()->data(), bytes.data());
  EXPECT_EQ(filler.Room()->size(), bytes.size());
  EXPECT_TRUE(filler.Filled().ok());
  EXPECT_EQ(filler.left(), 0u);
  EXPECT_TRUE(filler.Finish().ok());
}

TEST_F(StateIoTest, WhoeverFindsNoPairWaitsForOneWithinItsDeadline) {
  const std::unique_ptr<StagingPool> staging = *StagingPool::Create(&far_, 4 * kBlock + 1, &clock_);
  auto first = *staging->Take({}), second = *staging->Take({});
  Op op;
  op.deadline = clock_.Now();
  EXPECT_EQ(staging->Take(op).status().code(), absl::StatusCode::kDeadlineExceeded);
  std::atomic<bool> cancelled{true};
  Op given_up;
  given_up.cancelled = &cancelled;
  EXPECT_EQ(staging->Take(given_up).status().code(), absl::StatusCode::kCancelled);
  std::thread waiter([&] { EXPECT_TRUE(staging->Take({}).ok()); });
  first.reset();
  waiter.join();
}

TEST_F(StateIoTest, ManyThreadsShareFewPairs) {
  const std::unique_ptr<StagingPool> staging = *StagingPool::Create(&far_, 4 * kBlock, &clock_);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t size = 9 * kMiB;
      char* const to = extent_->data() + t * 10 * kMiB;
      for (uint64_t i = 0; i < 5; ++i) {
        const std::string bytes = RandomBytes(size, 10 * t + i);
        StateFiller filler(&far_, *staging->Take({}), to, size);
        while (filler.left() > 0) {
          const uint64_t done = size - filler.left();
          const absl::Span<char> room = *filler.Room();
          std::memcpy(room.data(), bytes.data() + done, room.size());
          ASSERT_TRUE(filler.Filled().ok());
        }
        ASSERT_TRUE(filler.Finish().ok());
        ASSERT_EQ(std::memcmp(far_.Behind(to, size), bytes.data(), size), 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(StateIoTest, ADeviceThatFailsSaysSoAndThePairComesBack) {
  const std::unique_ptr<StagingPool> staging = *StagingPool::Create(&far_, 0, &clock_);
  const std::string bytes = RandomBytes(2 * kBlock, 1);
  ASSERT_TRUE(Fill(bytes, staging.get()).ok());
  far_.Fail();
  EXPECT_EQ(ReasonOf(Fill(bytes, staging.get())), "DEVICE_FAILED");
  EXPECT_EQ(ReasonOf(Read(bytes.size(), staging.get()).status()), "DEVICE_FAILED");
  EXPECT_TRUE(staging->Take({}).ok());
}

// ---- between devices

// Sizes that end in the first block, at its end, in the second, and after many turns.
TEST(CopyBetween, GivesTheSameBytesWhateverIsBetween) {
  const SystemClock clock;
  const uint64_t most = 5 * kBlock;
  const auto memory = [&] { return *HostDevice::Create({.budget_bytes = 2 * most, .chunk_bytes = kMiB}); };
  const auto near = memory(), behind_a = memory(), behind_b = memory(), behind_c = memory();
  FarDevice a(behind_a.get(), "a"), b(behind_b.get(), "b"), c(behind_c.get(), "c", /*has_peers=*/false);
  const auto staging = *StagingPool::Create(&a, 0, &clock);
  const std::vector<Device*> devices = {near.get(), &a, &b, &c};
  std::vector<std::unique_ptr<Extent>> from, to;
  for (Device* device : devices) {
    from.push_back(*device->AllocateExtent(0, most / kMiB));
    to.push_back(*device->AllocateExtent(0, most / kMiB));
  }
  const auto reach = [&](size_t i, const Extent& extent) {
    return i == 0 ? extent.data() : static_cast<FarDevice*>(devices[i])->Behind(extent.data(), extent.bytes());
  };
  for (size_t i = 0; i < devices.size(); ++i) {
    for (size_t j = 0; j < devices.size(); ++j) {
      for (const uint64_t bytes : {uint64_t{1}, kBlock, kBlock + 1, 2 * kBlock + 77, most}) {
        const std::string state = RandomBytes(bytes, 100 * i + 10 * j + bytes);
        std::memcpy(reach(i, *from[i]), state.data(), bytes);
        std::memset(reach(j, *to[j]), 0x5a, most);
        const uint64_t out = i == 0 ? 0 : static_cast<FarDevice*>(devices[i])->copied_out_bytes();
        ASSERT_EQ(CopyBetween({}, staging.get(), devices[i], from[i]->data(), devices[j], to[j]->data(), bytes),
                  absl::OkStatus());
        EXPECT_EQ(std::memcmp(reach(j, *to[j]), state.data(), bytes), 0) << i << " to " << j << ", " << bytes;
        if (bytes < most) {
          EXPECT_EQ(reach(j, *to[j])[bytes], 0x5a);
        }
        if (i == 0 || i == j) continue;
        const bool through_the_host = j == 0 || j == 3;  // whoever receives must reach the other
        EXPECT_EQ(static_cast<FarDevice*>(devices[i])->copied_out_bytes() - out, through_the_host ? bytes : 0);
      }
    }
  }
}

TEST(CopyBetween, SaysThatEitherDeviceFailed) {
  const SystemClock clock;
  const auto memory = [] { return *HostDevice::Create({.budget_bytes = 2 * kMiB, .chunk_bytes = kMiB}); };
  for (const bool has_peers : {false, true}) {
    for (const bool source_fails : {false, true}) {
      const auto behind_a = memory(), behind_b = memory();
      FarDevice a(behind_a.get(), "a", has_peers), b(behind_b.get(), "b", has_peers);
      const auto staging = *StagingPool::Create(&a, 0, &clock);
      const auto from = *a.AllocateExtent(0, 1), to = *b.AllocateExtent(0, 1);
      (source_fails ? a : b).Fail();
      EXPECT_EQ(ReasonOf(CopyBetween({}, staging.get(), &a, from->data(), &b, to->data(), kMiB)), "DEVICE_FAILED");
    }
  }
}

}  // namespace
}  // namespace statepool
