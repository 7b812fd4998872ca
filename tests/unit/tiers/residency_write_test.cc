// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States that come in their own time, and states that are another's in part.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/tiers/residency.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

class ResidencyWriteTest : public AnyColdStoreTest, public testing::WithParamInterface<MemoryKind> {
 protected:
  ResidencyWriteTest() { Start(2); }
  ~ResidencyWriteTest() override { residency_.reset(); }

  void Start(uint64_t slots, uint64_t attachments = 1_MiB) {
    residency_.reset();
    memory_ = std::make_unique<TestMemory>(GetParam(), slots * kChunk, &clock_);
    device_ = memory_->device();
    residency_ = std::make_unique<Residency>(ResidencyOptions{.attachment_budget_bytes = attachments},
                                             memory_->memories(), cold_.get(), &clock_);
  }
  absl::StatusOr<std::unique_ptr<ImageWriter>> Begin(uint64_t bytes = kChunk, uint64_t attachment_bytes = 0,
                                                     const Op& op = {}) {
    auto writer = residency_->BeginWrite(op, MakeLayout(bytes), attachment_bytes, nullptr);
    residency_->CheckInvariants();
    return writer;
  }
  absl::StatusOr<ImageRef> Write(const std::string& bytes, absl::string_view attachment = {}, const Op& op = {}) {
    const absl::string_view piece = bytes;
    StateBytes state;
    state.pieces = {&piece, 1};
    state.attachment = attachment;
    auto image = residency_->Write(op, MakeLayout(bytes.size()), state);
    residency_->CheckInvariants();
    return image;
  }
  static absl::Status Append(ImageWriter* writer, absl::string_view bytes) {
    return writer->Append({&bytes, 1}, ChecksumOf(bytes));
  }
  std::string Read(const ImageRef& image) { return BytesOf(**residency_->Read({}, image, nullptr)); }
  uint64_t SlotsUsed() {
    uint64_t used = 0;
    for (const auto& pool : residency_->stats().pools) used += pool.slots_used;
    return used;
  }

  ManualClock clock_;
  std::unique_ptr<TestMemory> memory_;
  Device* device_ = nullptr;
  std::unique_ptr<Residency> residency_;
};

INSTANTIATE_TEST_SUITE_P(Memory, ResidencyWriteTest, OneMemory(), MemoryKindName);

// ---- chunk by chunk

TEST_P(ResidencyWriteTest, AStateThatStartsOverIsWhatCameAfterwards) {
  const std::string bytes = MakeBytes(2 * kChunk - 100, 1);
  auto writer = Begin(bytes.size());
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(Append(writer->get(), MakeBytes(bytes.size(), 2)).ok());
  (*writer)->Restart();
  EXPECT_EQ((*writer)->received_bytes(), 0u);
  EXPECT_EQ(ReasonOf((*writer)->Finish(std::nullopt, "").status()), "BYTES_LENGTH_MISMATCH");
  ASSERT_TRUE(Append(writer->get(), absl::string_view(bytes).substr(0, kChunk)).ok());
  ASSERT_TRUE(Append(writer->get(), absl::string_view(bytes).substr(kChunk)).ok());
  const auto image = (*writer)->Finish(ChecksumOf(bytes), "");
  ASSERT_TRUE(image.ok()) << image.status();
  writer->reset();
  residency_->CheckInvariants();
  EXPECT_EQ(Read(*image), bytes);
}

TEST_P(ResidencyWriteTest, WhatCameInChunksIsTheImageOfTheWhole) {
  const std::string bytes = MakeBytes(2 * kChunk - 100, 1);
  auto writer = Begin(bytes.size(), 8);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(Append(writer->get(), absl::string_view(bytes).substr(0, kChunk)).ok());
  EXPECT_EQ((*writer)->received_bytes(), kChunk);
  EXPECT_EQ(ReasonOf((*writer)->Finish(std::nullopt, "attached").status()), "BYTES_LENGTH_MISMATCH");
  const absl::string_view rest = absl::string_view(bytes).substr(kChunk);
  EXPECT_EQ(ReasonOf((*writer)->Append({&rest, 1}, 7)), "CHECKSUM_MISMATCH");
  EXPECT_EQ((*writer)->received_bytes(), kChunk);
  ASSERT_TRUE(Append(writer->get(), rest).ok());
  EXPECT_EQ(ReasonOf((*writer)->Finish(7, "attached").status()), "CHECKSUM_MISMATCH");
  const auto image = (*writer)->Finish(ChecksumOf(bytes), "attached");
  ASSERT_TRUE(image.ok()) << image.status();
  writer->reset();
  residency_->CheckInvariants();
  EXPECT_EQ((*image)->info().checksum, ChecksumOf(bytes));
  EXPECT_EQ(Read(*image), bytes);
  EXPECT_EQ((*residency_->Read({}, *image, nullptr))->attachment(), "attached");
  ASSERT_TRUE(residency_->Persist({}, *image).ok());
}

