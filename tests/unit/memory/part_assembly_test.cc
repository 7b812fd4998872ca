// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/part_assembly.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

// Counts how many are alive; nothing else of it is used here.
class FakeWriter final : public ImageWriter {
 public:
  explicit FakeWriter(int* alive) : alive_(alive) { ++*alive_; }
  ~FakeWriter() override { --*alive_; }
  uint64_t received_bytes() const override { return 0; }
  absl::Status Append(absl::Span<const absl::string_view>, Checksum) override { return absl::OkStatus(); }
  void Restart() override {}
  char* room() override { return room_; }
  ImageRef FinishFilled(Checksum, absl::string_view) override { return nullptr; }
  absl::StatusOr<ImageRef> Finish(std::optional<Checksum>, absl::string_view) override { return ImageRef(); }
  absl::Status AddAttachmentRoom(const Op&, uint64_t) override { return absl::OkStatus(); }

 private:
  int* const alive_;
  char room_[1] = {};
};

class PartAssemblyTest : public testing::Test {
 protected:
  ~PartAssemblyTest() override { parts_.CheckInvariants(); }
  static PartAssemblies::Key Key(const std::string& request_id) {
    return {kDefaultTenant, "seq", request_id, "layout", 7, 2};
  }
  // A rank's part, from its beginning to its end: how many are missing then.
  absl::StatusOr<uint32_t> Bring(const std::string& request_id, uint32_t rank, uint64_t bytes = 100,
                                 absl::string_view attachment = "") {
    absl::StatusOr<PartAssemblies::Joined> joined = Join(request_id, rank, bytes, attachment);
    if (!joined.ok()) return joined.status();
    EXPECT_TRUE(joined->copies);
    return parts_.Arrived(joined->assembly, rank);
  }
  absl::StatusOr<PartAssemblies::Joined> Join(const std::string& request_id, uint32_t rank, uint64_t bytes = 100,
                                              absl::string_view attachment = "") {
    const std::string arena = absl::StrCat("arena ", rank);
    absl::StatusOr<PartAssemblies::Joined> joined = parts_.Join(Key(request_id), {rank, arena, attachment});
    if (!joined.ok() || joined->assembly != nullptr) return joined;
    PartAssemblies::Slot slot{std::make_unique<FakeWriter>(&alive_), held_};
    return parts_.Begin(Key(request_id), {rank, arena, attachment}, bytes, /*device=*/nullptr, &slot);
  }
  void Publish(const std::string& request_id) {
    const PartAssemblies::Ref assembly = Whole(request_id);
    parts_.Take(assembly);
    NameInfo info;
    info.revision = 3;
    parts_.Published(assembly, info);
  }
  PartAssemblies::Ref Whole(const std::string& request_id) {
    EXPECT_EQ(*Bring(request_id, 0), 1u);
    absl::StatusOr<PartAssemblies::Joined> last = Join(request_id, 1);
    EXPECT_EQ(*parts_.Arrived(last->assembly, 1), 0u);
    return last->assembly;
  }

  int alive_ = 0;
  const std::shared_ptr<const void> held_ = std::make_shared<int>();  // what says that slots were reserved ones
  ManualClock clock_;
  PartAssemblies parts_{{.max_open = 3, .max_bytes = 250, .max_remembered = 2}, &clock_};
};

TEST_F(PartAssemblyTest, WhileTheVersionIsBeingPublishedNobodyIsToldThatItIs) {
  const PartAssemblies::Ref assembly = Whole("a");
  EXPECT_EQ(parts_.StateOf(*assembly).what, PartAssemblies::State::kWhole);
  for (const uint32_t rank : {0, 1}) EXPECT_EQ(ReasonOf(Join("a", rank).status()), "UPLOAD_BUSY");
  clock_.Advance(absl::Seconds(61));
  parts_.Expire();
  parts_.ArenaEnded("arena 0");
  EXPECT_EQ(parts_.StateOf(*assembly).what, PartAssemblies::State::kWhole) << "whoever publishes it ends it";
  parts_.Drop(assembly);
  EXPECT_EQ(parts_.StateOf(*assembly).what, PartAssemblies::State::kDropped);
  EXPECT_EQ(*Bring("a", 1), 1u) << "it begins anew";
}

