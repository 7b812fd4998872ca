// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Leases over a real Residency: what workers see of slots that they map, and what becomes of them.
#include "server/memory/leases.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/fakes.h"
#include "server/core/error.h"
#include "server/tiers/residency.h"
#include "tiers/memory_cold_store.h"
#include "tiers/memory_kinds.h"

namespace statepool {
namespace {

constexpr uint64_t kState = kChunk - 100;  // a slot, and some padding

// An extent as a worker has it.
class Mapping {
 public:
  explicit Mapping(const Leases::Handout& handout) : bytes_(handout.bytes) {
    const int protection = handout.writable ? PROT_READ | PROT_WRITE : PROT_READ;
    const uint64_t part = bytes_ / handout.fds.size();
    data_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < handout.fds.size(); ++i) {
      EXPECT_NE(mmap(data_ + i * part, part, protection, MAP_SHARED | MAP_FIXED, handout.fds[i], 0), MAP_FAILED);
      close(handout.fds[i]);
    }
  }
  ~Mapping() { munmap(data_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  char* at(const LeasedSlot& slot) const { return data_ + slot.offset; }

 private:
  const uint64_t bytes_;
  char* data_ = nullptr;
};

class LeasesTest : public testing::TestWithParam<MemoryKind> {
 protected:
  LeasesTest() { Start(16); }
  ~LeasesTest() override { Stop(); }

  void Start(uint64_t slots, LeaseOptions options = {}) {
    Stop();
    if (options.max_pinned_bytes == 0) options.max_pinned_bytes = UINT64_MAX;
    if (options.max_granted_bytes == 0) options.max_granted_bytes = UINT64_MAX;
    memory_ = std::make_unique<TestMemory>(GetParam(), slots * kChunk, &clock_);
    residency_ = std::make_unique<Residency>(ResidencyOptions{.owned_bytes_max = options.max_granted_bytes},
                                             memory_->memories(), &cold_, &clock_);
    device_ = memory_->device();
    store_ = std::make_unique<Store>(StoreOptions(), residency_.get(), &log_, &clock_);
    ASSERT_TRUE(store_->Recover().ok());
    layout_ = LayoutOf("m", kState);
    other_layout_ = LayoutOf("other", 2 * kChunk);
    ASSERT_TRUE(store_->RegisterLayout({}, layout_, "m").ok());
    ASSERT_TRUE(store_->RegisterLayout({}, other_layout_, "other").ok());
    leases_ = std::make_unique<Leases>(
        options, store_.get(),
        LeaseMemory{[this](const Op& op, LayoutRef layout, OwnerId owner, bool at_once) {
                      return residency_->BeginOwned(op, std::move(layout), owner, device_, at_once);
                    },
                    [this](OwnerId owner, bool gone) { residency_->EndOwner(owner, gone); },
                    [this] { residency_->SharedMemoryFreed(); }, [this] { return residency_->refusals(); }},
        &clock_);
  }
  void Stop() {
    if (residency_ != nullptr) residency_->CheckInvariants();
    images_.clear();
    leases_.reset();
    store_.reset();
    residency_.reset();
  }
  static LayoutRef LayoutOf(const std::string& model, uint64_t bytes) {
    return *Layout::Create({model, {{"state", TensorKind::kOther, {0}, DType::kUInt8, {{"byte", bytes}}, {}, {}}}});
  }

  std::string Lease() {
    absl::StatusOr<Leases::Opened> opened = leases_->Open({});
    EXPECT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*leases_->Connect(opened->token), opened->lease);
    return opened->lease;
  }
  ImageRef Write(char fill, const LayoutRef& layout) {
    const std::string bytes(layout->state_bytes(), fill);
    const absl::string_view piece = bytes;
    StateBytes state;
    state.pieces = {&piece, 1};
    absl::StatusOr<ImageRef> image = residency_->Write({}, layout, state);
    EXPECT_TRUE(image.ok()) << image.status();
    if (!image.ok()) return nullptr;
    (*image)->AddHead();
    return *std::move(image);
  }
  ImageRef Write(char fill) { return Write(fill, layout_); }
  absl::StatusOr<LeasedSlot> Hold(const std::string& lease, const ImageRef& image) {
    absl::StatusOr<Pin> pin = residency_->Read({}, image, nullptr);
    if (!pin.ok()) return pin.status();
    return leases_->Hold({}, lease, *std::move(pin));
  }
  std::unique_ptr<Mapping> Map(const std::string& lease, uint64_t extent) {
    absl::StatusOr<Leases::Handout> handout = leases_->HandOut(lease, extent);
    EXPECT_TRUE(handout.ok()) << handout.status();
    return std::make_unique<Mapping>(*handout);
  }
  LeasedSlot GrantOne(const std::string& lease) {
    absl::StatusOr<std::vector<LeasedSlot>> slots = leases_->Grant({}, lease, "m", 1);
    EXPECT_TRUE(slots.ok()) << slots.status();
    return slots.ok() ? slots->front() : LeasedSlot();
  }
  static Checksum SumOf(char fill) { return ChecksumOf(std::string(kState, fill)); }
  std::string Read(const ImageRef& image) {
    const Pin pin = *residency_->Read({}, image, nullptr);
    return memory_->Read(pin->place().extent->data() + pin->place().offset, pin->size());
  }

  ManualClock clock_;
  MemoryDisk cold_disk_;
  MemoryColdStore cold_{&cold_disk_, UINT64_MAX};
  FakeDisk disk_;
  FakeNameLog log_{&disk_};
  LayoutRef layout_, other_layout_;
  std::vector<ImageRef> images_;  // go first
  std::unique_ptr<TestMemory> memory_;
  Device* device_ = nullptr;
  std::unique_ptr<Residency> residency_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Leases> leases_;
};

TEST_P(LeasesTest, APinnedSlotIsSeenWhereItLiesAndCantBeWrittenTo) {
  const ImageRef image = Write('a');
  const std::string lease = Lease();
  const absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
  ASSERT_TRUE(slot.ok()) << slot.status();
  const absl::StatusOr<Leases::Handout> handout = leases_->HandOut(lease, slot->extent);
  ASSERT_TRUE(handout.ok()) << handout.status();
  EXPECT_FALSE(handout->writable);
  EXPECT_EQ(handout->device, device_->name());
  if (GetParam() == MemoryKind::kHost) {
    const int fd = handout->fds[0];
    EXPECT_EQ(mmap(nullptr, handout->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    EXPECT_EQ(pwrite(fd, "x", 1, 0), -1);
  }
  const Mapping mapping(*handout);
  EXPECT_EQ(std::string(mapping.at(*slot), kState), std::string(kState, 'a'));
  EXPECT_EQ(leases_->stats().pins, 1u);
  EXPECT_EQ(leases_->stats().pinned_bytes, kState);
}

TEST_P(LeasesTest, APinnedSlotStaysWhateverComesUntilItIsUnpinned) {
  Start(4);
  const ImageRef image = Write('a');
  const std::string lease = Lease();
  const absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
  const auto mapping = Map(lease, slot->extent);
  std::vector<ImageRef> others;
  for (char fill = 'b'; fill <= 'z'; ++fill) others.push_back(Write(fill));
  EXPECT_EQ(std::string(mapping->at(*slot), kState), std::string(kState, 'a'));
  EXPECT_EQ(residency_->tier(*image), Tier::kHot);
  leases_->Unpin(lease, {{slot->id, slot->id, 999}});
  EXPECT_EQ(leases_->stats().pins, 0u);
  for (char fill = 'b'; fill <= 'z'; ++fill) others.push_back(Write(fill));
  EXPECT_EQ(residency_->tier(*image), Tier::kCold);
}

TEST_P(LeasesTest, TheEndOfALeaseUnpinsAndWhatIsMappedCountsUntilTheProcessIsGone) {
  ImageRef image = Write('a');
  const std::string lease = Lease();
  const absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
  auto mapping = Map(lease, slot->extent);
  leases_->LeaseEnded(lease);
  EXPECT_EQ(leases_->stats().pins, 0u);
  EXPECT_EQ(residency_->stats().pinned_images, 0u);
  EXPECT_EQ(ReasonOf(Hold(lease, image).status()), "LEASE_UNKNOWN");
  image = nullptr;
  clock_.Advance(absl::Minutes(1));
  store_->DeleteLayout({}, "m").IgnoreError();  // so that no empty extent is kept
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_EQ(device_->used_bytes(), kChunk) << "mapped memory is not given to others";
  EXPECT_FALSE(leases_->IsGone(lease));
  leases_->ProcessGone(lease);
  EXPECT_TRUE(leases_->IsGone(lease));
  EXPECT_EQ(device_->used_bytes(), 0u);
}

TEST_P(LeasesTest, AnExtentThatIsNeededNoMoreIsAskedBackOnceAndComesBackWhenDropped) {
  Start(4);
  const std::string lease = Lease();
  ImageRef image = Write('a');
  absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
  auto mapping = Map(lease, slot->extent);
  leases_->Unpin(lease, {{slot->id}});
  EXPECT_TRUE(leases_->Tend().empty());
  // Another layout needs all there is: what is not mapped goes first, and then this one is asked for.
  const ImageRef first = Write('x', other_layout_);
  const std::string large = std::string(other_layout_->state_bytes(), 'y');
  const absl::string_view piece = large;
  StateBytes state;
  state.pieces = {&piece, 1};
  absl::StatusOr<Pin> keep = residency_->Read({}, first, nullptr);
  EXPECT_EQ(ReasonOf(residency_->Write({}, other_layout_, state).status()), "HOT_FULL");
  const std::vector<Leases::Wish> wishes = leases_->Tend();
  ASSERT_EQ(wishes.size(), 1u);
  EXPECT_EQ(wishes[0].lease, lease);
  EXPECT_EQ(wishes[0].drop, std::vector<uint64_t>{slot->extent});
  EXPECT_FALSE(wishes[0].short_of_room) << "it has no grants";
  EXPECT_TRUE(leases_->Tend().empty());
  leases_->NotTold(lease, wishes[0].drop);
  EXPECT_EQ(leases_->Tend().size(), 1u);
  EXPECT_TRUE(leases_->Tend().empty());
  EXPECT_EQ(leases_->stats().retired_bytes, kChunk);
  mapping.reset();
  leases_->Dropped(lease, {{slot->extent}});
  EXPECT_EQ(leases_->stats().mapped_bytes, 0u);
  EXPECT_TRUE(residency_->Write({}, other_layout_, state).ok());
  EXPECT_EQ(Read(image), std::string(kState, 'a'));
}

TEST_P(LeasesTest, AnExtentWithPinsIsNotLetGoOfWhateverTheWorkerSays) {
  const std::string lease = Lease();
  const ImageRef image = Write('a');
  const absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
  Map(lease, slot->extent);
  leases_->Dropped(lease, {{slot->extent, 77}});
  EXPECT_EQ(std::string(Map(lease, slot->extent)->at(*slot), kState), std::string(kState, 'a'));
}

TEST_P(LeasesTest, AGrantedSlotBecomesTheImageWhereItIsAndIsSealed) {
  const std::string lease = Lease();
  const LeasedSlot slot = GrantOne(lease);
  const absl::StatusOr<Leases::Handout> handout = leases_->HandOut(lease, slot.extent);
  ASSERT_TRUE(handout->writable);
  const Mapping mapping(*handout);
  std::memset(mapping.at(slot), 'g', kState);
  const absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slot.id, SumOf('g'));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(Read(*image), std::string(kState, 'g'));
  EXPECT_TRUE(residency_->Persist({}, *image).ok());
  const absl::StatusOr<LeasedSlot> pinned = Hold(lease, *image);
  EXPECT_EQ(pinned->extent, slot.extent);
  EXPECT_EQ(pinned->offset, slot.offset);
  const absl::StatusOr<Leases::Handout> again = leases_->HandOut(lease, slot.extent);
  if (GetParam() == MemoryKind::kHost) {
    EXPECT_FALSE(again->writable);
    EXPECT_EQ(mmap(nullptr, again->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again->fds[0], 0), MAP_FAILED);
  }
  for (const int fd : again->fds) close(fd);
  EXPECT_EQ(ReasonOf(leases_->Use({}, lease, slot.id, SumOf('g')).status()), "GRANT_UNKNOWN");
  EXPECT_EQ(ReasonOf(leases_->Use({}, lease, 12345, SumOf('g')).status()), "GRANT_UNKNOWN");
}

TEST_P(LeasesTest, WhoLiesAboutTheChecksumIsFoundOutBeforeTheStateLeavesMemory) {
  const std::string lease = Lease();
  const LeasedSlot slot = GrantOne(lease);
  const auto mapping = Map(lease, slot.extent);
  std::memset(mapping->at(slot), 'g', kState);
  const absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slot.id, SumOf('h'));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(ReasonOf(residency_->Persist({}, *image)), "CORRUPT");
  residency_->CheckInvariants();
  EXPECT_EQ(residency_->stats().hot_images, 0u) << "nobody keeps what is damaged";
  EXPECT_EQ(ReasonOf(residency_->Read({}, *image, nullptr).status()), "CORRUPT");
}

TEST_P(LeasesTest, AnExtentThatCantBeSealedMakesNoImage) {
  if (GetParam() != MemoryKind::kHost) GTEST_SKIP() << "there are no seals";
  const std::string lease = Lease();
  const LeasedSlot slot = GrantOne(lease);
  const absl::StatusOr<Leases::Handout> handout = leases_->HandOut(lease, slot.extent);
  ASSERT_EQ(fcntl(handout->fds[0], F_ADD_SEALS, F_SEAL_SEAL), 0);
  for (const int fd : handout->fds) close(fd);
  EXPECT_EQ(ReasonOf(leases_->Use({}, lease, slot.id, SumOf('g')).status()), "GRANT_UNKNOWN");
}

TEST_P(LeasesTest, WhoReadsWhatAnotherWasGrantedMayNotWriteThere) {
  const std::string lease = Lease(), other = Lease();
  const LeasedSlot slot = GrantOne(lease);
  std::memset(Map(lease, slot.extent)->at(slot), 'g', kState);
  const ImageRef image = *leases_->Use({}, lease, slot.id, SumOf('g'));
  const absl::StatusOr<LeasedSlot> pinned = Hold(other, image);
  const absl::StatusOr<Leases::Handout> handout = leases_->HandOut(other, pinned->extent);
  EXPECT_FALSE(handout->writable);
  EXPECT_EQ(std::string(Mapping(*handout).at(*pinned), kState), std::string(kState, 'g'));
}

TEST_P(LeasesTest, AnExtentOfSeveralChunksIsHandedOutWhole) {
  Start(64);
  const std::string lease = Lease();
  const LayoutRef large = LayoutOf("large", 5 * kChunk - 7);
  ASSERT_TRUE(store_->RegisterLayout({}, large, "large").ok());
  const std::vector<LeasedSlot> slots = *leases_->Grant({}, lease, "large", 1);
  const absl::StatusOr<Leases::Handout> handout = leases_->HandOut(lease, slots[0].extent);
  ASSERT_TRUE(handout.ok()) << handout.status();
  EXPECT_EQ(handout->fds.size(), GetParam() == MemoryKind::kHost ? 1 : handout->bytes / kChunk);
  EXPECT_GE(handout->bytes, 5 * kChunk);
  const Mapping mapping(*handout);
  std::string state(5 * kChunk - 7, '\0');
  for (size_t i = 0; i < state.size(); ++i) state[i] = static_cast<char>(i / 1000);
  std::memcpy(mapping.at(slots[0]), state.data(), state.size());
  const absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slots[0].id, ChecksumOf(state));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(Read(*image), state);
  EXPECT_TRUE(residency_->Persist({}, *image).ok());
}

TEST_P(LeasesTest, NobodyElseGetsSlotsWhereAWorkerCanWrite) {
  const std::string lease = Lease(), other = Lease();
  const LeasedSlot slot = GrantOne(lease);
  EXPECT_NE(GrantOne(other).extent, slot.extent);
  const auto mapping = Map(lease, slot.extent);
  std::memset(mapping->at(slot), 'g', kState);
  absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slot.id, SumOf('g'));
  *image = nullptr;  // the slot is free again: for this lease
  EXPECT_EQ(GrantOne(lease).extent, slot.extent);
  leases_->LeaseEnded(lease);
  // Its worker may still write there, so nobody gets it now.
  std::vector<ImageRef> images;
  for (int i = 0; i < 8; ++i) {
    images.push_back(Write('a'));
    EXPECT_NE((*residency_->Read({}, images.back(), nullptr))->place().extent->id(), slot.extent);
  }
}

