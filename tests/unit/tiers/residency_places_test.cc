// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Images in several memories at once: devices, a warm memory below them, and the cold store. Each memory holds a few
// slots of one chunk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/tiers/residency.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

class ResidencyPlacesTest : public AnyColdStoreTest, public testing::WithParamInterface<MemoryKind> {
 protected:
  ResidencyPlacesTest() { Start(); }
  ~ResidencyPlacesTest() override {
    images_.clear();
    residency_.reset();
  }

  // Four slots on each device, and two in the warm memory for each device.
  void Start(ResidencyOptions options = {}, uint64_t hot_dirty_max = UINT64_MAX, uint64_t warm_dirty_max = UINT64_MAX) {
    images_.clear();
    residency_.reset();
    const uint64_t devices = TestMemory(GetParam(), 8 * kChunk, &clock_).devices().size();
    memory_ = std::make_unique<TestMemory>(GetParam(), devices * 4 * kChunk, &clock_);
    ResidencyMemories memories = memory_->memories();
    for (ResidencyMemory& hot : memories.hot) hot.dirty_bytes_max = hot_dirty_max;
    memories.warm->dirty_bytes_max = warm_dirty_max;
    residency_ = std::make_unique<Residency>(options, memories, cold_.get(), &clock_);
  }
  uint64_t hot_slots() const { return 4 * memory_->devices().size(); }
  uint64_t warm_slots() const { return 2 * memory_->devices().size(); }

  ImageRef Write(uint64_t seed, uint64_t bytes = kChunk, absl::string_view attachment = {}) {
    const std::string data = MakeBytes(bytes, seed);
    const absl::string_view piece = data;
    StateBytes state;
    state.pieces = {&piece, 1};
    state.attachment = attachment;
    auto image = residency_->Write({}, MakeLayout(bytes), state);
    EXPECT_TRUE(image.ok()) << image.status();
    residency_->CheckInvariants();
    if (!image.ok()) return nullptr;
    (*image)->AddHead();
    return *image;
  }
  ImageRef WriteOn(size_t device, uint64_t seed, uint64_t bytes = kChunk) {
    auto writer = residency_->BeginWrite({}, MakeLayout(bytes), 0, memory_->devices()[device]);
    EXPECT_TRUE(writer.ok()) << writer.status();
    const std::string data = MakeBytes(bytes, seed);
    const absl::string_view piece = data;
    EXPECT_TRUE((*writer)->Append({&piece, 1}, ChecksumOf(data)).ok());
    const ImageRef image = *(*writer)->Finish(std::nullopt, "");
    image->AddHead();
    return image;
  }
  // Two images, of the seeds 1 and 2, that the first device lacks and has room for: the other one has them, or the warm
  // memory.
  std::vector<ImageRef> TwoToBring() {
    const bool other = memory_->devices().size() > 1;
    for (uint64_t seed = 1; seed <= 2; ++seed) images_.push_back(other ? WriteOn(1, seed) : Write(seed));
    if (!other) Fill(4);
    images_.resize(2);
    EXPECT_EQ(tier(images_[1]), other ? Tier::kHot : Tier::kWarm);
    return images_;
  }
  // Heads 1, 2, ... with their numbers as seeds.
  void Fill(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) images_.push_back(Write(images_.size() + 1));
  }
  std::string Read(const ImageRef& image, const Device* on = nullptr) {
    auto pin = residency_->Read({}, image, on);
    EXPECT_TRUE(pin.ok()) << pin.status();
    residency_->CheckInvariants();
    return pin.ok() ? BytesOf(**pin) : "";
  }
  std::string ReasonOfRead(const ImageRef& image, const Device* on = nullptr) {
    const std::string reason = ReasonOf(residency_->Read({}, image, on).status());
    residency_->CheckInvariants();
    return reason;
  }
  Tier tier(const ImageRef& image) { return residency_->tier(*image); }
  uint64_t Moved(Tier from, Tier to) {
    const auto bytes = residency_->stats().transferred_bytes;
    const auto it = bytes.find({from, to});
    return it == bytes.end() ? 0 : it->second;
  }

  ManualClock clock_;
  std::unique_ptr<TestMemory> memory_;
  std::unique_ptr<Residency> residency_;
  std::vector<ImageRef> images_;
};

INSTANTIATE_TEST_SUITE_P(Memory, ResidencyPlacesTest, SeveralMemories(), MemoryKindName);

// ---- down and up