TEST_F(PartAssemblyTest, WhatWasPublishedIsRememberedForAWhileAndWithinALimit) {
  for (const char* id : {"a", "b", "c"}) Publish(id);
  for (const char* id : {"b", "c"}) {
    const absl::StatusOr<PartAssemblies::Joined> again = Join(id, 0);
    ASSERT_TRUE(again.ok());
    EXPECT_FALSE(again->copies);
    EXPECT_EQ(parts_.StateOf(*again->assembly).info.revision, 3u);
  }
  EXPECT_EQ(*Bring("a", 0), 1u) << "the oldest was forgotten";
  clock_.Advance(absl::Seconds(61));
  EXPECT_EQ(*Bring("c", 0), 1u);
  EXPECT_EQ(alive_, 1) << "what was open when its time was over is gone too";
}

TEST_F(PartAssemblyTest, OpenOnesHaveLimits) {
  EXPECT_EQ(*Bring("a", 0), 1u);
  EXPECT_EQ(*Bring("b", 0), 1u);
  const absl::Status refused = Bring("c", 0).status();
  EXPECT_EQ(ReasonOf(refused), "TOO_MANY_UPLOADS") << "300 bytes of 250";
  EXPECT_EQ(*Bring("c", 0, /*bytes=*/0), 1u) << "a slot that was reserved counts nothing";
  EXPECT_EQ(ReasonOf(Bring("d", 0, /*bytes=*/0).status()), "TOO_MANY_UPLOADS") << "but there are three";
  parts_.ArenaEnded("arena 0");
  EXPECT_EQ(alive_, 0);
  for (const char* id : {"e", "f"}) EXPECT_EQ(*Bring(id, 0), 1u);
}

TEST_F(PartAssemblyTest, AReservedSlotIsHeldUntilItsVersionIsTakenOrDropped) {
  const PartAssemblies::Ref whole = Whole("a");
  EXPECT_EQ(held_.use_count(), 2);
  {
    const PartAssemblies::Whole taken = parts_.Take(whole);
    EXPECT_EQ(held_.use_count(), 2);
  }
  EXPECT_EQ(held_.use_count(), 1);
  parts_.Drop(whole);
  EXPECT_EQ(*Bring("b", 0), 1u);
  EXPECT_EQ(held_.use_count(), 2);
  parts_.ArenaEnded("arena 0");
  EXPECT_EQ(held_.use_count(), 1);
}

TEST_F(PartAssemblyTest, NothingPilesUpBehindOneThatIsOpen) {
  EXPECT_EQ(*Bring("open", 0), 1u);
  for (int i = 0; i < 300; ++i) {
    Publish(absl::StrCat(i));
    parts_.CheckInvariants();
  }
  EXPECT_EQ(*Bring("open", 1), 0u);
}

TEST_F(PartAssemblyTest, ADroppedOneHasNoAttachmentAnyMore) {
  EXPECT_EQ(*Bring("a", 0, /*bytes=*/0, std::string(100, 'a')), 1u);
  const PartAssemblies::Ref assembly = Join("a", 1)->assembly;
  EXPECT_EQ(*parts_.Arrived(assembly, 1), 0u);
  parts_.Drop(assembly);
  const PartAssemblies::Whole nothing = parts_.Take(assembly);
  EXPECT_LT(nothing.attachment.capacity(), 100u) << "rows may refer to it for long";
}