TEST_P(LeasesTest, WhatADeadWorkerStoredStays) {
  const std::string lease = Lease();
  const LeasedSlot slot = GrantOne(lease);
  auto mapping = Map(lease, slot.extent);
  std::memset(mapping->at(slot), 'g', kState);
  const absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slot.id, SumOf('g'));
  const LeasedSlot unused = GrantOne(lease);
  leases_->Unpin(lease, {{unused.id}});
  EXPECT_EQ(leases_->stats().grants, 0u);
  EXPECT_EQ(ReasonOf(leases_->Use({}, lease, unused.id, SumOf('g')).status()), "GRANT_UNKNOWN");
  GrantOne(lease);
  EXPECT_EQ(leases_->stats().grants, 1u);
  mapping.reset();
  leases_->ProcessGone(lease);
  EXPECT_EQ(leases_->stats().grants, 0u);
  EXPECT_TRUE(leases_->IsGone(lease));
  EXPECT_EQ(Read(*image), std::string(kState, 'g'));
}

TEST_P(LeasesTest, WhoDroppedEverythingLeavesNothingThatCounts) {
  Start(8, {.max_granted_bytes = 2 * kChunk});
  for (int life = 0; life < 6; ++life) {
    const std::string lease = Lease();
    const LeasedSlot slot = GrantOne(lease);
    auto mapping = Map(lease, slot.extent);
    std::memset(mapping->at(slot), 'a', kState);
    ASSERT_TRUE(leases_->Use({}, lease, slot.id, SumOf('a')).ok());
    const LeasedSlot unseen = GrantOne(lease);  // in an extent that is never handed out
    EXPECT_TRUE(unseen.extent != 0);
    mapping.reset();
    leases_->Dropped(lease, {{slot.extent}});
    leases_->LeaseEnded(lease);
    EXPECT_TRUE(leases_->IsGone(lease));
  }
}