TEST_P(ResidencyPlacesTest, WhoLeavesADeviceIsDemotedAndReadInPlaceWithoutComingBack) {
  Fill(hot_slots() + 1);
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  for (size_t i = 1; i < images_.size(); ++i) EXPECT_EQ(tier(images_[i]), Tier::kHot) << i;
  EXPECT_FALSE(residency_->persisted(*images_[0]));
  EXPECT_EQ(residency_->TryRead(images_[0]), nullptr) << "nobody has compared it with its checksum yet";
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
  const Pin pin = residency_->TryRead(images_[0]);
  ASSERT_NE(pin, nullptr);
  EXPECT_TRUE(pin->in_host_memory());
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  const ResidencyStats stats = residency_->stats();
  EXPECT_EQ(stats.demotions, 1u);
  EXPECT_EQ(stats.evictions.demoted, 1u);
  EXPECT_EQ(stats.promotions, 0u);
  EXPECT_EQ(Moved(Tier::kHot, Tier::kWarm), kChunk);
  EXPECT_EQ(Moved(Tier::kHot, Tier::kCold), 0u);
  EXPECT_TRUE(Stored().empty());
}

TEST_P(ResidencyPlacesTest, WhatTheWarmMemoryCantHoldIsSpilledAndAllComeBack) {
  Fill(hot_slots() + warm_slots() + 3);
  for (size_t i = 0; i < images_.size(); ++i) {
    EXPECT_EQ(tier(images_[i]), i < 3 ? Tier::kCold : i < 3 + warm_slots() ? Tier::kWarm : Tier::kHot) << i;
  }
  EXPECT_EQ(residency_->stats().spills, 3u);
  EXPECT_EQ(Moved(Tier::kWarm, Tier::kCold), 3 * kChunk);
  EXPECT_EQ(Moved(Tier::kHot, Tier::kCold), 0u);
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < images_.size(); ++i) EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, i + 1)) << i;
    for (Device* device : memory_->devices()) {
      for (size_t i = 0; i < images_.size(); ++i) {
        EXPECT_EQ(Read(images_[i], device), MakeBytes(kChunk, i + 1)) << i;
        EXPECT_EQ(tier(images_[i]), Tier::kHot);
      }
    }
  }
}

TEST_P(ResidencyPlacesTest, APromotedImageStaysWhereItWasAndLeavesTheDeviceForNothing) {
  Fill(hot_slots() + 1);
  Device* const device = memory_->device();
  EXPECT_EQ(Read(images_[0], device), MakeBytes(kChunk, 1));
  EXPECT_EQ(tier(images_[0]), Tier::kHot);
  EXPECT_EQ(Moved(Tier::kWarm, Tier::kHot), kChunk);
  EXPECT_EQ(residency_->stats().memories.back().images, 2u) << "its copy, and who made room for it";
  const uint64_t down = Moved(Tier::kHot, Tier::kWarm);
  for (size_t i = 1; i < images_.size(); ++i) Read(images_[i]);
  images_.push_back(Write(100));  // it is the only clean one
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  EXPECT_EQ(Moved(Tier::kHot, Tier::kWarm), down);
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
}

TEST_P(ResidencyPlacesTest, BetweenADeviceAndTheWarmMemoryNothingIsStaged) {
  const auto all_staging = memory_->staging()->Take({});  // whoever wants some waits for ever
  Device* const device = memory_->devices().back();
  // Made on the device itself: what fills them there is no business of this test.
  for (uint64_t i = 0; i < 5; ++i) {
    auto writer = residency_->BeginWrite({}, MakeLayout(kChunk), 0, device);
    ASSERT_TRUE(writer.ok()) << writer.status();
    std::vector<LeafHash> leaves(LeafCount(kChunk));
    ASSERT_TRUE(device->HashLeaves((*writer)->room(), kChunk, absl::MakeSpan(leaves)).ok());
    images_.push_back((*writer)->FinishFilled(HashRoot(leaves), ""));
    images_.back()->AddHead();
  }
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  EXPECT_TRUE(residency_->Read({}, images_[0], device).ok());
  EXPECT_EQ(Moved(Tier::kHot, Tier::kWarm), 2 * kChunk);
  EXPECT_EQ(Moved(Tier::kWarm, Tier::kHot), kChunk);
}

TEST_P(ResidencyPlacesTest, AColdImageIsReadThroughTheWarmMemoryAndLeavesTheDevicesAlone) {
  Fill(hot_slots() + warm_slots() + 1);
  ASSERT_EQ(tier(images_[0]), Tier::kCold);
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  EXPECT_EQ(Moved(Tier::kCold, Tier::kHot), 0u);
}

TEST_P(ResidencyPlacesTest, WhereTheWarmMemoryIsInUseTheDiskTakesWhatLeaves) {
  Fill(hot_slots() + warm_slots());
  std::vector<Pin> pins;
  for (size_t i = 0; i < warm_slots(); ++i) pins.push_back(*residency_->Read({}, images_[i], nullptr));
  images_.push_back(Write(100));
  EXPECT_EQ(tier(images_[warm_slots()]), Tier::kCold);
  EXPECT_EQ(Read(images_[warm_slots()]), MakeBytes(kChunk, warm_slots() + 1));
  for (size_t i = 0; i < warm_slots(); ++i) EXPECT_EQ(tier(images_[i]), Tier::kWarm);
}