TEST_P(ResidencyWriteTest, ASlowUploadBlocksNobodyWhoFindsThePoolFullIsToldAtOnce) {
  auto slow = Begin(), slower = Begin();
  ASSERT_TRUE(slow.ok() && slower.ok());
  // With no deadline: whoever waited for the uploads here would wait for ever.
  const auto refused = Write(MakeBytes(kChunk, 1));
  EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL");
  EXPECT_GT(GetErrorDetail(refused.status()).retry_after, absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(Begin().status()), "HOT_FULL");
  slow->reset();
  residency_->CheckInvariants();
  EXPECT_TRUE(Write(MakeBytes(kChunk, 1)).ok());
}

TEST_P(ResidencyWriteTest, APromotionThatFindsOnlyUploadsIsToldAtOnceToo) {
  ImageRef image = *Write(MakeBytes(kChunk, 1));
  image->AddHead();
  auto first = Begin(), second = Begin();  // spills it
  ASSERT_TRUE(first.ok() && second.ok()) << second.status();
  EXPECT_EQ(residency_->tier(*image), Tier::kCold);
  EXPECT_EQ(ReasonOf(residency_->Read({}, image, nullptr).status()), "HOT_FULL");
  first->reset();
  EXPECT_EQ(Read(image), MakeBytes(kChunk, 1));
  image->DropHead();
}

TEST_P(ResidencyWriteTest, AnAbandonedUploadGivesItsRoomBack) {
  for (int i = 0; i < 10; ++i) {
    auto one = Begin(kChunk, 1_MiB);
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_EQ(residency_->stats().attachment_bytes, 1_MiB);
    EXPECT_EQ(SlotsUsed(), 1u);
    if (i % 2 == 1) {
      ASSERT_TRUE(Append(one->get(), MakeBytes(kChunk, 1)).ok());
    }
    one->reset();
    residency_->CheckInvariants();
    EXPECT_EQ(SlotsUsed(), 0u);
    EXPECT_EQ(residency_->stats().attachment_bytes, 0u);
  }
  EXPECT_EQ(residency_->stats().hot_images, 0u);
}