TEST_P(LeasesTest, AnIdleWorkerDelaysOthersForAMomentOnly) {
  Start(4);
  const std::string idle = Lease(), other = Lease();
  for (int i = 0; i < 4; ++i) {
    const ImageRef image = Write(static_cast<char>('a' + i));
    const std::string& lease = i == 0 ? idle : other;
    const absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
    Map(lease, slot->extent);
    leases_->Unpin(lease, {{slot->id}});
    images_.push_back(image);
  }
  const std::string large(other_layout_->state_bytes(), 'y');
  const absl::string_view piece = large;
  StateBytes state;
  state.pieces = {&piece, 1};
  bool stored = false;
  for (int i = 0; i < 10 && !stored; ++i) {
    stored = residency_->Write({}, other_layout_, state).ok();
    clock_.Advance(absl::Milliseconds(200));
    for (const Leases::Wish& wish : leases_->Tend()) {
      if (wish.lease == other) leases_->Dropped(wish.lease, wish.drop);
    }
  }
  EXPECT_TRUE(stored);
}

TEST_P(LeasesTest, WhatDeadWorkersHadLeavesRoomForOthers) {
  Start(4, {.max_granted_bytes = 4 * kChunk});
  std::vector<ImageRef> images;
  for (int life = 0; life < 8; ++life) {
    const std::string lease = Lease();
    for (int i = 0; i < 2; ++i) {
      const LeasedSlot slot = GrantOne(lease);
      const auto mapping = Map(lease, slot.extent);
      std::memset(mapping->at(slot), 'a' + life, kState);
      images.push_back(*leases_->Use({}, lease, slot.id, SumOf(static_cast<char>('a' + life))));
      images.back()->AddHead();
    }
    leases_->ProcessGone(lease);
    residency_->CheckInvariants();
  }
  images.push_back(Write('z'));
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(Read(images[i]), std::string(kState, static_cast<char>('a' + i / 2)));
  }
}