TEST_F(PartAssemblyTest, ASlotThatIsBeingCopiedIntoOutlivesItsAssembly) {
  const PartAssemblies::Ref assembly = Join("a", 0)->assembly;
  parts_.Drop(assembly);
  EXPECT_EQ(alive_, 1);
  EXPECT_EQ(ReasonOf(parts_.Arrived(assembly, 0).status()), "UPLOAD_UNKNOWN");
  EXPECT_EQ(alive_, 0);

  const PartAssemblies::Ref failed = Join("b", 0)->assembly;
  EXPECT_EQ(ReasonOf(Join("b", 0).status()), "UPLOAD_BUSY") << "the same part twice at a time";
  parts_.Failed(failed, 0);
  EXPECT_TRUE(Join("b", 0)->copies);
}

TEST_F(PartAssemblyTest, OneAttachmentComesWithTheVersionWhicheverRankGaveIt) {
  EXPECT_EQ(*Bring("a", 0), 1u);
  EXPECT_EQ(GetErrorDetail(Join("a", 0, 100, "late").status()).field, "attachment") << "its part came without";
  const PartAssemblies::Ref assembly = Join("a", 1, 100, "logits")->assembly;
  EXPECT_EQ(*parts_.Arrived(assembly, 1), 0u);
  EXPECT_EQ(parts_.Take(assembly).attachment, "logits");
  parts_.Published(assembly, NameInfo());
  EXPECT_EQ(GetErrorDetail(Join("a", 1, 100, "others").status()).field, "attachment");
  EXPECT_TRUE(Join("a", 1, 100, "logits").ok()) << "as it was";
  EXPECT_TRUE(Join("a", 0).ok());
}

TEST_F(PartAssemblyTest, TwoRanksGiveTheSameAttachmentOrOneIsRefused) {
  EXPECT_EQ(*Bring("a", 0, 100, "logits"), 1u);
  EXPECT_EQ(GetErrorDetail(Join("a", 1, 100, "others").status()).field, "attachment");
  EXPECT_EQ(*Bring("a", 1, 100, "logits"), 0u);
}

TEST_F(PartAssemblyTest, APartThatFailedTakesItsAttachmentAlong) {
  const PartAssemblies::Ref assembly = Join("a", 0, 100, "logits")->assembly;
  parts_.Failed(assembly, 0);
  EXPECT_EQ(*Bring("a", 1, 100, "others"), 1u);
  EXPECT_EQ(*Bring("a", 0), 0u);
  EXPECT_EQ(parts_.Take(assembly).attachment, "others");
  parts_.Drop(assembly);

  const PartAssemblies::Ref both = Join("b", 0, 100, "logits")->assembly;
  EXPECT_EQ(*Bring("b", 1, 100, "logits"), 1u);
  parts_.Failed(both, 0);
  EXPECT_EQ(*Bring("b", 0), 0u);
  EXPECT_EQ(parts_.Take(both).attachment, "logits") << "the other gave it too";
  parts_.Drop(both);
}

TEST_F(PartAssemblyTest, AttachmentsCountUntilTheirVersionsArePublishedOrDropped) {
  const std::string large(100, 'a');
  EXPECT_EQ(*Bring("a", 0), 1u);
  EXPECT_EQ(*Bring("b", 0), 1u);
  EXPECT_EQ(ReasonOf(Join("a", 1, 100, large).status()), "TOO_MANY_UPLOADS");
  EXPECT_EQ(ReasonOf(Join("c", 0, 0, large).status()), "TOO_MANY_UPLOADS");
  const PartAssemblies::Ref failed = Join("a", 1, 100, large.substr(60))->assembly;
  parts_.Failed(failed, 1);
  for (const char* id : {"a", "b"}) {
    const PartAssemblies::Ref assembly = Join(id, 1, 100, large.substr(50))->assembly;
    parts_.Drop(assembly);
    EXPECT_EQ(ReasonOf(parts_.Arrived(assembly, 1).status()), "UPLOAD_UNKNOWN");
  }
  EXPECT_EQ(*Bring("c", 0, 150, large), 1u) << "all of the room is there again";
}

}  // namespace
}  // namespace statepool
