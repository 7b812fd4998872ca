// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Residency over host memory, or memory that the CPU can't reach, and any cold store. The small budget is a few slots
// of one chunk each, so that "full" is easy to reach.
#include "server/tiers/residency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "server/memory/failing_device.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class ResidencyTest : public AnyColdStoreTest, public testing::WithParamInterface<MemoryKind> {
 protected:
  ResidencyTest() { Start(4); }
  ~ResidencyTest() override { residency_.reset(); }

  // A residency with room for `slots` states of kChunk bytes, and `attachments` bytes of attachments.
  void Start(uint64_t slots, uint64_t attachments = 0, FailingDevice::Fault fault = nullptr,
             uint64_t dirty_bytes_max = UINT64_MAX) {
    residency_.reset();
    memory_ = std::make_unique<TestMemory>(GetParam(), slots * kChunk, &clock_);
    if (!fault) fault = [](TenantId, uint64_t) { return absl::OkStatus(); };
    device_ = std::make_unique<FailingDevice>(memory_->device(), std::move(fault));
    residency_ = std::make_unique<Residency>(
        ResidencyOptions{.attachment_budget_bytes = attachments},
        ResidencyMemories{.hot = {{device_.get(), memory_->staging(), dirty_bytes_max}}}, cold_.get(), &clock_);
  }

  absl::StatusOr<ImageRef> TryWrite(const Op& op, const LayoutRef& layout, absl::string_view bytes,
                                    absl::string_view attachment = {},
                                    std::optional<Checksum> checksum = std::nullopt) {
    // In pieces that are not leaves.
    std::vector<absl::string_view> pieces;
    for (size_t at = 0; at < bytes.size(); at += 50'000) pieces.push_back(bytes.substr(at, 50'000));
    auto image = residency_->Write(
        op, layout, {.pieces = pieces, .initial = false, .expected_checksum = checksum, .attachment = attachment});
    residency_->CheckInvariants();
    return image;
  }
  ImageRef Write(const std::string& bytes, absl::string_view attachment = {}) {
    auto image = TryWrite({}, MakeLayout(bytes.size()), bytes, attachment);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *std::move(image) : nullptr;
  }
  // The head of a name, one chunk large, with bytes of its own.
  ImageRef WriteHead(uint64_t seed, bool persist = false) {
    ImageRef image = Write(MakeBytes(kChunk, seed));
    image->AddHead();
    if (persist) {
      EXPECT_TRUE(residency_->Persist({}, image).ok());
    }
    return image;
  }
  ImageRef Create(const Op& op, const LayoutRef& layout) {
    StateBytes bytes;
    bytes.initial = true;
    return *residency_->Write(op, layout, bytes);
  }
  std::string Read(const ImageRef& image) {
    auto pin = residency_->Read({}, image, nullptr);
    EXPECT_TRUE(pin.ok()) << pin.status();
    residency_->CheckInvariants();
    return pin.ok() ? BytesOf(**pin) : "";
  }
  // Null: it is not hot.
  Pin PinHot(const ImageRef& image) {
    if (!hot(image)) return nullptr;
    Pin pin = residency_->TryRead(image);
    if (memory_->staging() == nullptr) return pin;
    EXPECT_EQ(pin, nullptr) << "the CPU can't read it";
    return *residency_->Read({}, image, nullptr);
  }
  bool hot(const ImageRef& image) { return residency_->tier(*image) == Tier::kHot; }

  ManualClock clock_;
  std::unique_ptr<TestMemory> memory_;
  std::unique_ptr<FailingDevice> device_;
  std::unique_ptr<Residency> residency_;
};

INSTANTIATE_TEST_SUITE_P(Memory, ResidencyTest, OneMemory(), MemoryKindName);

// ---- spilling ahead

TEST_P(ResidencyTest, MoreDirtyBytesThanAllowedAreSpilledBeforeTheirSlotsAreNeeded) {
  Start(8, 0, nullptr, /*dirty_bytes_max=*/3 * kChunk);
  std::vector<ImageRef> images;
  for (uint64_t i = 1; i <= 6; ++i) images.push_back(WriteHead(i));
  const auto persisted = [&] {
    return std::count_if(images.begin(), images.end(), [&](const ImageRef& i) { return residency_->persisted(*i); });
  };
  while (persisted() < 3) std::this_thread::yield();
  EXPECT_EQ(residency_->stats().hot_images, 6u);  // written, and where they were
  EXPECT_TRUE(residency_->persisted(*images[0]) && residency_->persisted(*images[1]) &&
              residency_->persisted(*images[2]));  // the least recently used
  EXPECT_EQ(residency_->stats().spills, 3u);
  for (uint64_t i = 1; i <= 6; ++i) EXPECT_EQ(Read(images[i - 1]), MakeBytes(kChunk, i));
  for (const ImageRef& image : images) image->DropHead();
}