TEST_P(LeasesTest, WhereLeasesHaveAllTheyMayOnlyWhatIsOnTheDiskLeavesItsExtentsForAGrant) {
  Start(4, {.max_granted_bytes = 2 * kChunk});
  const std::string lease = Lease();
  std::vector<ImageRef> own;
  const ImageRef foreign = Write('a');
  std::map<uint64_t, std::unique_ptr<Mapping>> mappings;
  for (char fill = 'p'; fill < 'v'; ++fill) {
    if (own.size() >= 2) {
      EXPECT_EQ(ReasonOf(leases_->Grant({}, lease, "m", 1).status()), "TOO_MUCH_GRANTED") << "neither is on the disk";
      const ImageRef& older = own[own.size() - 2];
      EXPECT_EQ(residency_->tier(*older), Tier::kHot);
      EXPECT_TRUE(residency_->Persist({}, older).ok());
    }
    const LeasedSlot slot = GrantOne(lease);
    if (!mappings.contains(slot.extent)) mappings[slot.extent] = Map(lease, slot.extent);
    std::memset(mappings[slot.extent]->at(slot), fill, kState);
    own.push_back(*leases_->Use({}, lease, slot.id, SumOf(fill)));
    own.back()->AddHead();
  }
  EXPECT_EQ(mappings.size(), 2u);
  EXPECT_EQ(residency_->tier(*foreign), Tier::kHot);
  EXPECT_EQ(residency_->tier(*own[0]), Tier::kCold);
  EXPECT_EQ(residency_->tier(*own[5]), Tier::kHot);
  for (size_t i = 0; i < own.size(); ++i) EXPECT_EQ(Read(own[i]), std::string(kState, static_cast<char>('p' + i)));
  // Another lease has no share of it.
  EXPECT_EQ(ReasonOf(leases_->Grant({}, Lease(), "m", 1).status()), "TOO_MUCH_GRANTED");
}