TEST_P(ResidencyPlacesTest, AStateThatIsLargerThanTheWarmMemoryGoesToTheDisk) {
  const uint64_t bytes = memory_->warm()->budget_bytes() + 1;
  if (bytes > memory_->device()->budget_bytes()) GTEST_SKIP() << "no device has room for it";
  images_.push_back(Write(1, bytes));
  Fill(hot_slots());
  EXPECT_EQ(tier(images_[0]), Tier::kCold);
  EXPECT_EQ(Read(images_[0], memory_->device()), MakeBytes(bytes, 1));
}

TEST_P(ResidencyPlacesTest, MoreDirtyBytesThanAllowedGoDownBeforeTheirSlotsAreNeeded) {
  Start({}, /*hot_dirty_max=*/2 * kChunk, /*warm_dirty_max=*/0);
  const uint64_t devices = memory_->devices().size();
  const auto wait_until = [](auto reached) {
    for (int i = 0; i < 20'000 && !reached(); ++i) usleep(500);
    return reached();
  };
  Fill(hot_slots());
  EXPECT_TRUE(wait_until([&] { return residency_->stats().demotions == 2 * devices; }));
  for (const ImageRef& image : images_) EXPECT_EQ(tier(image), Tier::kHot) << "where it was written, too";
  EXPECT_EQ(Moved(Tier::kWarm, Tier::kCold), 0u) << "they are in two places";
  for (uint64_t i = 0; i < devices; ++i) images_.push_back(Write(hot_slots() + 1 + i));
  EXPECT_TRUE(wait_until([&] { return residency_->stats().spills >= devices; }));  // what is warm alone
  for (size_t i = 0; i < images_.size(); ++i) EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, i + 1));
}