// ---- writing

TEST_P(ResidencyTest, WhatIsWrittenIsRead) {
  const std::string bytes = MakeBytes(100'000, 1);
  const ImageRef image = Write(bytes, "attached");
  EXPECT_EQ(image->info().checksum, ChecksumOf(bytes));
  EXPECT_EQ(image->info().attachment_bytes, 8u);
  EXPECT_EQ(EpochOf(image->info().id), cold_->epoch());
  const auto pin = residency_->Read({}, image, nullptr);
  ASSERT_TRUE(pin.ok());
  EXPECT_TRUE(BytesOf(**pin) == bytes);
  EXPECT_EQ((*pin)->attachment(), "attached");
  EXPECT_EQ(residency_->tier(*image), Tier::kHot);
  EXPECT_FALSE(residency_->persisted(*image));
}

TEST_P(ResidencyTest, AWrongLengthIsRefusedBeforeAnySlotIsTaken) {
  for (uint64_t length : {uint64_t{0}, kChunk - 1, kChunk + 1}) {
    const auto refused = TryWrite({}, MakeLayout(kChunk), MakeBytes(length, 1));
    const ErrorDetail detail = GetErrorDetail(refused.status());
    EXPECT_EQ(detail.reason, "BYTES_LENGTH_MISMATCH");
    EXPECT_EQ(detail.field, "data");
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(device_->used_bytes(), 0u);
}

TEST_P(ResidencyTest, AChecksumMismatchLeavesNothingBehind) {
  const std::string bytes = MakeBytes(kChunk, 1);
  const auto refused = TryWrite({}, MakeLayout(kChunk), bytes, "abc", ChecksumOf(bytes) + 1);
  const ErrorDetail detail = GetErrorDetail(refused.status());
  EXPECT_EQ(detail.reason, "CHECKSUM_MISMATCH");
  EXPECT_EQ(detail.field, "checksum");
  const ResidencyStats stats = residency_->stats();
  EXPECT_EQ(stats.hot_images, 0u);
  EXPECT_EQ(stats.attachment_bytes, 0u);
  EXPECT_EQ(stats.pools[0].slots_used, 0u);
  EXPECT_TRUE(TryWrite({}, MakeLayout(kChunk), bytes, "abc", ChecksumOf(bytes)).ok());
}

TEST_P(ResidencyTest, AllCreatesShareOneInitialImageWhileItLives) {
  const LayoutRef layout = MakeLayout(kChunk);
  ImageRef first = Create({}, layout);
  EXPECT_EQ(Create({}, layout), first);
  EXPECT_EQ(Read(first), std::string(kChunk, 7));
  EXPECT_NE(Create({.tenant = 1}, layout), first);
  const ImageId id = first->info().id;
  first.reset();
  EXPECT_NE(Create({}, layout)->info().id, id);
  residency_->CheckInvariants();
}

TEST_P(ResidencyTest, AStateLargerThanTheBudgetIsRefusedWithoutARetryHint) {
  const auto refused = TryWrite({}, MakeLayout(4 * kChunk + 1), MakeBytes(4 * kChunk + 1, 1));
  EXPECT_EQ(ReasonOf(refused.status()), "STATE_TOO_LARGE");
  EXPECT_EQ(GetErrorDetail(refused.status()).retry_after, absl::ZeroDuration());
  EXPECT_TRUE(TryWrite({}, MakeLayout(4 * kChunk), MakeBytes(4 * kChunk, 1)).ok());
}

TEST_P(ResidencyTest, AnExpiredOrCancelledWriteDoesNothing) {
  const std::atomic<bool> cancelled = true;
  EXPECT_EQ(TryWrite({.deadline = clock_.Now() - 1}, MakeLayout(kChunk), MakeBytes(kChunk, 1)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(TryWrite({.cancelled = &cancelled}, MakeLayout(kChunk), MakeBytes(kChunk, 1)).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(device_->used_bytes(), 0u);
}

TEST_P(ResidencyTest, ADeviceThatFailsIsNoShortage) {
  Start(4, 0, [](TenantId, uint64_t) { return absl::InternalError("planted"); });
  EXPECT_EQ(TryWrite({}, MakeLayout(kChunk), MakeBytes(kChunk, 1)).status().message(), "planted");
}

TEST_P(ResidencyTest, AMachineShortOfMemoryEvictsInsteadOfGrowing) {
  int allowed = 2;
  Start(4, 0, [&](TenantId, uint64_t) -> absl::Status {
    if (allowed-- > 0) return absl::OkStatus();
    return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", "planted");
  });
  const ImageRef a = WriteHead(1), b = WriteHead(2), c = WriteHead(3);
  EXPECT_FALSE(hot(a));
  EXPECT_TRUE(hot(b) && hot(c));
}

// ---- who leaves first

TEST_P(ResidencyTest, ImagesLeaveInTheOrderOfTheDesign) {
  Start(6);
  const ImageRef dirty_head = WriteHead(1), clean_head = WriteHead(2, true), dirty_behind = WriteHead(3),
                 clean_behind = WriteHead(4, true), older_clean_head = WriteHead(5, true);
  ImageRef unneeded = WriteHead(6);
  for (const ImageRef& image : {dirty_behind, clean_behind}) image->DropHead();
  Read(dirty_head);  // more recent or not: dirty heads go last
  Read(clean_head);

  const std::vector<ImageRef> order = {clean_behind, dirty_behind, older_clean_head, clean_head, dirty_head};
  unneeded.reset();
  std::vector<ImageRef> heads = {WriteHead(10)};  // takes the slot of what nobody needs
  for (const ImageRef& image : order) EXPECT_TRUE(hot(image));
  Pin keep_it = PinHot(heads[0]);
  std::vector<Pin> pins;
  pins.push_back(std::move(keep_it));
  for (size_t i = 0; i < order.size(); ++i) {
    heads.push_back(WriteHead(11 + i));
    pins.push_back(PinHot(heads.back()));
    for (size_t j = 0; j < order.size(); ++j) EXPECT_EQ(hot(order[j]), j > i) << i << " " << j;
  }
  const ResidencyStats stats = residency_->stats();
  EXPECT_EQ(stats.evictions.behind_head, 2u);
  EXPECT_EQ(stats.evictions.clean, 2u);
  EXPECT_EQ(stats.evictions.spilled, 1u);
  EXPECT_EQ(stats.spills, 2u);
  EXPECT_EQ(stats.pinned_images, 6u);
  pins.clear();
  EXPECT_EQ(Read(dirty_head), MakeBytes(kChunk, 1));
  EXPECT_EQ(Read(dirty_behind), MakeBytes(kChunk, 3));
}

TEST_P(ResidencyTest, ANewImageIsNotBehindAHeadThatItNeverWas) {
  const ImageRef head = WriteHead(1, true);
  const ImageRef fresh = Write(MakeBytes(kChunk, 2));  // its name is about to be published
  std::vector<ImageRef> more;
  for (uint64_t i = 3; i <= 5; ++i) more.push_back(WriteHead(i));
  EXPECT_FALSE(hot(head));
  EXPECT_TRUE(hot(fresh));
}

TEST_P(ResidencyTest, APinnedImageNeverLeavesAndIsNotWaitedFor) {
  std::vector<ImageRef> images;
  std::vector<Pin> pins;
  for (uint64_t i = 0; i < 4; ++i) {
    images.push_back(WriteHead(i));
    pins.push_back(PinHot(images.back()));
    ASSERT_NE(pins.back(), nullptr);
  }
  const auto refused =
      TryWrite({}, MakeLayout(kChunk), MakeBytes(kChunk, 9));  // would hang if it waited: it has no deadline
  EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL");
  EXPECT_EQ(GetErrorDetail(refused.status()).retry_after, absl::Milliseconds(100));
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(BytesOf(*pins[i]) == MakeBytes(kChunk, i));
  pins.erase(pins.begin() + 2);
  EXPECT_TRUE(TryWrite({}, MakeLayout(kChunk), MakeBytes(kChunk, 9)).ok());
  EXPECT_FALSE(hot(images[2]));
  EXPECT_TRUE(hot(images[0]) && hot(images[1]) && hot(images[3]));
}

TEST_P(ResidencyTest, AWriteWaitsForThoseWhoAreMovingButNotBeyondItsDeadline) {
  std::atomic<bool> mapping = false, go_on = false;
  Start(2, 0, [&](TenantId tenant, uint64_t) {
    if (tenant == 1) {
      for (mapping = true; !go_on;) std::this_thread::yield();
    }
    return absl::OkStatus();
  });
  std::thread mover([&] {
    const auto refused = TryWrite({.tenant = 1}, MakeLayout(kChunk), MakeBytes(kChunk, 1));
    EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL");  // all is pinned by then
  });
  while (!mapping) std::this_thread::yield();
  const ImageRef a = WriteHead(2), b = WriteHead(3);
  const Pin pin_a = PinHot(a), pin_b = PinHot(b);
  std::atomic<bool> returned = false;
  const Op op{.deadline = clock_.Now() + 1'000'000'000};
  std::thread waiter([&] {
    const auto late = TryWrite(op, MakeLayout(kChunk), MakeBytes(kChunk, 4));
    EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded) << late.status();
    returned = true;
  });
  for (int i = 0; i < 100; ++i) std::this_thread::yield();
  EXPECT_FALSE(returned);
  clock_.Advance(absl::Seconds(2));
  waiter.join();
  go_on = true;
  mover.join();
}

TEST_P(ResidencyTest, WhoeverWaitsForRoomHearsOfASlotThatWasGivenBackUnused) {
  Start(1);
  MemoryDisk disk;
  MemoryColdStore cold(&disk, 16 * kChunk);
  Residency residency({}, memory_->memories(), &cold, &clock_);
  const LayoutRef layout = MakeLayout(kChunk);
  const std::string bytes = MakeBytes(kChunk, 1);
  const absl::string_view piece = bytes;
  StateBytes state;
  state.pieces = {&piece, 1};
  const ImageRef damaged = *residency.Write({}, layout, state);
  ASSERT_TRUE(residency.Persist({}, damaged).ok());
  ASSERT_TRUE(residency.Write({}, layout, state).ok());  // in its slot
  {
    MutexLock lock(&disk.mu);
    disk.images.at(damaged->info().id).state[0] ^= 1;
  }
  std::thread waiter;
  cold.before_read = [&] {
    waiter = std::thread([&] { EXPECT_TRUE(residency.Write({}, layout, state).ok()); });
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();  // mostly it waits by then
  };
  EXPECT_EQ(residency.Read({}, damaged, nullptr).status().code(), absl::StatusCode::kDataLoss);
  waiter.join();  // would hang
}

TEST_P(ResidencyTest, AnImageThatIsRecordedWhileItIsReadStaysWhereItIsRead) {
  Start(2);
  const ImageRef image = WriteHead(1);
  const Pin pin = PinHot(image);
  ASSERT_TRUE(residency_->Persist({}, image).ok());
  const ImageRef a = WriteHead(2), b = WriteHead(3);
  EXPECT_TRUE(hot(image));
  EXPECT_FALSE(hot(a));
  EXPECT_TRUE(BytesOf(*pin) == MakeBytes(kChunk, 1));
}

TEST_P(ResidencyTest, WhatAFailedWriteLeftOnDiskGoesWithItsImage) {
  MemoryDisk disk;
  MemoryColdStore cold(&disk, 16 * kChunk);
  cold.put_status = Error(absl::StatusCode::kUnavailable, "DISK_FAILED", "planted");
  Residency residency({}, memory_->memories(), &cold, &clock_);
  const std::string bytes = MakeBytes(kChunk, 1);
  const absl::string_view piece = bytes;
  StateBytes state;
  state.pieces = {&piece, 1};
  ImageRef image = *residency.Write({}, MakeLayout(kChunk), state);
  EXPECT_FALSE(residency.Persist({}, image).ok());
  EXPECT_EQ(cold.used_bytes(), kChunk);
  image.reset();
  ASSERT_TRUE(residency.WaitForReclaim());
  EXPECT_EQ(cold.used_bytes(), 0u);
}

TEST_P(ResidencyTest, APinKeepsItsImageAlive) {
  ImageRef image = WriteHead(1);
  const Pin pin = PinHot(image);
  image.reset();
  EXPECT_TRUE(BytesOf(*pin) == MakeBytes(kChunk, 1));
}

TEST_P(ResidencyTest, AnotherLayoutsExtentIsGivenBackWhenAllInItIsOlder) {
  Start(4);
  std::vector<ImageRef> small;  // eight to a chunk
  for (uint64_t i = 0; i < 32; ++i) {
    small.push_back(Write(MakeBytes(kChunk / 8, i)));
    small.back()->AddHead();
  }
  EXPECT_EQ(device_->used_bytes(), 4 * kChunk);
  const ImageRef large = WriteHead(100);
  for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(hot(small[i]), i >= 8) << i;
  const ImageRef second = WriteHead(101);  // again at the cost of the oldest, not of `large`
  EXPECT_TRUE(hot(large));
  for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(hot(small[i]), i >= 16) << i;
  for (uint64_t i = 16; i < 32; ++i) Read(small[i]);
  const ImageRef third = WriteHead(102);  // now its own layout has the older ones
  EXPECT_FALSE(hot(large));
  for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(Read(small[i]), MakeBytes(kChunk / 8, i));
}

TEST_P(ResidencyTest, NothingIsEvictedInVainForAStateThatWouldNotFitYet) {
  std::vector<ImageRef> small;
  for (uint64_t i = 0; i < 4; ++i) small.push_back(WriteHead(i));
  const Pin pin = PinHot(small[0]);
  EXPECT_EQ(ReasonOf(TryWrite({}, MakeLayout(4 * kChunk), MakeBytes(4 * kChunk, 9)).status()), "HOT_FULL");
  for (const ImageRef& image : small) EXPECT_TRUE(hot(image));
  const ImageRef large = Write(MakeBytes(3 * kChunk, 9));
  EXPECT_TRUE(hot(large) && hot(small[0]));
}

TEST_P(ResidencyTest, AChunkIsNeverSharedBetweenTenants) {
  Start(2);
  const LayoutRef layout = MakeLayout(4'096);
  const ImageRef a = *TryWrite({.tenant = 1}, layout, MakeBytes(4'096, 1));
  const ImageRef b = *TryWrite({.tenant = 2}, layout, MakeBytes(4'096, 2));
  EXPECT_EQ(device_->used_bytes(), 2 * kChunk);
  const ImageRef c = *TryWrite({.tenant = 3}, layout, MakeBytes(4'096, 3));  // a whole extent had to go
  EXPECT_FALSE(hot(a));
  for (const auto& pool : residency_->stats().pools) EXPECT_LE(pool.slots_used, 1u);
}

TEST_P(ResidencyTest, EmptyExtentsStayForAWhileAndThenGoBackButForOne) {
  std::vector<ImageRef> images;
  for (int round = 0; round < 2; ++round) {
    for (uint64_t i = 0; i < 4; ++i) images.push_back(WriteHead(i));
    images.clear();
    EXPECT_EQ(device_->used_bytes(), 4 * kChunk);  // time stands still
  }
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_EQ(device_->used_bytes(), kChunk);
  residency_->CheckInvariants();
}

TEST_P(ResidencyTest, WhatIsKeptForADeletedLayoutGoesWithItsLastImage) {
  const LayoutRef going = MakeLayout(kChunk, "going"), staying = MakeLayout(kChunk, "staying");
  const auto pools = [this] {
    EXPECT_TRUE(residency_->WaitForReclaim());
    residency_->CheckInvariants();
    return residency_->stats().pools.size();
  };
  const auto write = [&](const LayoutRef& layout) { return *TryWrite({}, layout, MakeBytes(kChunk, 1)); };
  (void)write(going);
  (void)write(staying);
  EXPECT_EQ(pools(), 2u);  // an extent each is kept for the next
  EXPECT_EQ(device_->used_bytes(), 2 * kChunk);
  residency_->LayoutDeleted(kDefaultTenant, *going);
  EXPECT_EQ(pools(), 1u);
  EXPECT_EQ(device_->used_bytes(), kChunk);

  ImageRef image = write(going);  // registered again
  EXPECT_EQ(pools(), 2u);
  residency_->LayoutDeleted(kDefaultTenant, *going);
  EXPECT_EQ(pools(), 2u);
  EXPECT_EQ(Read(image), MakeBytes(kChunk, 1));
  auto writer = residency_->BeginWrite({}, going, 0, nullptr);
  image.reset();
  EXPECT_EQ(pools(), 2u);
  writer->reset();
  EXPECT_EQ(pools(), 1u);
  EXPECT_EQ(device_->used_bytes(), kChunk);

  ASSERT_TRUE(residency_->Persist({}, image = write(going)).ok());  // and cold ones count
  residency_->LayoutDeleted(kDefaultTenant, *going);
  std::vector<ImageRef> others;
  for (int i = 0; i < 4; ++i) others.push_back(write(staying));
  EXPECT_FALSE(hot(image));
  others.clear();
  EXPECT_EQ(pools(), 2u);
  EXPECT_EQ(Read(image), MakeBytes(kChunk, 1));
  image.reset();
  EXPECT_EQ(pools(), 1u);
}

// ---- spilling and promoting

TEST_P(ResidencyTest, SpilledImagesComeBackWithTheirAttachments) {
  std::vector<ImageRef> images;
  for (uint64_t i = 0; i < 20; ++i) images.push_back(Write(MakeBytes(kChunk, i), absl::StrCat("attachment ", i)));
  for (uint64_t i = 0; i < 20; ++i) {
    const auto pin = residency_->Read({}, images[i], nullptr);
    ASSERT_TRUE(pin.ok()) << pin.status();
    EXPECT_TRUE(BytesOf(**pin) == MakeBytes(kChunk, i));
    EXPECT_EQ((*pin)->attachment(), absl::StrCat("attachment ", i));
  }
  const ResidencyStats stats = residency_->stats();
  EXPECT_EQ(stats.misses, 17u);  // the three newest stayed: clean copies made room for clean copies
  EXPECT_EQ(stats.promotions, 17u);
  EXPECT_EQ(stats.memories[0].used_bytes, 4 * kChunk);
}

TEST_P(ResidencyTest, TryReadDoesNotPromote) {
  const ImageRef image = WriteHead(0);
  std::vector<ImageRef> more;
  for (uint64_t i = 1; i <= 4; ++i) more.push_back(WriteHead(i));
  EXPECT_FALSE(hot(image));
  EXPECT_EQ(PinHot(image), nullptr);
  Read(image);
  EXPECT_NE(PinHot(image), nullptr);
}

TEST_P(ResidencyTest, AByteThatFlippedOnDiskIsDataLossAndNeverAnAnswer) {
  const ImageRef image = WriteHead(0);
  std::vector<ImageRef> more;
  for (uint64_t i = 1; i <= 4; ++i) more.push_back(WriteHead(i));
  ASSERT_FALSE(hot(image));
  Damage(image->info().id, 12'345);
  for (int i = 0; i < 2; ++i) {
    const auto refused = residency_->Read({}, image, nullptr);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(ReasonOf(refused.status()), "CORRUPT");
    residency_->CheckInvariants();
  }
  EXPECT_EQ(Read(more[0]), MakeBytes(kChunk, 1));
}

TEST_P(ResidencyTest, AByteThatFlippedInMemoryIsNeverPersisted) {
  const ImageRef image = WriteHead(1);
  char* const byte = const_cast<char*>(PinHot(image)->data()) + 77;
  const char flipped = static_cast<char>(memory_->Read(byte, 1)[0] ^ 1);
  memory_->Write(byte, {&flipped, 1});
  EXPECT_EQ(ReasonOf(residency_->Persist({}, image)), "CORRUPT");
  EXPECT_FALSE(residency_->persisted(*image));
  EXPECT_EQ(ReasonOf(residency_->Read({}, image, nullptr).status()), "CORRUPT");
  EXPECT_EQ(PinHot(image), nullptr);
  EXPECT_THAT(Stored(), IsEmpty());
  std::vector<ImageRef> more;
  for (uint64_t i = 2; i <= 9; ++i) more.push_back(WriteHead(i));  // the others go on
  residency_->CheckInvariants();
}

TEST_P(ResidencyTest, PersistWritesOnceHoweverManyAsk) {
  Start(64);
  const ImageRef large = Write(MakeBytes(2_MiB, 1), "a");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&] { EXPECT_TRUE(residency_->Persist({}, large).ok()); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(residency_->persisted(*large));
  EXPECT_EQ(residency_->stats().transferred_bytes.at({Tier::kHot, Tier::kCold}), 2_MiB + 1);
  EXPECT_EQ(cold_->used_bytes(), 2_MiB + 1);
}

TEST_P(ResidencyTest, ManyReadersOfAColdImageShareOnePromotion) {
  const ImageRef image = WriteHead(0);
  std::vector<ImageRef> more;
  for (uint64_t i = 1; i <= 4; ++i) more.push_back(WriteHead(i));
  const std::string expected = MakeBytes(kChunk, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      const auto pin = residency_->Read({}, image, nullptr);
      EXPECT_TRUE(pin.ok() && BytesOf(**pin) == expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(residency_->stats().promotions, 1u);
}

TEST_P(ResidencyTest, TheColdBudgetBoundsSpillsAndCleanImagesGoInstead) {
  cold_budget_ = 2 * kChunk;
  residency_.reset();
  Restart();
  Start(4);
  const ImageRef clean_a = WriteHead(1, true), clean_b = WriteHead(2, true), dirty_a = WriteHead(3),
                 dirty_b = WriteHead(4);
  for (const ImageRef& image : {dirty_a, dirty_b})
    image->DropHead();  // their turn is first, but there is no room for them
  const ImageRef fifth = WriteHead(5), sixth = WriteHead(6);
  EXPECT_FALSE(hot(clean_a) || hot(clean_b));
  EXPECT_TRUE(hot(dirty_a) && hot(dirty_b));
  const auto refused = TryWrite({}, MakeLayout(kChunk), MakeBytes(kChunk, 7));
  EXPECT_EQ(ReasonOf(refused.status()), "COLD_FULL");
  const auto unread = residency_->Read({}, clean_a, nullptr);
  EXPECT_EQ(unread.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_P(ResidencyTest, AFullColdStoreAsksForRoomAndGoesOn) {
  cold_budget_ = 2 * kChunk;
  residency_.reset();
  Restart();
  Start(1);
  std::vector<ImageRef> forgettable = {WriteHead(1), WriteHead(2), WriteHead(3)};  // two of them cold
  int calls = 0;
  residency_->SetMakeRoom([&] {
    ++calls;
    if (forgettable.size() < 2) return false;
    forgettable.erase(forgettable.begin());
    return true;
  });
  const ImageRef fourth = WriteHead(4);
  EXPECT_TRUE(hot(fourth));
  EXPECT_EQ(calls, 1);
  const ImageRef third = forgettable.back();
  EXPECT_EQ(Read(third), MakeBytes(kChunk, 3));
  EXPECT_EQ(calls, 2);
  residency_->SetMakeRoom(nullptr);
}

TEST_P(ResidencyTest, AttachmentsHaveABudgetToo) {
  Start(8, 1_MiB);
  std::vector<ImageRef> images;
  const std::string attachment = MakeBytes(400'000, 5);
  for (uint64_t i = 0; i < 4; ++i) {
    images.push_back(Write(MakeBytes(kChunk, i), attachment));
    EXPECT_LE(residency_->stats().attachment_bytes, 1_MiB);
  }
  const ImageRef without = WriteHead(9);
  EXPECT_FALSE(hot(images[0]) || hot(images[1]));
  EXPECT_TRUE(hot(images[2]) && hot(images[3]) && hot(without));
  const auto pin = residency_->Read({}, images[0], nullptr);
  ASSERT_TRUE(pin.ok());
  EXPECT_TRUE((*pin)->attachment() == attachment);
  EXPECT_TRUE(hot(without));
}

// ---- going, and coming back

TEST_P(ResidencyTest, DroppedImagesLeaveTheColdStore) {
  std::vector<ImageRef> images;
  for (uint64_t i = 0; i < 10; ++i) images.push_back(WriteHead(i, true));
  EXPECT_EQ(Stored().size(), 10u);
  images.resize(3);
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_EQ(Stored().size(), 3u);
  EXPECT_EQ(cold_->used_bytes(), 3 * kChunk);
}

TEST_P(ResidencyTest, AfterDetachImagesStayInTheColdStore) {
  ImageRef image = WriteHead(1, true);
  const ImageId id = image->info().id;
  residency_->Detach();
  image.reset();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_THAT(Stored(), ElementsAre(id));
  EXPECT_EQ(residency_->stats().hot_images, 0u);
}

TEST_P(ResidencyTest, AdoptedImagesComeBackAndOrphansAreSwept) {
  const ImageInfo needed = [&] {
    const ImageRef image = Write(MakeBytes(kChunk, 1), "abc"), orphan = WriteHead(2, true);
    EXPECT_TRUE(residency_->Persist({}, image).ok());
    residency_->Detach();
    return image->info();
  }();
  residency_.reset();
  Restart();
  Start(4);
  EXPECT_EQ(Stored().size(), 2u);
  ImageRef image = residency_->Adopt(needed);
  EXPECT_EQ(residency_->Adopt(needed), image);
  EXPECT_TRUE(residency_->persisted(*image));
  EXPECT_EQ(residency_->tier(*image), Tier::kCold);
  const ImageRef fresh = WriteHead(3, true);  // of this epoch: the sweep leaves it alone
  residency_->RecoveryDone();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_THAT(Stored(), ElementsAre(needed.id, fresh->info().id));
  const auto pin = residency_->Read({}, image, nullptr);
  ASSERT_TRUE(pin.ok()) << pin.status();
  EXPECT_TRUE(BytesOf(**pin) == MakeBytes(kChunk, 1));
  EXPECT_EQ((*pin)->attachment(), "abc");
}

TEST_P(ResidencyTest, KeptImagesOutliveTheSweepThoughNobodyAdoptedThem) {
  const ImageId kept = [&] {
    const ImageRef image = WriteHead(1, true), orphan = WriteHead(2, true);
    residency_->Detach();
    return image->info().id;
  }();
  residency_.reset();
  Restart();
  Start(4);
  residency_->KeepUnused(kept);
  residency_->RecoveryDone();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_THAT(Stored(), ElementsAre(kept));
}

TEST_P(ResidencyTest, AnImageThatRecoveryDropsAgainGoesAtItsEnd) {
  const ImageInfo info = [&] {
    const ImageRef image = WriteHead(1, true);
    residency_->Detach();
    return image->info();
  }();
  residency_.reset();
  Restart();
  Start(4);
  residency_->Adopt(info).reset();
  EXPECT_NE(residency_->Adopt(info), nullptr);  // still the bytes of the same id
  EXPECT_EQ(Stored().size(), 1u);
  residency_->RecoveryDone();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_THAT(Stored(), IsEmpty());
}

// ---- disowned and adopted again

TEST_P(ResidencyTest, ADisownedImageLeavesItsBytesAndWhoeverAdoptsThemDropsThem) {
  residency_->RecoveryDone();
  ImageRef image = WriteHead(0, true);
  std::vector<ImageRef> more;
  for (uint64_t i = 1; i <= 4; ++i) more.push_back(WriteHead(i));
  ASSERT_FALSE(hot(image));
  const ImageInfo info = image->info();
  for (int round = 0; round < 3; ++round) {
    const Image* const images[] = {image.get()};
    ASSERT_TRUE(residency_->Disown(images));
    image->DropHead();
    image.reset();
    ASSERT_TRUE(residency_->WaitForReclaim());
    residency_->CheckInvariants();
    EXPECT_THAT(Stored(), testing::Contains(info.id));
    image = residency_->Adopt(info);
    image->AddHead();
    EXPECT_TRUE(residency_->persisted(*image));
    EXPECT_FALSE(hot(image));
  }
  EXPECT_EQ(Read(image), MakeBytes(kChunk, 0));
  image->DropHead();
  image.reset();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_THAT(Stored(), testing::Not(testing::Contains(info.id)));
}

TEST_P(ResidencyTest, WhatIsHotSharedOrNotPersistedIsNotDisownedNorAnyOtherInTheSameCall) {
  residency_->RecoveryDone();
  const ImageRef cold = WriteHead(0, true), hot_and_dirty = WriteHead(1), hot_and_clean = WriteHead(2, true);
  std::vector<ImageRef> more;
  for (uint64_t i = 3; i <= 4; ++i) more.push_back(WriteHead(i));
  ASSERT_FALSE(hot(cold));
  ASSERT_TRUE(hot(hot_and_dirty) && hot(hot_and_clean));
  for (const ImageRef& other : {std::cref(hot_and_dirty), std::cref(hot_and_clean)}) {
    const Image* const images[] = {cold.get(), other.get()};
    EXPECT_FALSE(residency_->Disown(images));
  }
  const Image* const images[] = {cold.get()};
  {
    const ImageRef another = cold;
    EXPECT_FALSE(residency_->Disown(images));
  }
  EXPECT_TRUE(residency_->Disown(images));
}

TEST_P(ResidencyTest, ADisownedInitialImageServesNoFurtherCreate) {
  residency_->RecoveryDone();
  const LayoutRef layout = MakeLayout(kChunk);
  ImageRef initial = Create({}, layout);
  initial->AddHead();
  ASSERT_TRUE(residency_->Persist({}, initial).ok());
  std::vector<ImageRef> more;
  for (uint64_t i = 1; i <= 4; ++i) more.push_back(WriteHead(i));
  ASSERT_FALSE(hot(initial));
  const Image* const images[] = {initial.get()};
  ASSERT_TRUE(residency_->Disown(images));
  const ImageRef next = Create({}, layout);
  EXPECT_NE(next, initial);
  EXPECT_NE(next->info().id, initial->info().id);
  EXPECT_EQ(Create({}, layout), next);
  initial->DropHead();
}

TEST_P(ResidencyTest, AnAdoptedImageThatIsNotThereIsCorrupt) {
  const ImageRef image = residency_->Adopt(MakeInfo(77, MakeLayout(kChunk), MakeBytes(kChunk, 1)));
  EXPECT_EQ(ReasonOf(residency_->Read({}, image, nullptr).status()), "CORRUPT");
  residency_->CheckInvariants();
}

}  // namespace
}  // namespace statepool