TEST_P(LeasesTest, StockIsWhatCanBeHadWithoutWritingToTheDisk) {
  Start(4);
  const std::string lease = Lease();
  images_ = {Write('a'), Write('b'), Write('c'), Write('d')};
  EXPECT_TRUE(leases_->GrantStock({}, lease, layout_, 2).empty());
  EXPECT_EQ(residency_->refusals(), 0u) << "nobody was refused what he needs";
  for (const ImageRef& image : images_) EXPECT_EQ(residency_->tier(*image), Tier::kHot);
  for (const ImageRef& image : images_) EXPECT_TRUE(residency_->Persist({}, image).ok());
  EXPECT_EQ(leases_->GrantStock({}, lease, layout_, 2).size(), 2u);
  EXPECT_EQ(leases_->stats().grants, 2u);
  int hot = 0;
  for (const ImageRef& image : images_) hot += residency_->tier(*image) == Tier::kHot;
  EXPECT_EQ(hot, 2);
  EXPECT_TRUE(leases_->GrantStock({}, "gone", layout_, 2).empty());
}

TEST_P(LeasesTest, WhoKeepsStockIsToldWhenAnotherIsRefusedRoom) {
  Start(4);
  const std::string lease = Lease(), idle = Lease();
  const std::vector<LeasedSlot> stock = leases_->GrantStock({}, lease, layout_, 5);
  ASSERT_EQ(stock.size(), 4u);
  EXPECT_TRUE(leases_->Tend().empty());
  const std::string bytes(kState, 'a');
  const absl::string_view piece = bytes;
  StateBytes state;
  state.pieces = {&piece, 1};
  EXPECT_EQ(ReasonOf(residency_->Write({}, layout_, state).status()), "HOT_FULL");
  const std::vector<Leases::Wish> wishes = leases_->Tend();
  ASSERT_EQ(wishes.size(), 1u);
  EXPECT_EQ(wishes[0].lease, lease);
  EXPECT_TRUE(wishes[0].short_of_room && wishes[0].drop.empty());
  EXPECT_TRUE(leases_->Tend().empty()) << "once";
  for (const LeasedSlot& slot : stock) leases_->Unpin(lease, {{slot.id}});
  // Who needs their extents retires them, and then the lease lets go of them.
  bool written = false;
  for (int i = 0; i < 2 && !written; ++i) {
    written = residency_->Write({}, layout_, state).ok();
    leases_->Tend();
  }
  EXPECT_TRUE(written);
}