TEST_P(ResidencyPlacesTest, AttachmentsAreThereInEveryPlaceAndLeaveMemoryWithTheLastCopy) {
  Start({.attachment_budget_bytes = 1_MiB});
  const std::string attachment = MakeBytes(400'000, 5);
  for (uint64_t i = 1; i <= 2; ++i) images_.push_back(Write(i, kChunk, attachment));
  for (Device* device : memory_->devices()) EXPECT_EQ(Read(images_[0], device), MakeBytes(kChunk, 1));
  EXPECT_EQ(residency_->stats().attachment_bytes, 800'000u) << "once, however many copies";
  images_.push_back(Write(3, kChunk, attachment));
  EXPECT_EQ(residency_->stats().attachment_bytes, 800'000u);
  for (size_t i = 0; i < 3; ++i) {
    for (const Device* device : {static_cast<Device*>(nullptr), memory_->devices().back()}) {
      const auto pin = residency_->Read({}, images_[i], device);
      ASSERT_TRUE(pin.ok()) << pin.status();
      EXPECT_TRUE((*pin)->attachment() == attachment);
      EXPECT_EQ(BytesOf(**pin), MakeBytes(kChunk, i + 1));
    }
    residency_->CheckInvariants();
  }
}

TEST_P(ResidencyPlacesTest, DroppedImagesLeaveEveryPlace) {
  Fill(hot_slots() + warm_slots() + 2);
  for (Device* device : memory_->devices()) {
    for (const ImageRef& image : images_) Read(image, device);
  }
  images_.clear();
  ASSERT_TRUE(residency_->WaitForReclaim());
  residency_->CheckInvariants();
  for (const auto& memory : residency_->stats().memories) EXPECT_EQ(memory.images, 0u) << memory.device;
  EXPECT_TRUE(Stored().empty());
}

// ---- many at once

TEST_P(ResidencyPlacesTest, ManyAreReadTogetherWhereverTheyAre) {
  Fill(hot_slots() + warm_slots() + 1);  // cold, warm, hot
  for (int round = 0; round < 3; ++round) {
    for (Device* device : memory_->devices()) {
      for (size_t first = 0; first < images_.size(); ++first) {
        std::vector<ImageRef> some;
        std::vector<uint64_t> seeds;
        for (const size_t i : {first, first + 2, first, first + 3}) {  // one twice
          some.push_back(images_[i % images_.size()]);
          seeds.push_back(i % images_.size() + 1);
        }
        const auto pins = residency_->ReadMany({}, some, device);
        residency_->CheckInvariants();
        ASSERT_EQ(pins.size(), some.size());
        for (size_t k = 0; k < pins.size(); ++k) {
          ASSERT_TRUE(pins[k].ok()) << pins[k].status();
          EXPECT_EQ((*pins[k])->place().extent->device(), device->name());
          EXPECT_EQ(BytesOf(**pins[k]), MakeBytes(kChunk, seeds[k]));
        }
      }
    }
  }
  EXPECT_TRUE(residency_->ReadMany({}, {}, memory_->device()).empty());
}

TEST_P(ResidencyPlacesTest, OfManyThoseThatHaveNoRoomAreRefusedAndTheOthersRead) {
  Fill(hot_slots() + 1);
  Device* const device = memory_->device();
  const auto pins = residency_->ReadMany({}, images_, device);
  size_t read = 0;
  for (size_t i = 0; i < pins.size(); ++i) {
    if (pins[i].ok()) {
      ++read;
      EXPECT_EQ(BytesOf(**pins[i]), MakeBytes(kChunk, i + 1));
    } else {
      EXPECT_EQ(ReasonOf(pins[i].status()), "HOT_FULL");
    }
  }
  EXPECT_EQ(read, 4u) << "as many as it has slots";
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, OfManyOneThatIsDamagedTakesNoOtherWithIt) {
  Fill(hot_slots() + 2);
  ASSERT_EQ(tier(images_[1]), Tier::kWarm);
  std::vector<ImageRef> some(images_.begin(), images_.begin() + 2);
  const_cast<char*>((*residency_->Read({}, some[0], nullptr))->data())[4'000] ^= 1;
  const auto pins = residency_->ReadMany({}, some, memory_->device());
  EXPECT_EQ(ReasonOf(pins[0].status()), "CORRUPT");
  ASSERT_TRUE(pins[1].ok()) << pins[1].status();
  EXPECT_EQ(BytesOf(**pins[1]), MakeBytes(kChunk, 2));
  residency_->CheckInvariants();
}

// ---- damage

TEST_P(ResidencyPlacesTest, AByteThatFlippedOnTheDeviceGoesNoFurther) {
  images_.push_back(Write(1));
  {
    const Pin pin = *residency_->Read({}, images_[0], nullptr);
    char* const byte = const_cast<char*>(pin->data()) + 77;
    const char flipped = static_cast<char>(memory_->Read(byte, 1)[0] ^ 1);
    memory_->Write(byte, {&flipped, 1});
  }
  Fill(hot_slots());
  EXPECT_EQ(ReasonOfRead(images_[0]), "CORRUPT");
  EXPECT_EQ(residency_->stats().memories.back().images, 0u);
  EXPECT_EQ(ReasonOf(residency_->Persist({}, images_[0])), "CORRUPT");
  EXPECT_TRUE(Stored().empty());
}

TEST_P(ResidencyPlacesTest, AByteThatFlippedInTheWarmMemoryIsNeverAnAnswer) {
  Fill(hot_slots() + 1);
  char* const slot = const_cast<char*>((*residency_->Read({}, images_[0], nullptr))->data());
  const size_t next = 1;  // is demoted into its slot
  images_[0].reset();
  images_.push_back(Write(100));
  ASSERT_EQ(tier(images_[next]), Tier::kWarm);
  slot[4'000] ^= 1;
  EXPECT_EQ(ReasonOfRead(images_[next]), "CORRUPT");
  EXPECT_EQ(ReasonOfRead(images_[next], memory_->device()), "CORRUPT");
}

TEST_P(ResidencyPlacesTest, WhereADamagedCopyIsNotTheOnlyOneAnotherIsRead) {
  Fill(hot_slots() + 1);
  char* const slot = const_cast<char*>((*residency_->Read({}, images_[0], nullptr))->data());
  ASSERT_TRUE(residency_->Persist({}, images_[0]).ok());
  slot[4'000] ^= 1;  // after it was compared: the next way up notices it
  EXPECT_EQ(Read(images_[0], memory_->device()), MakeBytes(kChunk, 1));
  EXPECT_EQ(Moved(Tier::kCold, Tier::kHot), kChunk);
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
}

#ifndef STATEPOOL_GPU_TESTS  // what FarDevices tell of themselves, and how they fail

// ---- several devices

TEST_P(ResidencyPlacesTest, NewImagesGoToTheDeviceWithMostRoom) {
  if (memory_->devices().size() < 2) GTEST_SKIP() << "there is one";
  const auto on = [&](size_t i) { return residency_->stats().memories[i].images; };
  Fill(1);
  EXPECT_EQ(on(0), 1u);
  Fill(1);
  EXPECT_EQ(on(1), 1u);
  auto arena = residency_->AllocateShared({}, 0, 2 * kChunk, memory_->devices()[0]);
  ASSERT_TRUE(arena.ok());
  Fill(2);
  EXPECT_EQ(on(1), 3u);
  Fill(2);
  EXPECT_EQ(on(0), 2u);
  EXPECT_EQ(on(1), 4u);
  Fill(2);  // all is full: those used least recently leave, wherever they are
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  EXPECT_EQ(tier(images_[1]), Tier::kWarm);
  arena->reset();
  residency_->SharedMemoryFreed();
}

TEST_P(ResidencyPlacesTest, AnImageIsCopiedFromOneDeviceToAnother) {
  if (memory_->devices().size() < 2) GTEST_SKIP() << "there is one";
  for (const uint64_t bytes : {kChunk, uint64_t{3 * kChunk + 17}}) {
    Start();
    images_.push_back(Write(1, bytes));
    Device *const first = memory_->devices()[0], *const second = memory_->devices()[1];
    const uint64_t out = memory_->far(0)->copied_out_bytes();
    EXPECT_EQ(Read(images_[0], second), MakeBytes(bytes, 1));
    const bool peers = GetParam() == MemoryKind::kTwoFarWarm;
    EXPECT_EQ(memory_->far(0)->copied_out_bytes() - out, peers ? 0 : bytes);
    EXPECT_EQ(residency_->stats().hot_images, 2u) << "copies";
    EXPECT_EQ(Moved(Tier::kHot, Tier::kHot), bytes);
    EXPECT_EQ(Read(images_[0], first), MakeBytes(bytes, 1));
    EXPECT_EQ(Moved(Tier::kHot, Tier::kHot), bytes);
  }
}

TEST_P(ResidencyPlacesTest, OfTwoHotCopiesOneGoesForNothingAndTheOtherGoesDown) {
  if (memory_->devices().size() < 2) GTEST_SKIP() << "there is one";
  images_.push_back(Write(1));
  Read(images_[0], memory_->devices()[1]);
  Fill(hot_slots() - 2);
  Fill(1);
  EXPECT_EQ(tier(images_[0]), Tier::kHot);
  EXPECT_EQ(residency_->stats().demotions, 0u);
  EXPECT_EQ(residency_->stats().evictions.clean, 1u);
  Fill(1);
  EXPECT_EQ(tier(images_[0]), Tier::kWarm);
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
}

// ---- several copies under way

TEST_P(ResidencyPlacesTest, ManyComeWithSeveralCopiesUnderWay) {
  const std::vector<ImageRef> some = TwoToBring();
  const auto pins = residency_->ReadMany({}, some, memory_->device());
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(BytesOf(**pins[i]), MakeBytes(kChunk, i + 1));
  if (GetParam() != MemoryKind::kTwoFarApart) {
    EXPECT_EQ(memory_->far()->most_under_way(), 2u);
  }
  EXPECT_EQ(residency_->stats().promotions, 2u);
  EXPECT_EQ(residency_->stats().misses, 2u);
}

TEST_P(ResidencyPlacesTest, WhatArrivesWithOtherBytesIsNoAnswerAndComesAgain) {
  const std::vector<ImageRef> some = TwoToBring();
  int arrivals = 0;
  memory_->far()->SetArrival(
      [&](char* bytes, uint64_t) { bytes[5] = static_cast<char>(bytes[5] ^ (++arrivals == 1)); });
  const auto pins = residency_->ReadMany({}, some, memory_->device());
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(pins[i].ok()) << pins[i].status();
    EXPECT_EQ(BytesOf(**pins[i]), MakeBytes(kChunk, i + 1));
  }
  EXPECT_EQ(residency_->stats().promotions, 2u);
  memory_->far()->SetArrival(nullptr);
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, ADeviceThatFailsWhileManyComeToItSpoilsNoOtherPlace) {
  const std::vector<ImageRef> some = TwoToBring();
  memory_->far()->SetArrival([&](char*, uint64_t) { memory_->far()->Fail(); });
  const auto pins = residency_->ReadMany({}, some, memory_->device());
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(ReasonOf(pins[i].status()), "DEVICE_FAILED");
    EXPECT_EQ(Read(some[i]), MakeBytes(kChunk, i + 1));
  }
  EXPECT_EQ(residency_->stats().lost_images, 0u);
}

TEST_P(ResidencyPlacesTest, ADeviceThatFailsWhileManyLeaveItLosesWhatHasNotArrived) {
  if (GetParam() != MemoryKind::kTwoFarWarm) GTEST_SKIP() << "they come from elsewhere, or one after the other";
  const std::vector<ImageRef> some = TwoToBring();
  memory_->far(0)->SetArrival([&](char*, uint64_t) { memory_->far(1)->Fail(); });
  const auto pins = residency_->ReadMany({}, some, memory_->device());
  size_t read = 0;
  for (size_t i = 0; i < 2; ++i) {
    if (pins[i].ok()) {
      ++read;
      EXPECT_EQ(BytesOf(**pins[i]), MakeBytes(kChunk, i + 1));
    } else {
      EXPECT_EQ(ReasonOf(pins[i].status()), "DEVICE_FAILED");
      EXPECT_FALSE(residency_->loss(*some[i]).ok());
    }
  }
  EXPECT_EQ(read, 1u) << "one was there before";
  EXPECT_EQ(residency_->stats().lost_images, 1u);
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, ACallThatIsCancelledWhileManyComeKeepsWhatCame) {
  const std::vector<ImageRef> some = TwoToBring();
  std::atomic<bool> cancelled{false};
  memory_->far()->SetArrival([&](char*, uint64_t) { cancelled = true; });
  const Op op{.cancelled = &cancelled};
  auto pins = residency_->ReadMany(op, some, memory_->device());
  EXPECT_TRUE(pins[0].ok()) << pins[0].status();
  if (GetParam() != MemoryKind::kTwoFarApart) {
    EXPECT_TRUE(pins[1].ok()) << "it was under way: " << pins[1].status();
  }
  pins.clear();
  memory_->far()->SetArrival(nullptr);
  Fill(2 * hot_slots());  // both leave the device
  pins = residency_->ReadMany(op, some, memory_->device());
  for (const auto& pin : pins) EXPECT_TRUE(absl::IsCancelled(pin.status())) << pin.status();
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, AnImageThatIsOnItsWayFromADeviceThatFailsIsNotLostYet) {
  if (memory_->devices().size() > 1) GTEST_SKIP() << "the other device takes the new one";
  Fill(hot_slots());
  std::thread persister;
  memory_->far()->SetArrival([&](char*, uint64_t) {
    if (persister.joinable()) return;
    memory_->far()->Fail();
    residency_->CheckDevices();
    EXPECT_TRUE(residency_->loss(*images_[0]).ok());
    EXPECT_FALSE(residency_->loss(*images_[1]).ok());
    persister = std::thread([&] { EXPECT_TRUE(residency_->Persist({}, images_[0]).ok()); });
  });
  // The first is demoted for it.
  EXPECT_EQ(ReasonOf(residency_->BeginWrite({}, MakeLayout(kChunk), 0, memory_->device()).status()), "DEVICE_FAILED");
  ASSERT_TRUE(persister.joinable());
  persister.join();
  EXPECT_TRUE(residency_->loss(*images_[0]).ok());
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
  EXPECT_EQ(residency_->stats().lost_images, hot_slots() - 1);
}

TEST_P(ResidencyPlacesTest, AnImageThatIsBeingWrittenFromADeviceThatFailsIsNotLostYet) {
  Fill(2);
  FarDevice* device = memory_->far();
  std::string read;
  std::thread reader;
  device->SetArrival([&](char*, uint64_t) {
    if (reader.joinable()) return;
    device->Fail();
    residency_->CheckDevices();
    EXPECT_TRUE(residency_->loss(*images_[0]).ok());
    reader = std::thread([&] { read = Read(images_[0]); });
  });
  ASSERT_TRUE(residency_->Persist({}, images_[0]).ok());
  ASSERT_TRUE(reader.joinable());
  reader.join();
  EXPECT_EQ(read, MakeBytes(kChunk, 1));
  EXPECT_EQ(tier(images_[0]), Tier::kWarm) << "it came from the disk";
  EXPECT_TRUE(residency_->loss(*images_[0]).ok());
}

TEST_P(ResidencyPlacesTest, WhereACallHadToDemoteThoseThatAreNextFollowAhead) {
  Start({}, /*hot_dirty_max=*/hot_slots() * kChunk);  // never exceeded
  Fill(hot_slots());
  EXPECT_EQ(residency_->stats().demotions, 0u);
  images_.push_back(Write(100));
  const auto demoted = [&] { return residency_->stats().demotions; };
  for (int i = 0; i < 20'000 && demoted() < 2; ++i) usleep(500);
  EXPECT_GE(demoted(), 2u) << "one for its slot, another one ahead";
  for (int i = 0; i < 10; ++i) images_.push_back(Write(101 + static_cast<uint64_t>(i)));
  for (size_t i = 0; i < images_.size(); ++i) {
    EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, i < hot_slots() ? i + 1 : 100 + i - hot_slots())) << i;
  }
}

TEST_P(ResidencyPlacesTest, OfThoseThatGoDownAheadADamagedOneIsLostAlone) {
  if (memory_->devices().size() > 1) GTEST_SKIP() << "one is enough";
  Start({}, /*hot_dirty_max=*/hot_slots() * kChunk);
  Fill(hot_slots());
  for (size_t i = 1; i < hot_slots(); ++i) {  // in the order of their turns
    const Pin pin = *residency_->Read({}, images_[i], nullptr);
    if (i == 1) memory_->far()->Behind(pin->data(), kChunk)[77] ^= 1;
  }
  const ImageRef written = Write(100);  // the first is demoted for it, others ahead
  for (int i = 0; i < 20'000 && residency_->loss(*images_[1]).ok(); ++i) usleep(500);
  EXPECT_EQ(ReasonOfRead(images_[1]), "CORRUPT");
  for (const size_t i : {0, 2, 3}) EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, i + 1)) << i;
  EXPECT_EQ(Read(written), MakeBytes(kChunk, 100));
}

TEST_P(ResidencyPlacesTest, ADeviceThatFailsWhileStatesGoDownAheadLosesWhatHasNotArrived) {
  if (memory_->devices().size() > 1) GTEST_SKIP() << "one is enough";
  Start({}, /*hot_dirty_max=*/kChunk);
  int arrivals = 0;  // the spiller's alone
  memory_->far()->SetArrival([&](char*, uint64_t) {
    if (++arrivals == 2) memory_->far()->Fail();
  });
  for (uint64_t i = 1; i <= 4; ++i) {
    auto writer = residency_->BeginWrite({}, MakeLayout(kChunk), 0, memory_->device());
    if (!writer.ok()) break;  // it failed already
    const std::string bytes = MakeBytes(kChunk, i);
    char* const room = memory_->far()->Behind((*writer)->room(), kChunk);
    std::copy(bytes.begin(), bytes.end(), room);
    images_.push_back((*writer)->FinishFilled(ChecksumOf(bytes), ""));
    images_.back()->AddHead();
  }
  for (int i = 0; i < 20'000 && memory_->far()->health().ok(); ++i) usleep(500);
  residency_->CheckDevices();
  uint64_t lost = 0;
  for (size_t i = 0; i < images_.size(); ++i) {
    const auto pin = residency_->Read({}, images_[i], nullptr);
    if (pin.ok()) {
      EXPECT_EQ(BytesOf(**pin), MakeBytes(kChunk, i + 1));
    } else {
      EXPECT_EQ(ReasonOf(pin.status()), "DEVICE_FAILED");
      ++lost;
    }
  }
  EXPECT_GT(lost, 0u);
  EXPECT_LE(images_.size() - lost, 2u) << "what had arrived";
  EXPECT_EQ(residency_->stats().lost_images, lost);
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, WhatMayLeaveAgainIsDemotedThoughNothingElseHappens) {
  if (memory_->devices().size() > 1) GTEST_SKIP() << "one is enough";
  Start({}, /*hot_dirty_max=*/0);
  const auto wait_until = [](auto reached) {
    for (int i = 0; i < 20'000 && !reached(); ++i) usleep(500);
    return reached();
  };
  Fill(2);
  ASSERT_TRUE(wait_until([&] { return residency_->stats().demotions == 2; }));
  auto first = residency_->Read({}, images_[0], memory_->device());
  auto second = residency_->Read({}, images_[1], memory_->device());
  ASSERT_TRUE(first.ok() && second.ok());
  Fill(1);  // it takes the place that one of them has below
  ASSERT_TRUE(wait_until([&] { return residency_->stats().demotions == 3; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // nothing may leave: the spiller sleeps
  EXPECT_EQ(residency_->stats().demotions + residency_->stats().spills, 3u);
  first->reset();
  second->reset();
  EXPECT_TRUE(wait_until([&] { return residency_->stats().demotions + residency_->stats().spills > 3; }));
}

TEST_P(ResidencyPlacesTest, RoomThatNoSlotFitsIntoIsNoRoom) {
  if (memory_->devices().size() < 2) GTEST_SKIP() << "there is one";
  images_.push_back(WriteOn(1, 1, 2 * kChunk));
  images_.push_back(WriteOn(0, 2, 2 * kChunk - 8'192));  // there is less than a slot beside it
  Fill(1);
  EXPECT_EQ(residency_->stats().memories[1].images, 2u) << "both are as full: the one used least recently";
}

// ---- a device that fails

TEST_P(ResidencyPlacesTest, WhatIsElsewhereOutlivesItsDeviceAndTheRestIsToldApart) {
  Fill(hot_slots());
  ASSERT_TRUE(residency_->Persist({}, images_[0]).ok());
  Read(images_[1], memory_->devices().back());
  images_.push_back(Write(100));
  images_.push_back(Write(101));  // some are warm by now
  std::vector<Tier> before;
  for (const ImageRef& image : images_) before.push_back(tier(image));
  for (size_t i = 0; i < memory_->devices().size(); ++i) memory_->far(i)->Fail();
  residency_->CheckDevices();
  residency_->CheckInvariants();
  uint64_t lost = 0;
  for (size_t i = 0; i < images_.size(); ++i) {
    const uint64_t seed = i < hot_slots() ? i + 1 : 100 + i - hot_slots();
    const absl::Status loss = residency_->loss(*images_[i]);
    if (residency_->persisted(*images_[i]) || before[i] == Tier::kWarm) {
      EXPECT_TRUE(loss.ok()) << i << " " << loss;
      EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, seed)) << i;
      continue;
    }
    ++lost;
    EXPECT_EQ(loss.code(), absl::StatusCode::kUnavailable) << i;
    EXPECT_EQ(ReasonOfRead(images_[i]), "DEVICE_FAILED") << i;
    EXPECT_EQ(ReasonOf(residency_->Persist({}, images_[i])), "DEVICE_FAILED") << i;
    EXPECT_EQ(tier(images_[i]), Tier::kUnknown);
  }
  EXPECT_EQ(lost, residency_->stats().lost_images);
  EXPECT_GT(lost, 1u);
  EXPECT_LT(lost, images_.size() - 1);
  EXPECT_EQ(ReasonOfRead(images_[0], memory_->device()), "DEVICE_FAILED");
  EXPECT_EQ(ReasonOf(residency_->BeginWrite({}, MakeLayout(kChunk), 0, memory_->device()).status()), "DEVICE_FAILED");
  EXPECT_EQ(ReasonOf(residency_->AllocateShared({}, 0, kChunk, memory_->device()).status()), "DEVICE_FAILED");
}

TEST_P(ResidencyPlacesTest, WhereADeviceFailsOthersGoOnAndThenTheWarmMemory) {
  const size_t devices = memory_->devices().size();
  for (size_t failed = 0; failed < devices; ++failed) {
    memory_->far(failed)->Fail();
    const ImageRef image = Write(failed + 1);  // it is noticed here
    EXPECT_EQ(tier(image), failed + 1 < devices ? Tier::kHot : Tier::kWarm);
    EXPECT_EQ(Read(image), MakeBytes(kChunk, failed + 1));
    EXPECT_FALSE(residency_->stats().memories[failed].health.ok());
  }
  // All of it by turns through the warm memory and the disk.
  Fill(3 * warm_slots());
  for (size_t i = 0; i < images_.size(); ++i) EXPECT_EQ(Read(images_[i]), MakeBytes(kChunk, i + 1)) << i;
}

TEST_P(ResidencyPlacesTest, APinOnADeviceThatFailsReadsFromWhereElseTheImageIs) {
  const ImageRef alone = Write(1), persisted = Write(2);
  ASSERT_TRUE(residency_->Persist({}, persisted).ok());
  const auto pin_alone = residency_->Read({}, alone, nullptr), pin = residency_->Read({}, persisted, nullptr);
  ASSERT_TRUE(pin_alone.ok() && pin.ok());
  for (size_t i = 0; i < memory_->devices().size(); ++i) memory_->far(i)->Fail();
  EXPECT_EQ(BytesOf(**pin), MakeBytes(kChunk, 2));
  std::string bytes(kChunk, 0);
  EXPECT_EQ(ReasonOf((*pin_alone)->CopyOut(0, kChunk, bytes.data())), "DEVICE_FAILED");
  residency_->CheckInvariants();
}

TEST_P(ResidencyPlacesTest, ACreateAfterALossMakesANewInitialImage) {
  StateBytes bytes;
  bytes.initial = true;
  const ImageRef first = *residency_->Write({}, MakeLayout(kChunk), bytes);
  for (size_t i = 0; i < memory_->devices().size(); ++i) memory_->far(i)->Fail();
  const auto second = residency_->Write({}, MakeLayout(kChunk), bytes);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NE(*second, first);
  EXPECT_EQ(Read(*second), std::string(kChunk, 7));
}

TEST_P(ResidencyPlacesTest, SpareMemoryIsTouchedOnlyWhenNoDeviceIsLeft) {
  ResidencyMemories memories = memory_->memories();
  memories.warm_is_spare = true;
  residency_ = std::make_unique<Residency>(ResidencyOptions{}, memories, cold_.get(), &clock_);
  Fill(hot_slots() + 2);
  EXPECT_EQ(memory_->warm()->used_bytes(), 0u);
  EXPECT_EQ(tier(images_[0]), Tier::kCold);
  EXPECT_EQ(Read(images_[0]), MakeBytes(kChunk, 1));
  EXPECT_EQ(tier(images_[0]), Tier::kHot);
  for (size_t i = 0; i < memory_->devices().size(); ++i) memory_->far(i)->Fail();
  const ImageRef image = Write(100);
  EXPECT_EQ(tier(image), Tier::kWarm);
  EXPECT_GT(memory_->warm()->used_bytes(), 0u);
  EXPECT_EQ(Read(images_[1]), MakeBytes(kChunk, 2));
}

TEST_P(ResidencyPlacesTest, WhatNoPlaceBelowKeepsIsNotDemotedForEver) {
  Start({}, /*hot_dirty_max=*/kChunk);
  Fill(hot_slots());
  for (int i = 0; i < 20'000 && residency_->stats().spills == 0; ++i) usleep(500);
  ResidencyStats before = residency_->stats();
  for (int still = 0; still < 5;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const ResidencyStats now = residency_->stats();
    still = now.demotions == before.demotions && now.spills == before.spills ? still + 1 : 0;
    ASSERT_LT(now.demotions, 1000u);
    before = now;
  }
  EXPECT_GT(before.spills, 0u);
}

TEST_P(ResidencyPlacesTest, WhoReadsWaitsAsleepForADamagedCopyToGo) {
  if (memory_->devices().size() > 1) GTEST_SKIP() << "the other device has it";
  Fill(hot_slots() + 1);
  ASSERT_EQ(tier(images_[0]), Tier::kWarm);
  absl::StatusOr<Pin> pin = residency_->Read({}, images_[0], nullptr);
  ASSERT_TRUE(pin.ok());
  Read(images_[0], memory_->device());
  const_cast<char*>((*pin)->data())[5] ^= 1;  // the copy that is pinned
  ASSERT_TRUE(residency_->Persist({}, images_[0]).ok());
  memory_->far(0)->Fail();
  residency_->CheckDevices();
  std::string read;
  std::thread reader([&] { read = Read(images_[0]); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  residency_->stats();  // takes the lock
  pin->reset();
  reader.join();
  EXPECT_EQ(read, MakeBytes(kChunk, 1));
}

#endif

}  // namespace
}  // namespace statepool