TEST_P(ResidencyWriteTest, AnUploadMayGetAnAttachmentLater) {
  Start(4);
  const std::string attachment = MakeBytes(600'000, 5), state = MakeBytes(kChunk, 1);
  const ImageRef other = *Write(MakeBytes(kChunk, 2), attachment);
  auto first = Begin(), second = Begin();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(residency_->tier(*other), Tier::kHot);
  ASSERT_EQ((*first)->AddAttachmentRoom({}, attachment.size()), absl::OkStatus());
  EXPECT_EQ(residency_->tier(*other), Tier::kCold) << "its attachment had to go, and goes with the state";
  EXPECT_EQ(residency_->stats().attachment_bytes, attachment.size());
  EXPECT_EQ(ReasonOf((*second)->AddAttachmentRoom({}, attachment.size())), "HOT_FULL")
      << "no upload leaves for another";
  EXPECT_EQ(ReasonOf((*second)->AddAttachmentRoom({}, 2_MiB)), "STATE_TOO_LARGE");
  EXPECT_EQ(ReasonOf((*second)->AddAttachmentRoom({.deadline = clock_.Now() - 1}, 1)), "DEADLINE");
  EXPECT_EQ(residency_->stats().attachment_bytes, attachment.size()) << "what is refused takes nothing";
  ASSERT_TRUE(Append(first->get(), state).ok());
  const auto image = (*first)->Finish(std::nullopt, attachment);
  ASSERT_TRUE(image.ok());
  EXPECT_TRUE((*residency_->Read({}, *image, nullptr))->attachment() == attachment);
  EXPECT_EQ(Read(*image), state);
  ASSERT_EQ((*second)->AddAttachmentRoom({}, 1'000), absl::OkStatus());
  second->reset();
  EXPECT_EQ(residency_->stats().attachment_bytes, attachment.size());
  residency_->CheckInvariants();
}

TEST_P(ResidencyWriteTest, AnUploadThatCannotBeginTakesNothing) {
  EXPECT_EQ(ReasonOf(Begin(3 * kChunk).status()), "STATE_TOO_LARGE");
  EXPECT_EQ(ReasonOf(Begin(kChunk, 2_MiB).status()), "STATE_TOO_LARGE");
  EXPECT_EQ(ReasonOf(Begin(kChunk, 0, {.deadline = clock_.Now() - 1}).status()), "DEADLINE");
  EXPECT_EQ(SlotsUsed(), 0u);
  EXPECT_EQ(residency_->stats().attachment_bytes, 0u);
}

TEST_P(ResidencyWriteTest, UploadsThatComeAndGoLeaveRoomForThoseThatWrite) {
  constexpr unsigned kSeed = 5;
  SCOPED_TRACE(kSeed);
  Start(4);
  std::vector<std::thread> threads;
  std::atomic<int> finished{0}, written{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(kSeed * 100 + static_cast<unsigned>(t));
      for (int i = 0; i < 100; ++i) {
        const std::string bytes = MakeBytes(kChunk, random());
        if (t < 2) {
          const std::string attachment(random() % 100, 'a');
          auto writer = residency_->BeginWrite({}, MakeLayout(kChunk), attachment.size(), nullptr);
          if (!writer.ok()) {
            ASSERT_EQ(ReasonOf(writer.status()), "HOT_FULL");
            continue;
          }
          if (random() % 2) continue;
          ASSERT_TRUE(Append(writer->get(), bytes).ok());
          const auto image = (*writer)->Finish(std::nullopt, attachment);
          ASSERT_TRUE(image.ok()) << image.status();
          ASSERT_EQ(BytesOf(**residency_->Read({}, *image, nullptr)), bytes);
          ++finished;
        } else {
          const absl::string_view piece = bytes;
          StateBytes state;
          state.pieces = {&piece, 1};
          const auto image = residency_->Write({}, MakeLayout(kChunk), state);
          ASSERT_TRUE(image.ok()) << image.status();  // two uploads and two writers: four slots
          ASSERT_EQ(BytesOf(**residency_->Read({}, *image, nullptr)), bytes);
          ++written;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  residency_->CheckInvariants();
  EXPECT_EQ(written, 200);
  EXPECT_GT(finished, 20);
  EXPECT_EQ(SlotsUsed(), 0u);
}

// ---- parts of others

TEST_P(ResidencyWriteTest, APartGoesOverItsBaseWhichStaysAsItWas) {
  constexpr unsigned kSeed = 9;
  SCOPED_TRACE(kSeed);
  Start(16);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 50; ++round) {
    const uint64_t size = 1 + random() % (3 * kChunk);
    const std::string before = MakeBytes(size, random());
    const ImageRef base = *Write(before);
    // Ascending ranges that don't touch, and their bytes in pieces that have nothing to do with them.
    std::vector<ByteRange> ranges;
    std::string part, after = before;
    for (uint64_t at = random() % size; at < size;) {
      const uint64_t bytes = 1 + random() % std::min<uint64_t>(size - at, 40'000);
      const std::string piece = MakeBytes(bytes, random());
      ranges.push_back({at, bytes});
      part += piece;
      after.replace(at, bytes, piece);
      at += bytes + 1 + random() % 30'000;
    }
    std::vector<absl::string_view> pieces;
    for (absl::string_view rest = part; !rest.empty();) {
      const size_t n = std::min<size_t>(rest.size(), random() % 50'000);
      pieces.push_back(rest.substr(0, n));
      rest.remove_prefix(n);
    }
    const Pin pin = *residency_->Read({}, base, nullptr);
    StateBytes state;
    state.pieces = pieces;
    state.base = pin.get();
    state.ranges = ranges;
    const auto image = residency_->Write({}, MakeLayout(size), state);
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_TRUE(Read(*image) == after);
    EXPECT_EQ((*image)->info().checksum, ChecksumOf(after));
    EXPECT_TRUE(Read(base) == before);
    residency_->CheckInvariants();
  }
}

TEST_P(ResidencyWriteTest, APartOfAWrongLengthIsRefusedWithTheLengthThatItShouldHave) {
  const ImageRef base = *Write(MakeBytes(kChunk, 1));
  const Pin pin = *residency_->Read({}, base, nullptr);
  const std::vector<ByteRange> ranges = {{10, 5}, {20, 5}};
  for (const std::string& part : {std::string(9, 'x'), std::string(11, 'x'), std::string(kChunk, 'x'), std::string()}) {
    const absl::string_view piece = part;
    StateBytes state;
    state.pieces = {&piece, 1};
    state.base = pin.get();
    state.ranges = ranges;
    const auto refused = residency_->Write({}, MakeLayout(kChunk), state);
    EXPECT_EQ(ReasonOf(refused.status()), "BYTES_LENGTH_MISMATCH");
    EXPECT_EQ(GetErrorDetail(refused.status()).metadata[0].second, "10");
  }
  EXPECT_EQ(SlotsUsed(), 1u);
}

// ---- rooms that others fill, and memory for arenas

TEST_P(ResidencyWriteTest, ARoomThatOthersFilledIsTheImageOfWhatTheyWrote) {
  const std::string bytes = MakeBytes(2 * kChunk - 100, 1);
  auto writer = Begin(bytes.size());
  ASSERT_TRUE(writer.ok()) << writer.status();
  memory_->Write((*writer)->room(), bytes);
  const ImageRef image = (*writer)->FinishFilled(ChecksumOf(bytes), "");
  writer->reset();
  residency_->CheckInvariants();
  EXPECT_EQ(image->info().checksum, ChecksumOf(bytes));
  EXPECT_EQ(Read(image), bytes);
  ASSERT_TRUE(residency_->Persist({}, image).ok());
}

TEST_P(ResidencyWriteTest, AnArenasMemoryComesFromTheBudgetAndColderImagesLeaveForIt) {
  Start(4);
  std::vector<ImageRef> images;
  for (uint64_t i = 0; i < 4; ++i) {
    images.push_back(*Write(MakeBytes(kChunk, i)));
    images.back()->AddHead();
  }
  auto memory = residency_->AllocateShared({}, 0, 2 * kChunk - 5, device_);
  ASSERT_TRUE(memory.ok()) << memory.status();
  residency_->CheckInvariants();
  EXPECT_EQ((*memory)->bytes(), 2 * kChunk);
  EXPECT_EQ(residency_->tier(*images[0]), Tier::kCold);
  EXPECT_EQ(residency_->tier(*images[3]), Tier::kHot);
  EXPECT_EQ(device_->used_bytes(), device_->budget_bytes());
  // It never leaves: who needs more than the rest is told.
  const auto pin = residency_->Read({}, images[2], nullptr), other = residency_->Read({}, images[3], nullptr);
  EXPECT_EQ(ReasonOf(residency_->AllocateShared({}, 0, kChunk, device_).status()), "HOT_FULL");
  EXPECT_EQ(ReasonOf(Write(MakeBytes(kChunk, 9)).status()), "HOT_FULL");
  memory->reset();
  residency_->SharedMemoryFreed();
  EXPECT_TRUE(Write(MakeBytes(kChunk, 9)).ok());
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(Read(images[i]), MakeBytes(kChunk, i));
}

TEST_P(ResidencyWriteTest, WhoeverWaitsForRoomHearsThatAnArenaIsGone) {
  auto memory = residency_->AllocateShared({}, 0, 2 * kChunk, device_);
  ASSERT_TRUE(memory.ok());
  std::atomic<bool> freed{false};
  Op op;
  std::thread waiter([&] {
    for (;;) {
      const bool was_freed = freed.load();
      const auto image = Write(MakeBytes(kChunk, 1), {}, op);
      if (image.ok()) return;
      ASSERT_EQ(ReasonOf(image.status()), "HOT_FULL");
      ASSERT_FALSE(was_freed);
    }
  });
  memory->reset();
  residency_->SharedMemoryFreed();
  freed = true;
  waiter.join();
}

TEST_P(ResidencyWriteTest, AnArenaThatCanNotBeHadEvictsNothingInVain) {
  Start(4);
  ImageRef image = *Write(MakeBytes(kChunk, 1));
  image->AddHead();
  auto pinned = Write(MakeBytes(kChunk, 2));
  const auto pin = residency_->Read({}, *pinned, nullptr);
  EXPECT_EQ(ReasonOf(residency_->AllocateShared({}, 0, 4 * kChunk, device_).status()), "HOT_FULL");
  EXPECT_EQ(residency_->tier(*image), Tier::kHot);
}

}  // namespace
}  // namespace statepool