TEST_P(LeasesTest, HasLimitsAndSaysThem) {
  Start(16, {.max_leases = 2, .max_pins = 3, .max_pinned_bytes = 2 * kState});
  const std::string lease = Lease(), other = Lease();
  EXPECT_EQ(ReasonOf(leases_->Open({}).status()), "TOO_MANY_LEASES");
  const ImageRef a = Write('a'), b = Write('b'), c = Write('c');
  ASSERT_TRUE(Hold(lease, a).ok());
  ASSERT_TRUE(Hold(lease, a).ok());
  const absl::StatusOr<LeasedSlot> last = Hold(lease, b);
  ASSERT_TRUE(last.ok());
  EXPECT_EQ(ReasonOf(Hold(lease, a).status()), "TOO_MANY_PINS");
  EXPECT_TRUE(Hold(other, b).ok()) << "a slot that several have pinned counts once";
  EXPECT_EQ(ReasonOf(Hold(other, c).status()), "TOO_MUCH_PINNED");
  leases_->LeaseEnded(other);
  leases_->Unpin(lease, {{last->id}});
  EXPECT_TRUE(Hold(lease, c).ok());
  EXPECT_EQ(ReasonOf(leases_->Grant({}, lease, "m", 0).status()), "INVALID_OPTION");
  EXPECT_EQ(ReasonOf(leases_->Grant({}, lease, "m", 65).status()), "INVALID_OPTION");
  EXPECT_EQ(ReasonOf(leases_->Grant({}, lease, "", 1).status()), "MISSING_FIELD");
  EXPECT_EQ(ReasonOf(leases_->Grant({}, lease, "none", 1).status()), "LAYOUT_UNKNOWN");
  EXPECT_EQ(ReasonOf(leases_->HandOut(lease, 12345).status()), "EXTENT_UNKNOWN");
  EXPECT_EQ(ReasonOf(leases_->Check({}, "")), "MISSING_FIELD");
}

TEST_P(LeasesTest, ATokenIsGoodOnceAndForItsTime) {
  absl::StatusOr<Leases::Opened> opened = leases_->Open({});
  EXPECT_EQ(ReasonOf(leases_->Check({}, opened->lease)), "LEASE_NOT_CONNECTED");
  EXPECT_TRUE(leases_->Connect(opened->token).ok());
  EXPECT_EQ(ReasonOf(leases_->Connect(opened->token).status()), "TOKEN_INVALID");
  opened = leases_->Open({});
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(leases_->Connect(opened->token).status()), "TOKEN_INVALID");
  leases_->Tend();
  EXPECT_TRUE(leases_->IsGone(opened->lease));
  Op foreign;
  foreign.tenant = 7;
  EXPECT_EQ(ReasonOf(leases_->Check(foreign, Lease())), "LEASE_UNKNOWN");
}

TEST_P(LeasesTest, ManyWorkersAtOnceSeeWholeStatesAlone) {
  Start(24, {.max_granted_bytes = 12 * kChunk});
  std::atomic<int> done{0};
  const auto work = [&](int seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    for (int round = 0; round < 30; ++round) {
      const std::string lease = Lease();
      std::map<uint64_t, std::unique_ptr<Mapping>> mappings;
      std::vector<std::pair<ImageRef, char>> images;
      for (int i = 0; i < 20; ++i) {
        const char fill = static_cast<char>('a' + random() % 26);
        if (random() % 2 == 0) {
          absl::StatusOr<std::vector<LeasedSlot>> slots = leases_->Grant({}, lease, "m", 1 + random() % 2);
          if (!slots.ok()) continue;
          const LeasedSlot slot = slots->front();
          auto& mapping = mappings[slot.extent];
          if (mapping == nullptr) mapping = Map(lease, slot.extent);
          std::memset(mapping->at(slot), fill, kState);
          absl::StatusOr<ImageRef> image = leases_->Use({}, lease, slot.id, SumOf(fill));
          ASSERT_TRUE(image.ok()) << image.status();
          images.emplace_back(*std::move(image), fill);
        } else if (!images.empty()) {
          const auto& [image, was] = images[random() % images.size()];
          absl::StatusOr<LeasedSlot> slot = Hold(lease, image);
          if (!slot.ok()) continue;
          auto& mapping = mappings[slot->extent];
          if (mapping == nullptr) mapping = Map(lease, slot->extent);
          ASSERT_EQ(std::string(mapping->at(*slot), kState), std::string(kState, was));
          if (random() % 2 == 0) leases_->Unpin(lease, {{slot->id}});
          ++done;
        }
        for (const Leases::Wish& wish : leases_->Tend()) {
          if (wish.lease != lease) continue;  // theirs keep it until they are gone
          for (const uint64_t extent : wish.drop) mappings.erase(extent);
          leases_->Dropped(lease, wish.drop);
        }
      }
      images.clear();
      mappings.clear();
      if (random() % 2 == 0) leases_->LeaseEnded(lease);
      leases_->ProcessGone(lease);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(done.load(), 50);
  EXPECT_EQ(leases_->stats().pins, 0u);
  EXPECT_EQ(leases_->stats().pinned_bytes, 0u);
  EXPECT_EQ(residency_->stats().pinned_images, 0u);
  residency_->CheckInvariants();
  ASSERT_TRUE(residency_->WaitForReclaim());
  EXPECT_EQ(device_->used_bytes(), [&] {
    uint64_t bytes = 0;
    for (const auto& pool : residency_->stats().pools) bytes += pool.extent_bytes;
    return bytes;
  }()) << "nothing lingers";
}

INSTANTIATE_TEST_SUITE_P(Memory, LeasesTest, OneMemory(), MemoryKindName);

}  // namespace
}  // namespace statepool
